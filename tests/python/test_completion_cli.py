"""Shell completion: real shells are asked what they would offer."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "pywina"]
CASES = [
    ("pywina ins", {"inspect"}),
    ("pywina run --sparse-p", {"--sparse-prefill"}),
    ("pywina run --method te", {"teal"}),
    ("pywina run -m smoll", {"smollm2-135m"}),
    ("pywina inspect smoll", {"smollm2-135m"}),
    ("pywina run -f not", {"notes.txt"}),
    ("pywina completion z", {"zsh"}),
]


def script(shell: str) -> str:
    done = subprocess.run(
        [*COMMAND, "completion", shell], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def need(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "other.txt").write_text("b")
    return tmp_path


def test_bash(folder: Path) -> None:
    program = script("bash") + (
        'offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
        "  local entry=$(complete -p pywina); entry=${entry##*-F }; entry=${entry%% *}\n"
        '  "$entry" pywina "${COMP_WORDS[COMP_CWORD]}" ""; echo "${COMPREPLY[@]}"; }\n'
    )
    for line, wanted in CASES:
        done = subprocess.run(
            [need("bash"), "--norc", "-c", program + f"offer {line}"],
            capture_output=True, text=True, cwd=folder, timeout=60,
        )  # fmt: skip
        assert (set(done.stdout.split()), done.stderr) == (wanted, ""), line


def test_fish(folder: Path) -> None:
    (folder / "pywina.fish").write_text(script("fish"))
    for line, wanted in CASES:
        done = subprocess.run(
            [need("fish"), "--no-config", "-c", f"source pywina.fish; complete -C '{line}'"],
            capture_output=True, text=True, cwd=folder, timeout=60,
            env=os.environ | {"HOME": str(folder)},
        )  # fmt: skip
        offered = {row.partition("\t")[0] for row in done.stdout.splitlines()}
        assert (offered, done.stderr) == (wanted, ""), line


def test_zsh(folder: Path) -> None:
    """zsh completes in an interactive shell alone: one on a terminal of its own gets a Tab."""
    zsh = need("zsh")
    (folder / "functions").mkdir()
    (folder / "functions" / "_pywina").write_text(script("zsh"))
    (folder / ".zshrc").write_text(
        "PS1='ready%% '; fpath=($PWD/functions $fpath); autoload -Uz compinit; compinit -u -D\n"
        "pywina() { print -r -- \"<$*>\"; }\n"
    )  # fmt: skip
    fd, child = pty.openpty()
    process = subprocess.Popen(
        [zsh, "-i"], stdin=child, stdout=child, stderr=child, cwd=folder, start_new_session=True,
        env=os.environ | {"ZDOTDIR": str(folder), "TERM": "dumb"},
    )  # fmt: skip
    os.close(child)
    text = ""

    def wait_for(wanted: str) -> None:
        nonlocal text
        deadline = time.monotonic() + 20
        while wanted not in text:
            assert time.monotonic() < deadline, f"no {wanted!r} in {text!r}"
            if select.select([fd], [], [], 1)[0]:
                text += os.read(fd, 4096).decode("utf-8", "replace")
        text = text.partition(wanted)[2]

    try:
        wait_for("ready% ")
        for line, wanted in CASES:
            os.write(fd, f"{line}\t\n".encode())
            before = line.split(" ", 1)[1].rpartition(" ")[0]
            wait_for(f"<{' '.join([*before.split(), *wanted])}>")
    finally:
        process.kill()
        process.wait()
        os.close(fd)


def test_unknown_shells_are_refused() -> None:
    done = subprocess.run(
        [*COMMAND, "completion", "tcsh"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "") and "bash" in done.stderr

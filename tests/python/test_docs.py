"""Every example of README and docs/ is run, file by file and in order.

An example is a fenced block of Python or C or an indented block of shell commands. Those that
cannot run stand below a comment that says why, ``<!-- not run: REASON -->``, and are counted.
Python blocks of a file share one interpreter and begin with what the file says before; commands run
in a folder of their own with the files that the examples name, and with a hub on this machine that
has owner/repo. Commands that only measure get a tiny model in place of a real one, and servers any
free port. ``pip install`` runs in the sources and installs into an empty environment. What wants a
package that tests do without says so, ``<!-- needs: PACKAGE -->``, and is left out without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from localhub import LocalHub

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: How many blocks are not run. A new one has to be counted here, too.
NOT_RUN = 9

_MARK = re.compile(r"<!-- not run: (.*) -->")
_NEEDS = re.compile(r"<!-- needs: (\w+) -->")
_FENCE = re.compile(r"```(\w+)(?: (\w+))?")
_MEASURES = re.compile(r"\bpywina (bench|report|calibrate|eval)( -m)? [\w.-]*smollm2-135m")


@dataclass(frozen=True)
class Block:
    """One example. kind: python, c or sh; needs: an extra without which it is left out."""

    line: int
    kind: str
    text: str
    reason: str | None
    needs: str | None


def blocks(path: Path) -> list[Block]:
    lines = path.read_text("utf-8").splitlines()
    found: list[Block] = []
    reason: str | None = None
    needs: str | None = None
    i = 0
    while i < len(lines):
        if wanted := _NEEDS.fullmatch(lines[i].strip()):
            needs = wanted[1]
        elif mark := _MARK.fullmatch(lines[i].strip()):
            reason = mark[1]
        elif lines[i].startswith("```"):
            fence, end = _FENCE.fullmatch(lines[i]), lines.index("```", i + 1)
            assert fence is not None, f"{path.name}:{i + 1}: a block without a language"
            text = "\n".join(lines[i + 1 : end]) + "\n"
            if fence[1] != "text":  # drawings
                found.append(Block(i + 2, fence[1], text, reason, fence[2]))
            i, reason = end, None
        elif lines[i].startswith("    ") and not lines[i - 1].strip():
            end = next((k for k in range(i, len(lines)) if not lines[k].startswith("    ")),
                       len(lines))  # fmt: skip
            text = textwrap.dedent("\n".join(lines[i:end])) + "\n"
            found.append(Block(i + 1, "sh", text, reason, needs))
            i, reason, needs = end - 1, None, None
        elif lines[i].strip():
            assert reason is needs is None, f"{path.name}:{i + 1}: an example must follow its mark"
        i += 1
    return found


def test_every_block_is_run_or_says_why_not() -> None:
    total, left_out = 0, []
    for path in FILES:
        found = blocks(path)
        total += len(found)
        left_out += [(path.name, b.line, b.reason) for b in found if b.reason is not None]
    for name, line, reason in left_out:
        print(f"not run: {name}:{line}: {reason}")
        assert len(reason or "") > 10
    print(f"{total} examples, {len(left_out)} of them not run")
    assert len(left_out) == NOT_RUN and total > 2 * NOT_RUN


@pytest.fixture(scope="module")
def hub(write_model: Callable[..., Path]) -> Iterator[LocalHub]:
    """owner/repo of the examples."""
    model = write_model(n_ctx=4096)
    with LocalHub({f"model-{quant}.gguf": model for quant in ("Q4_K_M", "Q8_0")}) as made:
        yield made


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory, wina_bin: Path) -> Callable[[str], None]:
    """install(commands): in the sources, into an environment that does not have pywina yet."""
    base = tmp_path_factory.mktemp("environment")
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("PYWINA", "PYTHONPATH"))}
    settings["PYWINA_BUILD"] = os.path.relpath(wina_bin.parent.parent, ROOT)
    settings["PATH"] = f"{base / 'venv' / 'bin'}:{settings['PATH']}"
    settings["PIP_FIND_LINKS"] = str(base)  # pywina itself comes from here, all else from the index

    def run(command: str, where: Path = ROOT) -> str:
        done = subprocess.run(["bash", "-euc", command], cwd=where, env=settings, timeout=600,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout

    run(f'"{sys.executable}" -m venv "{base}/venv"')
    run(f'pip wheel --quiet --no-deps -w "{base}" .')

    def install(commands: str) -> None:
        run("pip uninstall --quiet --yes pywina starlette uvicorn")
        run(commands)
        modules = "pywina, pywina.server.app" if "[server]" in commands else "pywina"
        shown = run(f'python -c "import {modules}; print(pywina.__file__)"', base)
        assert shown.startswith(str(base / "venv"))

    return install


@pytest.fixture
def folder(
    tmp_path: Path,
    write_model: Callable[..., Path],
    wina_bin: Path,
    hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """What the examples find: a model, texts, data of two tasks, the build, the sources, a hub."""
    home, data = tmp_path / "home", tmp_path / "data"
    for part in (".local/share/bash-completion/completions", ".config/fish/completions"):
        (home / part).mkdir(parents=True)
    for part in ("wikitext2", "piqa"):
        (data / part).mkdir(parents=True)
    (tmp_path / "model.gguf").symlink_to(write_model(n_ctx=16384))
    words = (ROOT / "README.md").read_text("utf-8")
    (tmp_path / "text.txt").write_text(words, "utf-8")
    (tmp_path / "prompt.txt").write_text("Once upon a time\n", "utf-8")
    (data / "wikitext2" / "wiki.test.raw").write_text(words[:4000], "utf-8")
    (data / "piqa" / "valid.jsonl").write_text(
        json.dumps({"goal": "To boil water", "sol1": "heat it", "sol2": "cool it"}) + "\n", "utf-8"
    )
    (data / "piqa" / "valid-labels.lst").write_text("0\n", "utf-8")
    for name in ("native", "tools", "examples", "Makefile", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "build").symlink_to(wina_bin.parent.parent)
    cache = os.environ.get("PYWINA_HOME") or str(Path.home() / ".cache" / "pywina")
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "pywina").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pywina "$@"\n')
    (scripts / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (scripts / "llm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llm "$@"\n')
    for script in scripts.iterdir():
        script.chmod(0o755)
    settings = {"HOME": home, "PYWINA_HOME": cache, "LLM_USER_PATH": home / "llm",
                "HF_ENDPOINT": hub.url, "HF_HOME": home / "hf",
                "PATH": f"{scripts}:{wina_bin.parent}:{os.environ['PATH']}"}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYWINA_MODEL", "PYWINA_SPARSITY",
                 "HF_HUB_OFFLINE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def servers() -> Iterator[Callable[[str], str]]:
    """start(command): begins a server as the command says, on a free port; gives its address."""
    running: list[subprocess.Popen[str]] = []

    def start(command: str) -> str:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command} --port 0"], stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert " at http://127.0.0.1:" in line, line + process.stderr.read()
        return "127.0.0.1:" + line.split("127.0.0.1:")[1].split("/")[0]

    try:
        yield start
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def run_shell(text: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", _MEASURES.sub(r"pywina \1 model.gguf", text)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_examples(path: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    examples = [block for block in blocks(path) if block.reason is None]
    if not examples:
        pytest.skip("no examples, or none that can run")
    text = path.read_text("utf-8")
    if "smollm2-135m" in text:
        request.getfixturevalue("smollm2_path")
    names: dict[str, object] = {"__name__": "__example__"}
    address = None
    with servers() as start:
        for block in examples:
            if block.needs is not None and importlib.util.find_spec(block.needs) is None:
                continue
            if block.kind == "c":
                (folder / "example.c").write_text(block.text, "utf-8")
            elif block.kind == "python":
                source = block.text
                if "127.0.0.1:8080" in source:
                    assert address is not None, "no server was started before this example"
                    source = source.replace("127.0.0.1:8080", address)
                code = compile("\n" * (block.line - 1) + source, str(path), "exec")
                exec(code, names)
            else:
                assert block.kind == "sh", block.kind
                commands = block.text.splitlines()
                serving = [line for line in commands if line.startswith("pywina serve")]
                rest = "\n".join(line for line in commands if line not in serving)
                if rest.startswith("pip install"):
                    request.getfixturevalue("install")(rest)
                elif rest.strip():
                    run_shell(rest)
                for line in serving:
                    address = start(line)

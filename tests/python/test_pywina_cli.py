"""The `pywina` program: output, exit codes, interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pywina

COMMAND = [sys.executable, "-m", "pywina"]


def run(*arguments: object, stdin: str | None = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_run_prints_the_text_alone(tiny_model: Path, tiny: pywina.Model) -> None:
    expected = tiny.generate("the world", max_tokens=12, temperature=0.0)
    result = run("run", "-m", tiny_model, "-p", "the world", "-n", 12, "--temp", 0)
    assert (result.returncode, result.stdout) == (0, expected + "\n")
    assert "tok/s" in result.stderr and "kept 100.0%" in result.stderr
    result = run("run", "-m", tiny_model, "-n", 12, "--temp", 0, stdin="the world")
    assert result.stdout == expected + "\n"


def test_run_json(tiny_model: Path, tiny: pywina.Model) -> None:
    options = ["-s", 7, "--sparsity", 0.5, "--method", "teal", "--mask", "projection", "-t", 2]
    options += ["-n", 9, "-c", 128, "--top-k", 5, "--repeat-penalty", 1.2, "--n-batch", 16]
    result = run("run", "-m", tiny_model, "-p", "the world", "--json", *options)
    report = json.loads(result.stdout)
    stream = tiny.stream(
        "the world", seed=7, sparsity=0.5, method="teal", mask="projection", max_tokens=9, top_k=5,
        repeat_penalty=1.2,
    )  # fmt: skip
    chunks = list(stream)
    assert report["text"] == "".join(chunk.text for chunk in chunks)
    assert report["tokens"] == stream.tokens
    assert report["finish_reason"] == chunks[-1].finish_reason
    assert report["prompt_tokens"] == len(tiny.tokenize("the world"))
    assert report["kept_fraction"] == pytest.approx(0.5, abs=0.02)
    assert set(report["timings"]) == {"load_s", "prefill_tok_s", "decode_tok_s"}


def test_run_chat(tiny_model: Path, tiny: pywina.Model) -> None:
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]
    expected = tiny.chat(messages, max_tokens=9, temperature=0.0)
    options = ["--chat", "--system", "Be.", "-n", 9, "--temp", 0]
    assert run("run", "-m", tiny_model, "-p", "Hi", *options).stdout == expected + "\n"


def test_chat_remembers(tiny_model: Path, tiny: pywina.Model) -> None:
    options = {"max_tokens": 6, "temperature": 0.0}
    messages = [{"role": "user", "content": "one"}]
    first = tiny.chat(messages, **options)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "two"}]
    second = tiny.chat(messages, **options)
    result = run("chat", "-m", tiny_model, "-n", 6, "--temp", 0, stdin="one\n\ntwo\n/new\none\n")
    assert (result.returncode, result.stdout) == (0, f"{first}\n{second}\n{first}\n")


def test_demo_shows_both_runs(tiny_model: Path) -> None:
    result = run("demo", "-m", tiny_model, "-n", 6)
    assert result.returncode == 0, result.stderr
    table = result.stdout.splitlines()[-3:]
    assert table[0].split() == ["tokens/s", "prompt", "tokens/s", "tokens", "kept"]
    assert table[1].startswith("dense") and table[1].endswith("100.0%")
    assert float(table[1].split()[2]) > 0 and table[2].split()[3] == "reused"
    assert table[2].startswith("40% sparse") and 59 < float(table[2].split()[-1][:-1]) < 62


def test_fetch_lists_models() -> None:
    result = run("fetch")
    assert result.returncode == 0
    assert "smollm2-135m: 98 MB" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-p", "a", "--sparsity", "1"], "sparsity is 1.0"),
        (["-p", "a", "-n", "0"], "max_tokens is 0"),
        (["-p", "a", "-c", "4096"], "n_ctx is 4096"),
        (["-p", ""], "empty"),
        ([], "empty"),
        (["-p", "a", "--system", "b"], "--chat"),
        (["-p", "a", "--method", "magic"], "magic"),
        (["-p", "a " * 600], "n_ctx"),
    ],
)
def test_bad_usage_exits_with_2(tiny_model: Path, arguments: list[str], complaint: str) -> None:
    result = run("run", "-m", tiny_model, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert complaint in result.stderr and "Traceback" not in result.stderr


def test_bad_files_exit_with_2(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really, is it?")
    for name in (tmp_path / "bad.gguf", tmp_path / "none.gguf", "unknown-name"):
        result = run("run", "-m", name, "-p", "a")
        assert (result.returncode, result.stdout) == (2, "")
        assert str(name) in result.stderr and "Traceback" not in result.stderr
    assert run().returncode == 2
    assert run("fetch", "unknown-name").returncode == 2


def test_help_and_version() -> None:
    for command in ([], ["run"], ["chat"], ["fetch"], ["demo"]):
        result = run(*command, "--help")
        assert result.returncode == 0 and "usage: pywina" in result.stdout
    assert run("--version").stdout == f"pywina {pywina.__version__}\n"


def _start(path: Path) -> subprocess.Popen[str]:
    """A long generation, of which something has been read."""
    process = subprocess.Popen(
        [*COMMAND, "run", "-m", str(path), "-p", "the", "-n", "-1", "-c", "100000", "--temp", "2",
         "--top-k", "0", "--ignore-eog"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.read(1)
    return process


@pytest.fixture
def endless_model(write_model: Callable[..., Path]) -> Path:
    """Room for far more tokens than a test waits for."""
    return write_model(n_ctx=100_000)


def test_an_interrupt_exits_with_130(endless_model: Path) -> None:
    process = _start(endless_model)
    process.send_signal(signal.SIGINT)
    started = time.perf_counter()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "stopped" in errors and "Traceback" not in errors
    assert time.perf_counter() - started < 5


def test_a_reader_that_leaves_is_no_disaster(endless_model: Path) -> None:
    process = _start(endless_model)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=20) == 1
    assert "Traceback" not in errors and "Exception" not in errors

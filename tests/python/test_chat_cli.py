"""`pywina chat` through a terminal, and what its commands do; pull, list, inspect and bench."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import pywina
from pywina.cli import chat, common, main, terminal
from pywina.cli.main import build_parser
from pywina.convert.convert import l2_norms
from pywina.hub import pretrained

COMMAND = [sys.executable, "-m", "pywina"]


class Terminal:
    """`pywina` with a terminal for its stdin, stdout and stderr."""

    def __init__(self, state: Path, *arguments: object, **environment: str) -> None:
        self._fd, child = pty.openpty()
        settings = {"XDG_STATE_HOME": str(state), "TERM": "xterm", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdin=child, stdout=child, stderr=child,
            start_new_session=True, env=os.environ | settings | environment,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its own terminal
        )  # fmt: skip
        os.close(child)
        self.text = ""

    def wait_for(self, wanted: str, seconds: float = 15) -> str:
        """What came up to a text that was wanted."""
        self._read_until(lambda: wanted in self.text, wanted, seconds)
        before, _, self.text = self.text.partition(wanted)
        return before + wanted

    def press_until(self, key: str, wanted: str) -> None:
        """Sends a key once a second until a text comes."""
        for _ in range(15):
            self.send(key)
            with contextlib.suppress(AssertionError):
                self.wait_for(wanted, 1)
                return
        self.wait_for(wanted, 1)

    def wait_for_more(self, n: int, seconds: float = 15) -> None:
        """Until n characters have come that no call has waited for."""
        self._read_until(lambda: len(self.text) >= n, f"{n} characters", seconds)

    def _read_until(self, come: Callable[[], bool], wanted: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not come():
            left = deadline - time.monotonic()
            assert left > 0, f"no {wanted!r} in {self.text[-2000:]!r}"
            if select.select([self._fd], [], [], left)[0]:
                try:
                    data = os.read(self._fd, 4096)
                except OSError:  # the other side has gone
                    data = b""
                assert data, f"no {wanted!r} before the end of {self.text[-2000:]!r}"
                self.text += data.decode("utf-8", "replace")

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def finish(self) -> int:
        """Reads to the end and returns the exit code."""
        with contextlib.suppress(OSError):
            while os.read(self._fd, 4096):
                pass
        return self.process.wait(timeout=15)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: object, **environment: str) -> Terminal:
        opened.append(Terminal(tmp_path / "state", *arguments, **environment))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_conversation(
    open_terminal: Callable[..., Terminal], tiny_model: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.json"
    shell = open_terminal("chat", "-m", tiny_model, "-n", 6, "--temp", 0)
    first = shell.wait_for("\n")
    assert "tiny" in first and "on the CPU" in first and "sparsity 0 (dense)" in first
    greeting = shell.wait_for("> ")
    assert "\x1b[1;32m" not in greeting and "\x1b[2m" not in greeting  # NO_COLOR
    shell.send("one\\\ntwo\n")
    shell.wait_for("tok/s")
    shell.wait_for("> ")
    shell.send('"""three\n\nfour"""\n')
    shell.wait_for("tok/s")
    shell.wait_for("> ")
    shell.send("/sparsity 0.5\n")
    shell.wait_for("sparsity 0.5: ")
    shell.wait_for("> ")
    shell.send("five\n")
    shell.wait_for("kept 5")
    shell.send("/stats\n")
    shell.wait_for("of 512 tokens of context used, 6 messages, sparsity 0.5")
    shell.send(f"/save {saved}\n")
    shell.wait_for("6 messages written")
    shell.send("/nothing\n")
    shell.wait_for("no command /nothing")
    shell.send("/exit\n")
    assert shell.finish() == 0
    report = json.loads(saved.read_text("utf-8"))
    asked = [m["content"] for m in report["messages"] if m["role"] == "user"]
    assert asked == ["one\ntwo", "three\n\nfour", "five"] and report["sparsity"] == 0.5
    history = tmp_path / "state" / "pywina" / "history"
    assert history.read_text("utf-8").splitlines()[-1] == "/exit"
    assert history.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_the_answer_alone(
    open_terminal: Callable[..., Terminal], write_model: Callable[..., Path]
) -> None:
    shell = open_terminal(
        "chat", "-m", write_model(n_ctx=100_000), "-c", 100_000, "--temp", 2, "--top-k", 0,
        "--ignore-eog",
    )  # fmt: skip
    shell.wait_for("> ")
    shell.send("go on\n")
    shell.wait_for("go on\r\n")
    shell.wait_for_more(40)  # the answer has begun
    shell.send("\x03")
    shell.wait_for("[stopped]")
    shell.wait_for("> ")
    shell.send("/stats\n")  # of what there was of it
    assert "tok/s, kept 100.0%" in shell.wait_for("tokens of context used, 2 messages")
    shell.wait_for("> ")
    shell.send("half a line")
    shell.wait_for("half a line")
    shell.press_until("\x03", "/exit ends")  # one that comes before the line is being read is lost
    shell.wait_for("> ")
    shell.send("\x04")
    assert shell.finish() == 0


def test_terminals_get_colours(open_terminal: Callable[..., Terminal], tiny_model: Path) -> None:
    shell = open_terminal("chat", "-m", tiny_model, NO_COLOR="")
    before = shell.wait_for("> ")
    assert "\x1b[1;32m" in before and "\x1b[2m" in before


def _conversation(model: pywina.Model, *arguments: str) -> chat.Conversation:
    args = build_parser().parse_args(["chat", "-m", "x", "-n", "4", "--temp", "0", *arguments])
    return chat.Conversation(model, args, interactive=False)


def test_commands(tiny: pywina.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = _conversation(tiny, "--system", "Be.")
    talk.ask("Hi")
    expected = tiny.chat(talk.messages[:2], max_tokens=4, temperature=0.0)
    assert capsys.readouterr().out == expected + "\n"
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant"]
    path = tmp_path / "a b.json"
    talk.command(f"/save {path}")
    talk.command("/clear")
    assert [m["role"] for m in talk.messages] == ["system"]
    assert "forgotten" in capsys.readouterr().err
    talk.command("/system")
    assert talk.messages == [] and "no system message" in capsys.readouterr().err
    talk.command(f"/load {path}")
    assert talk.messages[-1] == {"role": "assistant", "content": expected}
    talk.command("/system Other.")
    assert talk.messages[0]["content"] == "Other."
    for line, complaint in (
        ("/sparsity 1", "sparsity is 1.0"),
        ("/sparsity much", "no number"),
        ("/save", "name of a file"),
        (f"/save {tmp_path / 'none' / 'x'}", "cannot write"),
        (f"/save {tmp_path}", "is no file"),
        (f"/save {'x' * 999}", "cannot write"),
        ("/save a\0b", "name of a file"),
        (f"/load {tmp_path / 'none'}", "cannot read"),
    ):
        capsys.readouterr()
        talk.command(line)
        assert complaint in capsys.readouterr().err
    talk.command("/help")
    help_text = capsys.readouterr().err
    assert all(f"/{name}" in help_text for name in chat.COMMANDS)
    talk.command("/quit")
    assert talk.done


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"messages": 3}', '[{"role": "x", "content": ""}]', "[" * 9999]
)
def test_other_files_are_not_loaded(
    tiny: pywina.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "x").write_text(text)
    talk = _conversation(tiny)
    talk.command(f"/load {tmp_path / 'x'}")
    assert "no " in capsys.readouterr().err and talk.messages == []


def test_bytes_that_are_no_text(tiny_model: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "chat", "-m", str(tiny_model), "-n", "3"], input=b"a\xff\n/exit\nnever\n",
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert result.returncode == 0 and result.stdout and b"Traceback" not in result.stderr


def test_state_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert terminal.state_dir() == tmp_path / ".local" / "state" / "pywina"


# ---- arguments ------------------------------------------------------------------------------


def _parse(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


def test_sampler_flags() -> None:
    args = _parse(
        *"run -m x --typical 0.9 --top-nsigma 2 --xtc-probability 0.5 --xtc-threshold 0.2 "
        "--dynatemp-range 0.3 --dynatemp-exp 2 --dry-multiplier 0.8 --dry-base 2 --mirostat 2 "
        "--dry-allowed-length 3 --dry-penalty-last-n 9 --mirostat-ent 4 --mirostat-lr 0.2 "
        "--dry-sequence-breaker none -ngl 3 -n 7".split()
    )
    options = common.generate_options(args)
    params = pywina.Params(**options)
    assert (params.typical_p, params.top_n_sigma, params.xtc_probability) == (0.9, 2, 0.5)
    assert (params.xtc_threshold, params.dynatemp_range, params.dynatemp_exponent) == (0.2, 0.3, 2)
    assert (params.dry_multiplier, params.dry_base, params.dry_allowed_length) == (0.8, 2, 3)
    assert (params.dry_penalty_last_n, params.dry_sequence_breakers) == (9, [])
    assert (params.mirostat, params.mirostat_tau, params.mirostat_eta) == (2, 4, 0.2)
    assert (args.gpu_layers, params.max_tokens) == (3, 7)
    assert pywina.Params(**common.generate_options(_parse("run", "-m", "x"))) == pywina.Params()


def test_environment(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setenv("PYWINA_MODEL", str(tiny_model))
    monkeypatch.setenv("PYWINA_SPARSITY", "0.5")
    monkeypatch.setenv("PYWINA_THREADS", "3")
    args = _parse("run")
    assert (common.model_path(args), args.sparsity, args.threads) == (tiny_model, 0.5, 3)
    assert _parse("run", "--sparsity", "0.1", "-t", "1").sparsity == 0.1
    monkeypatch.setenv("PYWINA_THREADS", "many")
    with pytest.raises(SystemExit):
        _parse("run")


def test_a_prompt_file(
    tiny_model: Path, tiny: pywina.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_text("the world\n")
    options = ["-m", str(tiny_model), "-f", str(tmp_path / "p"), "-n", "5", "--temp", "0"]
    assert main(["run", *options]) == 0
    output = capsys.readouterr()
    assert output.out == tiny.generate("the world", max_tokens=5, temperature=0.0) + "\n"
    assert "on the CPU" in output.err.splitlines()[0]
    assert main(["run", *options, "-p", "x"]) == 2


def test_missing_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYWINA_MODEL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # put back after --offline has set it
    monkeypatch.setenv("PYWINA_HOME", str(tmp_path))
    for arguments, complaint in (
        (["run", "-p", "a"], "PYWINA_MODEL"),
        (["run", "-p", "a", "-hff", "x.gguf"], "-hf"),
        (["inspect", "smollm2-135m", "--offline"], "pywina pull smollm2-135m"),
        (["run", "-p", "a", "-hf", "name"], "OWNER/REPO"),
        (["pull"], "nothing to pull"),
    ):
        assert main(arguments) in (1, 2)
        assert complaint in capsys.readouterr().err


def test_repositories(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["a-Q8_0.gguf", "a-q4_k_m.gguf"]

    def fetch(repo_id: str, filename: str | None = None) -> Path:
        return Path(repo_id) / pretrained.choose_file(repo_id, files, filename)

    monkeypatch.setattr(pretrained, "fetch_pretrained", fetch)
    assert pretrained.fetch_repository("o/r") == Path("o/r/a-q4_k_m.gguf")
    assert pretrained.fetch_repository("o/r:q8_0") == Path("o/r/a-Q8_0.gguf")
    assert pretrained.fetch_repository("hf://o/r", "a-Q8*") == Path("o/r/a-Q8_0.gguf")
    with pytest.raises(pywina.ModelNotFoundError, match="no file of o/r"):
        pretrained.fetch_repository("o/r:Q2_K")
    assert main(["pull", "o/r:Q8_0", "-hf", "o/r"]) == 0
    assert capsys.readouterr().out == "o/r/a-Q8_0.gguf\no/r/a-q4_k_m.gguf\n"
    files[:] = ["a-Q8_0.gguf", "a-Q6_K.gguf"]
    with pytest.raises(pywina.ArgumentError, match="2 files"):
        pretrained.fetch_repository("o/r")


@pytest.mark.parametrize("package", ["httpx", "httpx2", "requests"])
def test_a_hub_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:
    refused = type("ConnectError", (Exception,), {"__module__": f"{package}._exceptions"})

    def fail(*_args: object, **_options: object) -> None:
        raise refused("connection refused")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    monkeypatch.setattr(pretrained, "_cached_names", lambda *_: [])
    assert main(["pull", "-hf", "owner/repo"]) == 2
    assert "connection refused" in capsys.readouterr().err


_COMMAND_LINE = re.compile(r"^ {4}(?:\w+=\S+ )*pywina (.*)$", re.MULTILINE)


@pytest.mark.parametrize("name", ["cli", "quickstart", "troubleshooting"])
def test_commands_of_the_docs_are_understood(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    found = _COMMAND_LINE.findall(text.replace("\\\n", ""))
    assert len(found) >= 3
    for line in found:
        words = shlex.split(re.split(r"[<>|]", line)[0], comments=True)
        assert build_parser().parse_args(words).command


def test_the_docs_name_every_command_and_variable() -> None:
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    help_text = build_parser().format_help()
    for command in re.findall(r"^    (\w+)", help_text, re.MULTILINE):
        assert f"`{command}`" in text or f"`pywina {command}" in text, command
    for name in chat.COMMANDS:
        assert f"`/{name}" in text, name
    for path in (ROOT / "pywina" / "cli").glob("*.py"):
        for variable in re.findall(r'"(PYWINA_\w+)"', path.read_text("utf-8")):
            assert f"`{variable}`" in text or variable == "PYWINA_DATA", variable


# ---- list, inspect, bench -------------------------------------------------------------------


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "smollm2-135m: 98 MB" in capsys.readouterr().out


def test_inspect(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_model), "--sparsity", "0.5", "--tensors", "--metadata"]) == 0
    output = capsys.readouterr().out
    assert "llama" in output and "general.architecture = llama" in output
    assert "at sparsity 0.5: wina: |x|, top-k, group masks, profile budgets" in output
    assert "blk.0.ffn_up.weight" in output
    assert main(["inspect", "-m", str(tiny_model), "--json", "-c", "64"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["info"]["n_layer"] == 2 and report["memory"]["session"] > 0
    assert report["memory"]["kv_cache"] == 64 * report["info"]["kv_bytes_per_token"]
    assert "profile budgets" in report["rule"]  # what half of the bytes would be skipped by


def test_inspect_says_the_calibrated_rule(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a sparsity, with powers that differ by group."""
    with pywina.load(tiny_model, n_threads=1) as model:
        tuning = l2_norms(model)
        tuning.targets = np.array([0.5], np.float32)
        tuning.kept = np.full((1, model.info.n_layer, 4), 0.5, np.float32)
        cases = (((0.5,) * 4, "norm)^0.5,"), ((0, 0.25, 0.5, 1), "^(0, 0.25, 0.5, 1)"))
        for exponents, shown in cases:
            tuning.exponents = np.array(exponents, np.float32)
            tuning.save(tmp_path / "tuning.json")
            tuned = tmp_path / "tuned.gguf"
            options = ["--tuning", str(tmp_path / "tuning.json")]
            assert main(["convert", str(tiny_model), str(tuned), *options]) == 0
            capsys.readouterr()
            assert main(["inspect", str(tuned)]) == 0
            output = capsys.readouterr().out
            assert "at sparsity 0.5: wina: |x| * (calibrated" in output
            assert shown in output and "calibrated budgets" in output


def test_bench(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-m", str(tiny_model), "-p", "16", "-n", "8", "-r", "2", "--sparsity", "0,0.5"]
    assert main(["bench", *options]) == 0
    head, dense, sparse = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "sparsity" and dense.split()[3] == "100.0%"
    assert 45 < float(sparse.split()[3][:-1]) < 55
    assert main(["bench", *options, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["hash"] for run in runs] == [dense.split()[-1], sparse.split()[-1]]
    assert all(run["decode_tok_s"] > 0 and run["prompt_tok_s"] > 0 for run in runs)
    assert main(["bench", *options, "--sparsity", "x"]) == 2


def test_markdown_is_for_terminals_that_want_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "**bold** and \x1b[2J\n"
    for terminal_there, no_color, markdown, wanted in (
        (True, "", True, "\x1b[1mbold\x1b[0m and \ufffd[2J\n"),
        (True, "", False, "**bold** and \ufffd[2J\n"),
        (True, "1", True, "**bold** and \ufffd[2J\n"),
        (False, "", True, text),
    ):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr(sys.stdout, "isatty", lambda there=terminal_there: there)
        answer = terminal.Answer(markdown=markdown)
        answer.write(text)
        answer.end()
        assert capsys.readouterr().out == wanted + "\n"

"""What all commands owe whoever types them: a first line, bars, environment variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pywina
from pywina.cli import common, main
from pywina.cli.main import build_parser


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "piqa").mkdir()
    question = {"goal": "To boil water", "sol1": "heat it", "sol2": "cool it"}
    (tmp_path / "piqa" / "valid.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n")
    (tmp_path / "text.txt").write_text("the world and the other one " * 60)
    return tmp_path


def test_the_first_line_says_what_runs_where_and_how_sparse(
    tiny_model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["-f", str(data / "text.txt")]
    for arguments, dial in (
        (["run", "-m", str(tiny_model), "-p", "the", "-n", "2", "--sparsity", "0.5"], "0.5 (wina)"),
        (["bench", str(tiny_model), "-p", "4", "-n", "2", "-r", "1", "--sparsity", "0,0.5"],
         "0, 0.5 (wina)"),
        (["calibrate", str(tiny_model), *text, "-o", str(data / "t.json"), "--allocate", "uniform",
          "--windows", "1", "--size", "64"], "0.5 to calibrate for"),
        (["eval", str(tiny_model), "--tasks", "piqa", "--data", str(data), "--json",
          str(data / "r.json")], "0, 0.5"),
    ):  # fmt: skip
        assert main([*arguments, "-t", "1"]) == 0
        first = capsys.readouterr().err.splitlines()[0]
        assert first.startswith(
            f"pywina: {tiny_model.name} (llama, 0M weights) on the CPU, 1 thread"
        )
        assert first.endswith(f"tokens of context, sparsity {dial}"), first


def test_a_long_prompt_has_a_bar(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar:
        n = 0.0

        def __init__(self, **options: Any) -> None:
            self.options, self.steps, self.open = options, [], True
            bars.append(self)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            self.open = False

        def update(self, n: float) -> None:
            assert self.open
            self.n += n
            self.steps.append(self.n)

    monkeypatch.setattr(common, "tqdm", Bar)
    with pywina.load(tiny_model, n_batch=16) as model:
        stream = model.stream("the world " * 20, max_tokens=4)
        chunks = list(common.pieces(stream))
        n = len(stream.prompt)
    (bar,) = bars
    assert len(chunks) == 4 and bar.options["total"] == n > 32
    assert bar.steps == [*range(16, n, 16), n] or bar.steps == list(range(16, n, 16))
    # On terminals alone, after a second, and gone when the answer begins.
    assert (bar.options["disable"], bar.options["delay"], bar.options["leave"]) == (None, 1, False)


def test_the_environment_stands_in_for_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("MODEL", "a.gguf"), ("SPARSITY", "0.3"), ("THREADS", "3"), ("PORT", "9"),
                        ("CTX_SIZE", "77"), ("BACKEND", "cpu"), ("GPU_LAYERS", "5"),
                        ("HOST", "::1")):  # fmt: skip
        monkeypatch.setenv(f"PYWINA_{name}", value)
    args = build_parser().parse_args(["serve"])
    given = (args.model, args.sparsity, args.threads, args.ctx, args.backend, args.gpu_layers)
    assert given == ("a.gguf", 0.3, 3, 77, "cpu", 5) and (args.host, args.port) == ("::1", 9)
    args = build_parser().parse_args(["serve", "-m", "b", "-t", "1", "-c", "8", "--port", "0"])
    assert (args.model, args.threads, args.ctx, args.port) == ("b", 1, 8, 0)
    for command in (["calibrate", "m", "-f", "t", "-o", "o"], ["convert", "a", "b"],
                    ["eval", "m", "--json", "o"],
                    ["report", "m", "-f", "t", "-o", "o"]):  # fmt: skip
        assert build_parser().parse_args(command).threads == 3
    monkeypatch.setenv("PYWINA_THREADS", "many")
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run"])
    assert "--threads" in capsys.readouterr().err
    monkeypatch.delenv("PYWINA_THREADS")
    monkeypatch.setenv("PYWINA_BACKEND", "abacus")
    assert main(["run", "-m", "a.gguf", "-p", "x"]) == 2


def test_help_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command: all of it. After an error: where it is, in two lines."""
    assert main([]) == 2
    out, err = capsys.readouterr()
    commands = [line.split()[0] for line in err.splitlines() if line.startswith("    ")]
    assert out == "" and "examples:" in err and commands[:5] == [
        "pull", "list", "run", "chat", "serve",
    ]  # fmt: skip
    for words in (["run", "--nope"], ["run", "-c", "many"], ["eval", "m"], ["convert", "a"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        lines = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2 and len(lines) == 2, lines
        assert lines[0].startswith(f"usage: pywina {words[0]} ")
        assert lines[1].endswith(f"`pywina {words[0]} --help` says more")
    parser = build_parser()
    (commands_,) = (a for a in parser._actions if hasattr(a, "choices") and a.choices)
    for name, command in commands_.choices.items():
        for action in command._actions:
            assert action.help, f"{name}: {action.option_strings or action.dest}"


def test_numbers_with_a_meaning_of_their_own(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp's: -c 0 is the context that the model was trained with, -ngl -1 what fits."""
    words = ["run", "-m", str(tiny_model), "-p", "the", "-n", "2"]
    assert main([*words, "-c", "0", "-ngl", "-1"]) == 0
    assert " 512 tokens of context" in capsys.readouterr().err

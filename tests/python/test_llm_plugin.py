"""The plug-in for simonw's `llm`, driven by llm itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pywina

pytest.importorskip("llm", reason="needs simonw's llm (extra dev)")


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """ask(model, *arguments): what `llm` does with them; $PYWINA_MODEL is the model."""
    from click.testing import CliRunner
    from llm.cli import cli

    def invoke(model: Path, *arguments: object) -> Any:
        monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
        monkeypatch.setenv("PYWINA_MODEL", str(model))
        return CliRunner().invoke(cli, [str(each) for each in arguments])

    return invoke


def test_the_program(
    ask: Callable[..., Any], tmp_path: Path, tiny_model: Path, tiny: pywina.Model
) -> None:
    """A question, its conversation, what is logged, a bad option; found by its entry point."""
    options = ["-o", "max_tokens", 8, "-o", "temperature", 0]
    first = ask(tiny_model, "-m", "pywina", "Hi", "-s", "Be.", *options)
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]
    expected = tiny.chat(messages, max_tokens=8, temperature=0.0)
    assert (first.exit_code, first.stdout.strip("\n")) == (0, expected.strip("\n")), first.stderr
    second = ask(tiny_model, "-c", "more", *options, "-o", "sparsity", 0.5)
    messages += [{"role": "assistant", "content": expected}, {"role": "user", "content": "more"}]
    expected = tiny.chat(messages, max_tokens=8, temperature=0.0, sparsity=0.5)
    assert (second.exit_code, second.stdout.strip("\n")) == (0, expected.strip("\n"))
    (log,) = json.loads(ask(tiny_model, "logs", "-n", 1, "--json").stdout)
    assert log["input_tokens"] == len(tiny.chat_tokens(messages)) and log["output_tokens"] == 8
    assert log["response_json"]["kept_fraction"] == pytest.approx(0.5, abs=0.02)
    bad = ask(tiny_model, "-m", "pywina", "Hi", "-o", "sparsity", 1)
    assert bad.exit_code == 1 and "sparsity" in bad.stderr and "Traceback" not in bad.stderr
    long = ask(tiny_model, "-m", "pywina", "word " * 600)
    assert long.exit_code == 1 and "room" in long.stderr and "Traceback" not in long.stderr
    missing = ask(tmp_path / "none.gguf", "-m", "pywina", "Hi")
    assert missing.exit_code == 1 and "none.gguf" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_models_and_embeddings(
    tiny_model: Path, tiny: pywina.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pywina.llm_plugin import PywinaEmbedding, sources

    monkeypatch.setenv("PYWINA_MODEL", str(tiny_model))
    found = sources()
    assert found["pywina"] == str(tiny_model) and found["pywina/smollm2-135m"] == "smollm2-135m"
    monkeypatch.delenv("PYWINA_MODEL")
    assert "pywina" not in sources()
    model = PywinaEmbedding("pywina", str(tiny_model))
    assert model.embed("the world") == tiny.embed("the world").tolist()


def test_schema(smollm2_path: Path) -> None:
    pytest.importorskip("llguidance")
    from pywina.llm_plugin import Pywina

    model = Pywina("pywina", str(smollm2_path))
    schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"],
              "additionalProperties": False}  # fmt: skip
    reply = model.prompt("Hi", schema=schema, temperature=0.0, max_tokens=40, stream=True)
    assert isinstance(json.loads(reply.text())["big"], bool)

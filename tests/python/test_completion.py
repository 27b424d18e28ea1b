"""Replies in OpenAI's shape, grammars, embeddings and saved states."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pywina

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
OPTIONS: dict[str, Any] = {"max_tokens": 6, "seed": 5, "ignore_eog": True}


def check_usage(usage: dict[str, Any], n_prompt: int, n: int) -> None:
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (n_prompt, n)
    assert usage["total_tokens"] == n_prompt + n


def test_a_completion(tiny: pywina.Model) -> None:
    reply = tiny.create_completion("the sea", **OPTIONS, temperature=0.8, min_p=0.05, model="mine")
    assert set(reply) == {"id", "object", "created", "model", "choices", "usage"}
    assert reply["object"] == "text_completion" and reply["model"] == "mine"
    assert reply["id"].startswith("cmpl-")
    (choice,) = reply["choices"]
    assert choice["text"] == tiny.generate("the sea", **OPTIONS)
    assert choice["finish_reason"] == "length" and choice["logprobs"] is None
    n_prompt = len(tiny.tokenize("the sea", add_special=True, parse_special=True))
    check_usage(reply["usage"], n_prompt, 6)
    echoed = tiny.create_completion("the sea", **OPTIONS, echo=True)["choices"][0]["text"]
    assert echoed.endswith(choice["text"]) and "sea" in echoed[: -len(choice["text"])]
    stopped = tiny.create_completion("the sea", **OPTIONS, stop=[choice["text"][2:5]])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["choices"][0]["text"] == choice["text"][:2]


def test_a_stream_of_chunks_is_the_completion(tiny: pywina.Model) -> None:
    whole = tiny.create_completion("the sea", **OPTIONS, logprobs=2)
    chunks = list(tiny.create_completion("the sea", **OPTIONS, logprobs=2, stream=True))
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + [
        "length"
    ]
    last = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    assert len({c["id"] for c in chunks}) == 1 and chunks[-1]["choices"] == [last]
    check_usage(chunks[-1]["usage"], whole["usage"]["prompt_tokens"], 6)
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        joined = [item for c in chunks[:-1] for item in c["choices"][0]["logprobs"][name]]
        assert joined == whole["choices"][0]["logprobs"][name]
    probabilities = whole["choices"][0]["logprobs"]
    assert len(probabilities["tokens"]) == 6 and all(
        p <= 0 for p in probabilities["token_logprobs"]
    )


def test_a_chat_completion(tiny: pywina.Model) -> None:
    messages = [{"role": "user", "content": "the sea"}]
    tiny.chat_template = CHAT  # type: ignore[misc]
    reply = tiny.create_chat_completion(messages, **OPTIONS, logprobs=True, top_logprobs=2)
    (choice,) = reply["choices"]
    assert reply["object"] == "chat.completion"
    wanted = tiny.chat(messages, **OPTIONS, temperature=0.2)
    assert choice["message"] == {"role": "assistant", "content": wanted}
    content = choice["logprobs"]["content"]
    assert len(content) == 6 and all(len(entry["top_logprobs"]) == 2 for entry in content)
    text = b"".join(bytes(entry["bytes"]) for entry in content).decode("utf-8", "replace")
    assert text == wanted
    chunks = list(tiny.create_chat_completion(messages, **OPTIONS, stream=True))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == wanted
    assert chunks[-1]["choices"][0] == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"
    }  # fmt: skip
    with pytest.raises(pywina.UnsupportedError, match="tool_choice"):
        tiny.create_chat_completion(messages, tool_choice={"type": "function"})
    with pytest.raises(pywina.UnsupportedError, match="suffix"):
        tiny.create_completion("a", suffix="b")
    with pytest.raises(pywina.ArgumentError, match="response_format"):
        tiny.create_chat_completion(messages, response_format={"type": "xml"})
    with pytest.raises(pywina.ArgumentError, match="logit_bias"):
        tiny.create_completion("a", logit_bias={"x": 1})


def test_an_unread_stream_leaves_the_model_free(tiny: pywina.Model) -> None:
    chunks = tiny.create_completion("the sea", **OPTIONS, stream=True)
    next(chunks)
    with pytest.raises(pywina.StateError):
        tiny.create_completion("the sea", **OPTIONS)
    chunks.close()
    tiny.create_completion("the sea", **OPTIONS)


def test_grammars(smollm2_path: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed (pywina[grammar])")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    with pywina.load(smollm2_path, n_threads=1) as model:
        messages = [{"role": "user", "content": "Describe a cat as JSON."}]
        form = {"type": "json_schema", "json_schema": {"name": "cat", "schema": schema}}
        for seed in range(3):
            reply = model.create_chat_completion(
                messages, response_format=form, max_tokens=80, seed=seed, temperature=1.5
            )
            value = json.loads(reply["choices"][0]["message"]["content"])
            assert set(value) == {"name", "age"} and isinstance(value["age"], int)
            assert reply["choices"][0]["finish_reason"] == "stop"
        grammar = pywina.Grammar.from_regex(r"(yes|no), [0-9]{3}")
        for seed in range(2):
            text = model.create_completion("Is it?", grammar=grammar, seed=seed, temperature=2.0)
            assert re.fullmatch(r"(yes|no), [0-9]{3}", text["choices"][0]["text"])
        with pytest.raises(pywina.ArgumentError, match="grammar"):
            model.create_completion("Is it?", grammar="root ::= x")
    with pytest.raises(pywina.ArgumentError):
        pywina.Grammar.from_json_schema('{"type": 3').processor(model, 1)


def test_embeddings_are_the_normed_last_layer(tiny: pywina.Model) -> None:
    """Against the logits: the head's rows times the hidden state."""
    text = "the sea is far"
    ids = tiny.tokenize(text, add_special=True, parse_special=True)
    vector = tiny.embed(text, normalize=False)
    assert vector.shape == (tiny.info.n_embd,)
    name = "output.weight" if "output.weight" in tiny.tensors else "token_embd.weight"
    mean_logits = tiny.logits(ids, method="dense").mean(axis=0)
    np.testing.assert_allclose(tiny.read_tensor(name) @ vector, mean_logits, atol=0.02)
    unit = tiny.embed(ids)
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(unit, vector / np.linalg.norm(vector), atol=1e-6)


def test_a_saved_state_goes_on(tiny_model: Path, write_model: Any) -> None:
    text = "the sea is far to see"
    options: dict[str, Any] = {"max_tokens": 8, "seed": 2, "ignore_eog": True}
    with pywina.load(tiny_model, n_threads=1) as model:
        wanted = model.generate(text, **options)
        state = model.save_state()
        again = model.save_state()
        assert state == again
    with pywina.load(tiny_model, n_threads=1) as other:
        tokens = other.load_state(state)
        assert other.detokenize(tokens).endswith(wanted[:4]) or len(tokens) >= 5
        stream = other.stream(text, **options)
        assert "".join(chunk.text for chunk in stream) == wanted
        assert other.stats.n_prefill == 1
        for i in range(0, len(state), max(1, len(state) // 300)):
            bad = bytearray(state)
            bad[i] ^= 0x40
            with pytest.raises((pywina.FormatError, pywina.ContextError)):
                other.load_state(bytes(bad))
        for cut in (0, 5, 15, 16, 40, len(state) - 1):
            with pytest.raises(pywina.FormatError):
                other.load_state(state[:cut])
        assert other.generate(text, **options) == wanted
    with (
        pywina.load(write_model(n_layer=1), n_threads=1) as stranger,
        pytest.raises(pywina.FormatError, match="another model"),
    ):
        stranger.load_state(state)

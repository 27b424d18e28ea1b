"""Same seed, same tokens, however they are asked for; sparsity 0 is dense, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pywina
from pywina.server.engine import Slot

PROMPT = "Hello the world and what is in it, the one and the other of all"
OPTIONS: dict[str, Any] = {
    "max_tokens": 24, "seed": 7, "temperature": 1.3, "top_k": 0, "min_p": 0.0, "ignore_eog": True
}  # fmt: skip
SPARSITIES: list[dict[str, Any]] = [
    {},
    {"sparsity": 0.5, "method": "wina"},
    {"sparsity": 0.5, "method": "teal"},
    {"sparsity": 0.3, "sparse_prefill": True},
]
Load = Callable[..., pywina.Model]
Write = Callable[..., Path]


def _tokens(model: pywina.Model, prompt: Any = PROMPT, **options: Any) -> list[int]:
    with model.stream(prompt, **(OPTIONS | options)) as stream:
        for _ in stream:
            pass
        return stream.tokens


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=str)
@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_threads_and_batches_change_nothing(
    write_model: Write, kind: str, sparsity: dict[str, Any]
) -> None:
    types = dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), kind)
    path = write_model(types=types)
    wanted: tuple[list[int], bytes] | None = None
    for n_threads, n_batch in ((1, 128), (2, 1), (3, 3), (4, 32), (1, 5), (4, 128)):
        with pywina.load(path, n_threads=n_threads, n_batch=n_batch) as model:
            got = _tokens(model, **sparsity), model.hidden(PROMPT).tobytes()
            assert wanted is None or got == wanted, (n_threads, n_batch)
            wanted = got


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=str)
def test_every_way_to_ask_gives_the_same(tiny: pywina.Model, sparsity: dict[str, Any]) -> None:
    tokens = _tokens(tiny, **sparsity)
    text = tiny.detokenize(tokens)
    options = OPTIONS | sparsity
    assert tiny.generate(PROMPT, **options) == text
    assert "".join(chunk.text for chunk in tiny.stream(PROMPT, **options)) == text
    prompts = [PROMPT, PROMPT[:9], "else", PROMPT + " more", PROMPT]
    batch = tiny.generate_batch(prompts, **options)
    assert batch == [tiny.generate(prompt, **options) for prompt in prompts]
    assert batch[0] == batch[4] == text
    given = {k: v for k, v in OPTIONS.items() if k not in ("ignore_eog",)}
    plain = tiny.generate(PROMPT, **given, **sparsity)
    made = tiny.create_completion(PROMPT, **given, **sparsity)
    assert made["choices"][0]["text"] == plain
    parts = tiny.create_completion(PROMPT, **given, **sparsity, stream=True)
    assert "".join(part["choices"][0]["text"] for part in parts) == plain


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=str)
def test_prefix_reuse_and_saved_states_change_nothing(
    load_tiny: Load, sparsity: dict[str, Any]
) -> None:
    wanted = _tokens(load_tiny(), **sparsity)
    model = load_tiny()
    ids = model.tokenize(PROMPT)
    for before in (
        lambda: _tokens(model, ids[:5]),
        lambda: _tokens(model, ids, max_tokens=40),
        lambda: _tokens(model, ids, sparsity=0.7),
        lambda: _tokens(model, [*ids[:8], 1, 2, 3]),
        lambda: _tokens(model, ids + wanted),
        lambda: model.logits(ids, sparsity=0.9),
        lambda: model.hidden(ids),
        lambda: next(model.stream(ids, **OPTIONS)),
        lambda: model.create_completion(PROMPT, max_tokens=3, logprobs=2, echo=True),
    ):
        before()
        assert _tokens(model, ids, **sparsity) == wanted
        before()
        state = model.save_state()
        other = load_tiny()
        other.load_state(state)
        assert other.save_state() == state
        assert _tokens(other, ids, **sparsity) == wanted
        model.logits([65] * 30)
        model.load_state(state)
        assert _tokens(model, ids, **sparsity) == wanted


def test_a_switch_of_sparsity_comes_back_to_the_same(load_tiny: Load) -> None:
    """Tokens that were generated sparsely are never taken for dense ones."""
    model = load_tiny()
    wanted = _tokens(load_tiny(), PROMPT)
    stream = model.stream(PROMPT, **OPTIONS)
    for i, _ in enumerate(stream):
        stream.set_sparsity(0.8 if i < 6 else 0.0)
    again = model.tokenize(PROMPT) + stream.tokens
    assert _tokens(model, again) == _tokens(load_tiny(), again)
    assert _tokens(model, PROMPT) == wanted


def test_interleaved_slots_change_nothing(load_tiny: Load) -> None:
    model = load_tiny(n_threads=2)
    asked = [
        (prompt, seed, sparsity)
        for prompt, seed in ((PROMPT, 1), (PROMPT, 2), ("a b", 1), (PROMPT[:20], 3))
        for sparsity in (0.0, 0.5)
    ]
    wanted = [_tokens(model, p, seed=s, sparsity=x) for p, s, x in asked]
    slots = [Slot(model) for _ in asked]
    try:
        for shift in range(3):  # every request in other slots, after other requests
            order = asked[shift:] + asked[:shift]
            streams = [
                slot.model.stream(p, **(OPTIONS | {"seed": s, "sparsity": x}))
                for slot, (p, s, x) in zip(slots, order, strict=True)
            ]
            for parts in zip(*streams, strict=False):
                assert len(parts) == len(asked)
            for stream in streams:
                list(stream)
            assert [s.tokens for s in streams] == wanted[shift:] + wanted[:shift]
    finally:
        for slot in slots:
            slot.model.close()


@pytest.mark.parametrize("method", ["wina", "teal"])
@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q8_0"])
def test_sparsity_0_is_dense_bit_by_bit(write_model: Write, method: Any, kind: str) -> None:
    types = dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), kind)
    for n_threads in (1, 3):
        with pywina.load(write_model(types=types), n_threads=n_threads) as model:
            ids = model.tokenize(PROMPT)
            dense = model.logits(ids)
            for given in (
                {"sparsity": 0.0, "method": method},
                {"sparsity": pywina.Sparsity(0.0, method=method, prefill=True)},
                {"sparsity": 0.0, "method": method, "dense_prefix": 3},
                {"sparsity": 0.7, "method": method, "dense_prefix": len(ids)},
            ):
                np.testing.assert_array_equal(model.logits(ids, **given), dense, strict=True)
            rows = []
            for sparsity in (None, 0.0):
                stream = model.stream(
                    ids, **OPTIONS, logits_processors=lambda _t, x, r=rows: r.append(x.copy()) or x,
                    sparsity=sparsity, method=method,
                )  # fmt: skip
                list(stream)
            n = OPTIONS["max_tokens"]
            assert len(rows) == 2 * n
            np.testing.assert_array_equal(rows[:n], rows[n:])

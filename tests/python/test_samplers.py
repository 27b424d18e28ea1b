"""Samplers draw from the distributions that an independent numpy implementation computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pywina
from pywina._native import check, ffi, lib

Array = NDArray[np.float64]
RNG = np.random.default_rng(5)
LOGITS = np.concatenate([RNG.normal(0, 1.5, 24), [2.5, 2.5, -9.0, -30.0]]).astype(np.float32)
N = len(LOGITS)
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def draws(n: int, history: list[int], **options: Any) -> NDArray[np.int64]:
    """Tokens drawn one after the other, each from the same logits and history."""
    params, out, token = (
        ffi.new("wina_sampler_params *"),
        ffi.new("wina_sampler **"),
        ffi.new("int32_t *"),
    )
    lib.wina_sampler_params_init(params)
    alive = []
    for name, value in {**OFF, "seed": 3, **options}.items():
        if name == "dry_breakers":
            alive.append(ffi.new("int32_t[]", value))
            params.dry_breakers, params.n_dry_breakers = alive[-1], len(value)
        elif name == "logit_bias":
            alive.append(ffi.new("wina_logit_bias[]", list(value.items())))
            params.logit_bias, params.n_logit_bias = alive[-1], len(value)
        else:
            setattr(params, name, value)
    check(lib.wina_sampler_create(params, out))
    try:
        for old in history:
            check(lib.wina_sampler_accept(out[0], old))
        logits = ffi.from_buffer("float[]", LOGITS)
        result = np.empty(n, dtype=np.int64)
        for i in range(n):
            check(lib.wina_sampler_sample(out[0], logits, N, token))
            result[i] = token[0]
        return result
    finally:
        lib.wina_sampler_free(out[0])


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def keep(x: Array, index: NDArray[Any]) -> Array:
    out = np.full_like(x, -np.inf)
    out[index] = x[index]
    return out


def ranked(x: Array) -> NDArray[np.int64]:
    return np.lexsort((np.arange(len(x)), -x))


def top_p(x: Array, p: float) -> Array:
    order = ranked(x)
    sums = np.cumsum(softmax(x)[order])
    return keep(x, order[: int(np.searchsorted(sums, p - 1e-12)) + 1])


def typical(x: Array, p: float) -> Array:
    q = softmax(x)
    with np.errstate(divide="ignore"):
        surprise = -np.log(q)
    entropy = float((q[q > 0] * surprise[q > 0]).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    sums = np.cumsum(q[order])
    return keep(x, order[: int(np.searchsorted(sums, p, side="right")) + 1])


def sigma(x: Array, n: float) -> Array:
    return keep(x, np.flatnonzero(x >= x.max() - n * x.std()))


def xtc(x: Array, threshold: float) -> Array:
    order = ranked(x)
    likely = int((softmax(x)[order] >= threshold).sum())
    return keep(x, order[max(likely - 1, 0) :])


def dynatemp(x: Array, temperature: float, span: float, exponent: float) -> Array:
    q = softmax(x)
    share = -(q[q > 0] * np.log(q[q > 0])).sum() / np.log(len(x))
    low = max(0.0, temperature - span)
    return x / (low + (temperature + span - low) * share**exponent)


X = LOGITS.astype(np.float64)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, lambda: X),
        ({"temperature": 0.5}, lambda: X / 0.5),
        ({"temperature": 3.0}, lambda: X / 3),
        ({"top_k": 5}, lambda: keep(X, ranked(X)[:5])),
        ({"top_p": 0.8}, lambda: top_p(X, 0.8)),
        ({"min_p": 0.1}, lambda: keep(X, np.flatnonzero(softmax(X) >= 0.1 * softmax(X).max()))),
        ({"typical_p": 0.6}, lambda: typical(X, 0.6)),
        ({"top_n_sigma": 1.0}, lambda: sigma(X, 1.0)),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.05}, lambda: xtc(X, 0.05)),
        ({"dynatemp_range": 0.7}, lambda: dynatemp(X, 1.0, 0.7, 1.0)),
        ({"dynatemp_range": 1.5, "dynatemp_exponent": 2.0}, lambda: dynatemp(X, 1.0, 1.5, 2.0)),
        ({"top_k": 12, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.05, "temperature": 1.7},
         lambda: (lambda y: keep(y, np.flatnonzero(
             softmax(y) >= 0.05 * softmax(y).max())) / 1.7)(
             top_p(typical(keep(X, ranked(X)[:12]), 0.9), 0.9))),
        ({"logit_bias": {3: 4.0, 24: float("-inf"), 999: 5.0}},
         lambda: np.where(np.arange(N) == 24, -np.inf, X + 4.0 * (np.arange(N) == 3))),
    ],
)  # fmt: skip
def test_distribution(options: dict[str, Any], wanted: Callable[[], Array]) -> None:
    n = 30_000
    counts = np.bincount(draws(n, [], **options), minlength=N)
    p = softmax(wanted())
    assert np.all(counts[p == 0] == 0)
    error = np.abs(counts / n - p)
    assert np.all(error <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9)
    assert (
        (p > 0).sum() < N or not options or "temperature" in options or "dynatemp_range" in options
    )


def test_xtc_happens_as_often_as_asked_for() -> None:
    n = 20_000
    counts = np.bincount(draws(n, [], xtc_probability=0.3, xtc_threshold=0.05), minlength=N)
    p = 0.7 * softmax(X) + 0.3 * softmax(xtc(X, 0.05))
    assert np.all(np.abs(counts / n - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9)
    above_half = draws(200, [], xtc_probability=1.0, xtc_threshold=0.6, temperature=0.0)
    assert np.all(above_half == ranked(X)[0])


def dry_lengths(history: list[int], breakers: set[int]) -> dict[int, int]:
    """By token: the longest suffix of the history that it once followed. Quadratic, by the book."""
    limit = next((i for i, t in enumerate(reversed(history)) if t in breakers), len(history))
    found: dict[int, int] = {}
    for end in range(1, len(history)):  # history[end] followed history[:end]
        m = 0
        while m < min(end, limit) and history[end - 1 - m] == history[-1 - m]:
            m += 1
        found[history[end]] = max(found.get(history[end], 0), m)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_dry(seed: int) -> None:
    rng = np.random.default_rng(seed)
    history = rng.integers(0, 4, 60).tolist() + ([7, 1, 2, 3, 7, 1, 2] if seed % 2 else [])
    breakers = [7] if seed % 3 else []
    allowed = 1 + seed % 3
    x = X.copy()
    for token, length in dry_lengths(history, set(breakers)).items():
        if length >= allowed:
            x[token] -= 0.9 * 1.3 ** (length - allowed)
    n = 8000
    options = {"dry_multiplier": 0.9, "dry_base": 1.3, "dry_allowed_length": allowed}
    counts = np.bincount(draws(n, history, **options, dry_breakers=breakers), minlength=N)
    p = softmax(x)
    assert np.all(np.abs(counts / n - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9)
    assert breakers or not np.allclose(x, X)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_the_surprise(version: int) -> None:
    """Its mean ends near tau, for any tau that the distribution can give."""
    p = softmax(X)
    for tau in (1.5, 2.5):
        tokens = draws(6000, [], mirostat=version, mirostat_tau=tau, mirostat_eta=0.1)
        cut = {}
        for token in tokens[2000:]:
            cut[token] = cut.get(token, 0) + 1
        shares = np.array(list(cut.values())) / 4000
        surprise = float(-(shares * np.log2(shares)).sum())
        assert surprise == pytest.approx(tau, abs=0.45), (version, tau, p.max())


def test_wrong_values_are_named() -> None:
    for name, value in {
        "typical_p": 2.0, "xtc_probability": -0.1, "xtc_threshold": 1.5, "dynatemp_range": -1.0,
        "dry_multiplier": float("nan"), "dry_base": -1.0, "dry_allowed_length": 0, "mirostat": 3,
        "dry_penalty_last_n": -2, "mirostat_tau": -1.0, "top_n_sigma": float("inf"),
    }.items():  # fmt: skip
        with pytest.raises(pywina.ArgumentError, match=name):
            draws(1, [], **{name: value})
        with pytest.raises(pywina.ArgumentError, match=name):
            pywina.Params(**{name: value})
    with pytest.raises(pywina.ArgumentError, match="logit_bias"):
        pywina.Params(logit_bias={3: "x"})  # type: ignore[dict-item]
    with pytest.raises(pywina.ArgumentError, match="logits_processors"):
        pywina.Params(logits_processors=[3])  # type: ignore[list-item]


# ---- in a generation ---------------------------------------------------------------------------


def test_log_probabilities_are_those_of_the_logits(tiny: pywina.Model) -> None:
    chunks = list(tiny.stream("the sea", max_tokens=5, seed=1, logprobs=3, ignore_eog=True))
    tokens = [chunk.token for chunk in chunks if chunk.token is not None]
    prompt = tiny.tokenize("the sea", add_special=True, parse_special=True)
    logits = tiny.logits([*prompt, *tokens[:-1]], start=len(prompt) - 1).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for row, chunk, token in zip(logs, chunks, tokens, strict=False):
        assert chunk.logprob == pytest.approx(row[token], abs=1e-5)
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:3]
        assert [t for t, _ in chunk.top_logprobs] == best
        assert [v for _, v in chunk.top_logprobs] == pytest.approx(row[best].tolist(), abs=1e-5)


def test_processors_choose(tiny: pywina.Model) -> None:
    wanted, seen = [70, 71, 72, 70], []

    def force(tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(tokens.tolist())
        out = np.full_like(logits, -np.inf)
        out[wanted[len(seen) - 1]] = 0
        return out

    stream = tiny.stream("the sea", max_tokens=4, logits_processors=[force], ignore_eog=True)
    list(stream)
    assert stream.tokens == wanted
    prompt = tiny.tokenize("the sea", add_special=True, parse_special=True)
    assert seen == [prompt + wanted[:i] for i in range(4)]
    with pytest.raises(ZeroDivisionError):
        tiny.generate("the sea", logits_processors=lambda tokens, logits: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(pywina.ArgumentError, match="shape"):
        tiny.generate("the sea", logits_processors=lambda tokens, logits: logits[:2])
    assert tiny.generate("the sea", max_tokens=2, seed=1) == tiny.generate(
        "the sea", max_tokens=2, seed=1
    )


def test_aliases(tiny: pywina.Model) -> None:
    one = tiny.generate("the sea", max_new_tokens=4, do_sample=False, repetition_penalty=1.2)
    assert one == tiny.generate("the sea", max_tokens=4, temperature=0.0, repeat_penalty=1.2)
    with pytest.raises(pywina.ArgumentError, match="max_new_tokens and max_tokens"):
        tiny.generate("the sea", max_new_tokens=4, max_tokens=4)


def test_what_the_context_holds_changes_nothing(tiny_model: Any) -> None:
    """The same answers, whether the prompt's beginning was evaluated for an earlier one or not."""
    prompts = ["the sea is far", "the sea is far to see", "the sea", "a woman", "the sea is far"]
    with pywina.load(tiny_model, n_threads=1, n_batch=3) as used:
        for sparsity in (0.0, 0.5):
            for text in prompts:
                options = {"max_tokens": 6, "seed": 4, "sparsity": sparsity, "ignore_eog": True}
                with pywina.load(tiny_model, n_threads=1) as fresh:
                    wanted = list(fresh.stream(text, **options))
                got = list(used.stream(text, **options))
                assert [c.token for c in got] == [c.token for c in wanted]
                prompt = used.tokenize(text, add_special=True, parse_special=True)
                first = used.stream([*prompt, got[0].token, got[1].token], **options)
                with pywina.load(tiny_model, n_threads=1) as fresh:
                    again = fresh.stream([*prompt, got[0].token, got[1].token], **options)
                    assert [c.token for c in first] == [c.token for c in again]
        used.generate("the sea is far", max_tokens=1)
        list(used.stream("the sea is far", max_tokens=1))
        assert used.stats.n_prefill == 1  # all but the last token of the prompt was there


def test_sparsity_changes_on_the_way(tiny: pywina.Model) -> None:
    options = {"max_tokens": 12, "temperature": 0.0, "ignore_eog": True}
    dense = [c.token for c in tiny.stream("the sea", **options)]
    stream = tiny.stream("the sea", **options)
    tokens = [next(stream).token for _ in range(3)]
    stream.set_sparsity(0.6)
    tokens += [chunk.token for chunk in stream]
    assert tokens[:3] == dense[:3]
    assert tiny.stats.kept_fraction < 0.5
    assert [c.token for c in tiny.stream("the sea", **options)] == dense


def test_cancelled_from_another_thread(tiny: pywina.Model) -> None:
    import threading

    stream = tiny.stream("the sea", max_tokens=None, ignore_eog=True)
    next(stream)
    thread = threading.Thread(target=stream.cancel)
    thread.start()
    with pytest.raises(pywina.CancelledError):
        for _ in stream:
            pass
    thread.join()
    assert tiny.generate("the sea", max_tokens=1, temperature=0.0) is not None
    never = tiny.stream("the sea")
    never.cancel()
    with pytest.raises(pywina.CancelledError):
        next(never)

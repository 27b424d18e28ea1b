"""Embeddings and the log probabilities of a prompt, piece by piece: the same bits, cancelled from
another thread, and the model is free again."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pywina

Write = Callable[..., Path]
TEXT = "the sea and the land are far from here, and the sun is over them all"
SHORT: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0, "ignore_eog": True}


def scored(model: pywina.Model, prompt: Any, **options: Any) -> pywina.Stream:
    """The stream of a completion with echo and logprobs."""
    return model._make_stream(model._prompt_tokens(prompt), None, None, True, logprobs=2, **options)


@pytest.mark.parametrize("n", [1, 7, 32, 1000])
def test_pieces_of_an_embedding(tiny: pywina.Model, n: int) -> None:
    n_tokens = len(tiny._prompt_tokens(TEXT))
    with tiny.begin_embedding(TEXT) as embedding:
        left = []
        while not left or left[-1]:
            left.append(embedding.prefill(n))
        assert left == [max(n_tokens - (i + 1) * n, 0) for i in range(len(left))]
        assert embedding.prefill(1) == 0
        # finished: the model is free, and the result stays
        text = tiny.generate("the", **SHORT)
        assert np.array_equal(embedding.result(), tiny.embed(TEXT))
    assert tiny.generate("the", **SHORT) == text
    mean = tiny.hidden(TEXT).mean(axis=0, dtype=np.float64)
    raw = tiny.begin_embedding(TEXT, normalize=False).result()
    assert np.array_equal(raw, mean.astype(np.float32))


def test_an_unfinished_embedding_keeps_the_model_busy(tiny: pywina.Model) -> None:
    text, vector = tiny.generate("the", **SHORT), tiny.embed(TEXT)
    embedding = tiny.begin_embedding(TEXT)
    assert tiny.generate("the", **SHORT) == text  # nothing has begun
    embedding.prefill(3)
    for use in (lambda: tiny.generate("a"), lambda: tiny.embed("a"), lambda: tiny.logits("a")):
        with pytest.raises(pywina.StateError, match=r"unfinished.*close"):
            use()
    assert tiny.stats.n_prefill == 3
    assert np.array_equal(embedding.result(), vector)
    for end in (lambda e: e.close(), lambda e: e.__exit__(), lambda e: None):
        embedding = tiny.begin_embedding(TEXT)
        embedding.prefill(3)
        end(embedding)
        gc.disable()
        del embedding  # dropped: free at once
        gc.enable()
        assert tiny.generate("the", **SHORT) == text
    ended = tiny.begin_embedding(TEXT)
    ended.prefill(3)
    ended.close()
    with pytest.raises(pywina.StateError, match="ended"):
        ended.result()
    with pytest.raises(pywina.ContextError, match="n_ctx"):
        tiny.begin_embedding([65] * 100_000)


@pytest.mark.parametrize("n", [1, 5, 1000])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_pieces_of_a_scored_prompt(tiny: pywina.Model, n: int, sparsity: float) -> None:
    options = SHORT | {"sparsity": sparsity}
    whole = tiny.create_completion(TEXT, echo=True, logprobs=2, **options)["choices"][0]
    with scored(tiny, TEXT, **options) as stream:
        while stream.prefill(n):
            assert len(stream.prompt_logprobs) < len(stream.prompt)
        values = [value for value, _ in stream.prompt_logprobs]
        assert values == whole["logprobs"]["token_logprobs"][1 : len(stream.prompt)]
        answer = "".join(chunk.text for chunk in stream)
    assert whole["text"] == TEXT + answer == TEXT + tiny.generate(TEXT, **options)
    rows = tiny.logits(TEXT).astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    tokens = tiny._prompt_tokens(TEXT)
    wanted = [rows[i, token] for i, token in enumerate(tokens[1:])]
    assert np.allclose(values, wanted, atol=1e-5)


def test_chunks_that_nobody_reads_free_the_model(tiny: pywina.Model) -> None:
    text = tiny.generate("the", **SHORT)
    chunks = tiny.create_completion(TEXT, echo=True, logprobs=2, stream=True, **SHORT)
    assert next(chunks)["choices"][0]["text"] == TEXT
    with pytest.raises(pywina.StateError):
        tiny.generate("the", **SHORT)
    chunks.close()
    assert tiny.generate("the", **SHORT) == text


@pytest.mark.parametrize("kind", ["embedding", "scored prompt"])
def test_cancel_from_another_thread(write_model: Write, kind: str) -> None:
    """In mid-piece, in between, and before the first one; the next one is whole again."""
    prompt = [65 + i % 20 for i in range(15_000)]
    with pywina.load(write_model(n_ctx=100_000), n_ctx=20_000, n_threads=1) as model:
        text, vector = model.generate("the", **SHORT), model.embed("the sea")

        def make() -> Any:
            return (
                model.begin_embedding(prompt)
                if kind == "embedding"
                else scored(model, prompt, **SHORT)
            )

        for delay in (None, 0.0, 0.01, 0.2):
            task, errors = make(), []
            begun = threading.Event()
            if delay is None:
                task.cancel()

            def use(task: Any = task, begun: Any = begun, errors: Any = errors) -> None:
                try:
                    task.prefill(1)
                    begun.set()
                    while task.prefill(20_000):
                        pass
                except BaseException as raised:
                    errors.append(raised)
                    begun.set()

            thread = threading.Thread(target=use)
            thread.start()
            begun.wait()
            time.sleep(delay or 0)
            started = time.perf_counter()
            task.cancel()
            thread.join(20)
            assert time.perf_counter() - started < 2
            assert [type(e) for e in errors] == [pywina.CancelledError]
            assert model.generate("the", **SHORT) == text
            assert np.array_equal(model.embed("the sea"), vector)
            task.cancel()  # too late: hits nobody
            assert model.generate("the", **SHORT) == text

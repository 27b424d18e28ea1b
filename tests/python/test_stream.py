"""Generation piece by piece: texts, stop strings, reasons to finish, seeds, interruption."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pywina

PROMPT = "Hello the world and"
Load = Callable[..., pywina.Model]
Write = Callable[..., Path]


def read(model: pywina.Model, prompt: str = PROMPT, **options: object) -> list[pywina.Chunk]:
    return list(model.stream(prompt, **options))


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_together_are_the_text(tiny: pywina.Model, seed: int) -> None:
    options = {"max_tokens": 60, "seed": seed, "temperature": 1.5, "min_p": 0.0, "top_k": 0}
    with tiny.stream(PROMPT, ignore_eog=True, **options) as stream:
        chunks = list(stream)
        text = "".join(chunk.text for chunk in chunks)
        assert text == tiny.generate(PROMPT, ignore_eog=True, **options)
        tokens = [chunk.token for chunk in chunks if chunk.token is not None]
        assert tokens == stream.tokens and len(tokens) == 60
        assert text == tiny.detokenize(tokens)  # random bytes: mostly invalid UTF-8


def test_the_last_piece_has_reason_and_timings(tiny: pywina.Model) -> None:
    *first, last = read(tiny, max_tokens=10, temperature=0.0, ignore_eog=True, sparsity=0.5)
    assert all(chunk.finish_reason is None and chunk.timings is None for chunk in first)
    assert last.finish_reason == "length"
    timings = last.timings
    assert timings.tokens == 10
    assert timings.prompt_tokens == len(tiny.tokenize(PROMPT))
    assert timings.kept_fraction == pytest.approx(0.5, abs=0.02)
    assert timings.decode_tok_s > 0 and timings.prefill_tok_s > 0
    assert 0 < timings.prefill_s + timings.decode_s <= timings.total_s
    assert timings.load_s == tiny.load_s


def test_greedy_takes_the_largest_logit(tiny: pywina.Model) -> None:
    prompt = tiny.tokenize(PROMPT)
    chunks = list(tiny.stream(prompt, max_tokens=12, temperature=0.0, ignore_eog=True))
    tokens = [chunk.token for chunk in chunks if chunk.token is not None]
    logits = tiny.logits(prompt + tokens[:-1])[len(prompt) - 1 :]
    np.testing.assert_array_equal(logits.argmax(axis=1), tokens)


def test_sparse_decode_is_what_the_sparse_logits_say(tiny: pywina.Model) -> None:
    prompt = tiny.tokenize(PROMPT)
    options = {"sparsity": 0.5, "method": "wina"}
    chunks = list(tiny.stream(prompt, max_tokens=12, temperature=0.0, ignore_eog=True, **options))
    tokens = [chunk.token for chunk in chunks if chunk.token is not None]
    logits = tiny.logits(prompt + tokens[:-1], dense_prefix=len(prompt), **options)
    np.testing.assert_array_equal(logits[len(prompt) - 1 :].argmax(axis=1), tokens)


def test_seeds(tiny: pywina.Model) -> None:
    def text(seed: int | None) -> str:
        return tiny.generate(PROMPT, max_tokens=24, temperature=1.0, seed=seed, ignore_eog=True)

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(8)}) == 8
    assert len({text(None) for _ in range(8)}) == 8
    assert text(2**63 - 1) == text(2**63 - 1)


def test_calls_do_not_see_one_another(tiny: pywina.Model) -> None:
    options = {"max_tokens": 16, "temperature": 0.0}
    first = tiny.generate(PROMPT, **options)
    tiny.generate("something else", **options)
    tiny.logits("and more", sparsity=0.9)
    assert tiny.generate(PROMPT, **options) == first


def test_temperature_zero_ignores_the_seed(tiny: pywina.Model) -> None:
    assert len({tiny.generate(PROMPT, max_tokens=9, temperature=0, seed=s) for s in range(3)}) == 1
    assert len({tiny.generate(PROMPT, max_tokens=9, top_k=1, seed=s) for s in range(3)}) == 1


def test_penalties_change_the_text(tiny: pywina.Model) -> None:
    options = {"max_tokens": 40, "temperature": 0.0, "ignore_eog": True}
    plain = read(tiny, **options)
    for penalty in (
        {"repeat_penalty": 5.0, "repeat_last_n": -1},
        {"presence_penalty": 20.0, "repeat_last_n": -1},
        {"frequency_penalty": 20.0, "repeat_last_n": -1},
    ):
        tokens = [c.token for c in read(tiny, **options, **penalty) if c.token is not None]
        assert tokens != [c.token for c in plain if c.token is not None]
        if "presence_penalty" in penalty:
            assert len(set(tokens)) == len(tokens)  # nothing comes twice


# ---- reasons to finish ------------------------------------------------------------------------


def test_stop_strings_end_the_text(tiny: pywina.Model) -> None:
    options = {"max_tokens": 60, "temperature": 0.9, "seed": 11, "ignore_eog": True}
    text = tiny.generate(PROMPT, **options)
    assert len(text) > 12
    for start, end in ((5, 6), (5, 9), (8, 12), (0, 2)):
        stop = text[start:end]
        expected = text[: text.index(stop)]
        for stops in (stop, [stop], ["never \u2603 there", stop]):
            chunks = read(tiny, stop=stops, **options)
            assert "".join(c.text for c in chunks) == expected
            assert chunks[-1].finish_reason == "stop"
            assert tiny.generate(PROMPT, stop=stops, **options) == expected


def test_stop_strings_that_do_not_occur_lose_nothing(tiny: pywina.Model) -> None:
    options = {"max_tokens": 40, "seed": 3, "ignore_eog": True}
    text = tiny.generate(PROMPT, **options)
    # Ends like the text does, and goes on: held back to the end, then given out.
    assert tiny.generate(PROMPT, stop=text[-3:] + "more", **options) == text


def test_the_end_token_ends_the_text(tiny: pywina.Model) -> None:
    end = tiny.info.eos_token
    for seed in range(200):
        chunks = read(tiny, max_tokens=200, temperature=1.5, min_p=0, top_k=0, top_p=1, seed=seed)
        if chunks[-1].finish_reason == "eog":
            break
    assert chunks[-1].finish_reason == "eog"
    assert tiny.is_eog(chunks[-1].token)
    assert end not in [chunk.token for chunk in chunks[:-1]]
    assert "<|im_end|>" not in "".join(chunk.text for chunk in chunks)


def test_special_shows_control_tokens(tiny: pywina.Model) -> None:
    options = {"max_tokens": 400, "temperature": 2.0, "min_p": 0, "top_k": 0, "top_p": 1}
    for seed in range(20):
        chunks = read(tiny, seed=seed, ignore_eog=True, special=True, **options)
        tokens = [chunk.token for chunk in chunks if chunk.token is not None]
        text = "".join(chunk.text for chunk in chunks)
        assert text == tiny.detokenize(tokens, special=True)
        if "<|" in text:
            return
    pytest.fail("no control token came in 8000 random tokens")


def test_a_full_context_ends_the_text(load_tiny: Load) -> None:
    model = load_tiny(n_ctx=32)
    n_prompt = len(model.tokenize(PROMPT))
    chunks = read(model, max_tokens=None, ignore_eog=True)
    assert chunks[-1].finish_reason == "context"
    n_tokens = chunks[-1].timings.tokens
    assert 32 - n_prompt <= n_tokens <= 32 - n_prompt + 1
    assert model.generate(PROMPT, max_tokens=4, temperature=0.0) == load_tiny().generate(
        PROMPT, max_tokens=4, temperature=0.0
    )


def test_a_prompt_may_fill_the_context(load_tiny: Load) -> None:
    model = load_tiny(n_ctx=8)
    chunks = list(model.stream([65] * 8, max_tokens=5, ignore_eog=True))
    assert chunks[-1].finish_reason == "context"
    with pytest.raises(pywina.ContextError, match="n_ctx"):
        model.generate([65] * 9)
    assert model.logits([65] * 8).shape[0] == 8


# ---- life of a stream -------------------------------------------------------------------------


def test_an_open_stream_keeps_the_model_busy(tiny: pywina.Model) -> None:
    stream = tiny.stream(PROMPT, max_tokens=50, ignore_eog=True)
    tiny.generate("not started yet", max_tokens=2)
    next(stream)
    for use in (
        lambda: tiny.generate("a"),
        lambda: tiny.logits("a"),
        lambda: next(tiny.stream("a")),
    ):
        with pytest.raises(pywina.StateError, match=r"unfinished.*close"):
            use()
    assert tiny.tokenize("still works")
    assert tiny.stats.n_prefill > 0
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    tiny.generate("a", max_tokens=2)


def test_dropping_a_stream_frees_the_model(tiny: pywina.Model) -> None:
    for chunk in tiny.stream(PROMPT, ignore_eog=True):
        assert chunk.finish_reason is None
        break
    del chunk
    tiny.generate("a", max_tokens=2)
    with tiny.stream(PROMPT) as stream:
        next(stream)
    tiny.generate("a", max_tokens=2)
    with pytest.raises(pywina.StateError, match="ended"), stream:
        pass


def test_nothing_runs_before_the_first_piece(tiny: pywina.Model) -> None:
    streams = [tiny.stream(PROMPT, max_tokens=3, temperature=0.0) for _ in range(3)]
    texts = ["".join(chunk.text for chunk in stream) for stream in streams]
    assert len(set(texts)) == 1


INTERRUPT = """
import os, signal, sys, threading, time
import pywina

def interrupted(call, after):
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.perf_counter()
    try:
        call()
    except KeyboardInterrupt:
        return time.perf_counter() - started - after
    sys.exit("the call ended before the interrupt")

model = pywina.load(sys.argv[1], n_ctx=100_000, n_threads=2)
before = model.generate("the", max_tokens=8, temperature=0.0)
options = dict(max_tokens=None, ignore_eog=True)
prompt = [65] * 90_000
late = [
    interrupted(lambda: model.generate("the", **options), 0.3),
    interrupted(lambda: list(model.stream("the", **options)), 0.3),
    interrupted(lambda: model.generate(prompt, max_tokens=1), 0.3),
    interrupted(lambda: model.logits(prompt, start=89_999), 0.3),
]
assert model.generate("the", max_tokens=8, temperature=0.0) == before
print(max(late))
"""


def test_an_interrupt_stops_at_once_and_leaves_the_model_usable(write_model: Write) -> None:
    path = write_model(n_ctx=100_000)
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPT, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 2


def test_the_lock_of_python_is_free_during_native_calls(write_model: Write) -> None:
    script = """
import sys, threading, time
import pywina
model = pywina.load(sys.argv[1], n_ctx=100_000, n_threads=1, n_batch=4096)
done, ticks = threading.Event(), []
def tick():
    while not done.is_set():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
thread = threading.Thread(target=tick)
thread.start()
started = time.perf_counter()
model.logits([65] * 4096, start=4095)
took = time.perf_counter() - started
done.set()
thread.join()
print(took, sum(t > started for t in ticks))
"""
    path = write_model(n_ctx=100_000)
    output = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    ).stdout
    took, n_ticks = map(float, output.split())
    assert n_ticks > took * 100  # a held lock would allow a handful


def test_leaving_with_an_open_stream_is_quiet(tiny_model: Path) -> None:
    script = "import sys, pywina; m = pywina.load(sys.argv[1]); s = m.stream('a'); next(s)"
    result = subprocess.run(
        [sys.executable, "-c", script, str(tiny_model)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDEVMODE": "1"},
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")

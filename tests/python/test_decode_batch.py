"""Several sessions in one step: to the bit what each of them computes alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodel import ROLES

import pywina
from pywina._native import check, ffi, lib
from pywina.generation import decode_together

Row = np.ndarray[Any, np.dtype[np.float32]]
#: settings that differ in how many lists of kept inputs a group has, and in what they come from
KINDS: list[dict[str, Any]] = [
    {},
    {"sparsity": 0.5},
    {"sparsity": 0.7, "mask": "projection"},
    {"sparsity": 0.3, "method": "teal"},
    {"sparsity": 0.2, "method": "cats"},
    {"sparsity": 0.9},
]


class Session:
    def __init__(self, model: pywina.Model, n_ctx: int = 256, n_batch: int = 32, **kind: Any):
        params, out = ffi.new("wina_session_params *"), ffi.new("wina_session **")
        lib.wina_session_params_init(params)
        params.n_ctx, params.n_batch, params.n_threads = n_ctx, n_batch, model.info.n_threads
        pywina.Sparsity(**kind)._store(params.sparsity)
        with model._handle.borrow() as native:
            check(lib.wina_session_create(native, params, out))
        self.native, self.n_vocab = out[0], model.info.n_vocab

    def prefill(self, tokens: list[int]) -> None:
        check(lib.wina_session_prefill(self.native, tokens, len(tokens)))

    def decode(self, token: int) -> None:
        check(lib.wina_session_decode(self.native, token))

    def free(self) -> None:
        native, self.native = self.native, ffi.NULL
        lib.wina_session_free(native)

    def state(self) -> tuple[Any, ...]:
        stats = ffi.new("wina_stats *")
        check(lib.wina_session_get_stats(self.native, stats))
        logits = ffi.buffer(lib.wina_session_logits(self.native), 4 * self.n_vocab)[:]
        return (
            lib.wina_session_n_past(self.native), stats.n_decode, stats.sparse_read,
            stats.sparse_total, stats.bytes_per_token, logits,
        )  # fmt: skip


def decode_batch(sessions: list[Session], tokens: list[int]) -> list[int]:
    statuses = ffi.new("int32_t[]", len(sessions))
    status = lib.wina_session_decode_batch(
        [session.native for session in sessions], tokens, len(sessions), statuses
    )
    assert status == next((found for found in statuses if found), lib.WINA_OK)
    return list(statuses)


@pytest.fixture
def make_session() -> Iterator[Callable[..., Session]]:
    with ExitStack() as opened:

        def make(*args: Any, **options: Any) -> Session:
            session = Session(*args, **options)
            opened.callback(session.free)
            return session

        yield make


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def on_cpu(tiny_model: Path, request: pytest.FixtureRequest) -> Iterator[pywina.Model]:
    with pywina.load(tiny_model, n_threads=request.param, backend="cpu") as model:
        yield model


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 33])
def test_members_get_what_they_get_alone(
    on_cpu: pywina.Model, make_session: Callable[..., Session], n: int
) -> None:
    """Contexts, positions and settings differ; with 17 members the first holds 16 a step."""
    choose = random.Random(n)
    together, alone = [], []
    for i in range(n):
        kind = choose.choice(KINDS)
        prompt = [choose.randrange(on_cpu.info.n_vocab) for _ in range(choose.randrange(1, 90))]
        for sessions in (together, alone):
            n_batch = 16 if n == 17 else 40
            session = make_session(on_cpu, n_ctx=128 + 8 * i % 64, n_batch=n_batch, **kind)
            session.prefill(prompt)
            sessions.append(session)
    for _ in range(4):
        tokens = [choose.randrange(on_cpu.info.n_vocab) for _ in range(n)]
        assert decode_batch(together, tokens) == [lib.WINA_OK] * n
        for one, token in zip(alone, tokens, strict=True):
            one.decode(token)
        assert [s.state() for s in together] == [s.state() for s in alone]


#: matrices of integers, of several parts; biases; separate types in one group
MODELS: list[dict[str, Any]] = [
    {"types": dict.fromkeys(ROLES, "Q4_0")},
    {"architecture": "qwen2", "types": dict.fromkeys(ROLES, "Q8_0")},
    {"n_embd": 256, "n_ff": 512, "types": dict.fromkeys(ROLES, "Q6_K") | {"v": "Q4_K"}},
]


@pytest.mark.parametrize("spec", MODELS, ids=range(3))
def test_other_models(
    write_model: Callable[..., Path], make_session: Callable[..., Session], spec: dict[str, Any]
) -> None:
    path = write_model(**spec)
    with pywina.load(path, n_threads=2, backend="cpu") as model:
        kinds = [{}, {"sparsity": 0.5}, {"sparsity": 0.5, "mask": "projection"}, {}]
        together = [make_session(model, **kind) for kind in kinds]
        alone = [make_session(model, **kind) for kind in kinds]
        for i, (one, two) in enumerate(zip(together, alone, strict=True)):
            one.prefill([1, 2, 3 + i] * (i + 1))
            two.prefill([1, 2, 3 + i] * (i + 1))
        for token in range(5, 9):
            decode_batch(together, [token] * 4)
            for two in alone:
                two.decode(token)
            assert [s.state() for s in together] == [s.state() for s in alone]


def test_a_member_that_fails_is_as_before(
    tiny: pywina.Model, make_session: Callable[..., Session]
) -> None:
    sessions = [make_session(tiny, n_ctx=n_ctx) for n_ctx in (64, 8, 64)]
    alone = make_session(tiny, n_ctx=64)
    for session in (*sessions, alone):
        session.prefill([1, 2, 3, 4, 5, 6, 7, 8])
    before = sessions[1].state(), sessions[2].state()
    wrong = tiny.info.n_vocab
    statuses = decode_batch(sessions, [9, 9, wrong])
    assert statuses == [lib.WINA_OK, lib.WINA_E_CONTEXT, lib.WINA_E_ARGUMENT]
    alone.decode(9)
    assert sessions[0].state() == alone.state()
    assert (sessions[1].state(), sessions[2].state()) == before


def test_what_is_no_batch(tiny: pywina.Model, make_session: Callable[..., Session]) -> None:
    one, two = make_session(tiny), make_session(tiny)
    one.prefill([1])
    before = one.state()
    with pywina.load(tiny.path) as other:
        foreign = make_session(other)
        for sessions in ([one, one], [one, two, one], [one, foreign], []):
            natives, statuses = [s.native for s in sessions], ffi.new("int32_t[3]")
            tokens = [1] * len(sessions)
            status = lib.wina_session_decode_batch(natives, tokens, len(sessions), statuses)
            assert status == lib.WINA_E_ARGUMENT
        assert one.state() == before
        foreign.free()


# ---- streams -------------------------------------------------------------------------------------


def _texts(streams: list[pywina.Stream], together: bool, change: int = -1) -> list[list[Any]]:
    """The pieces of all streams; after `change` rounds every second one becomes sparser."""
    seen: list[list[Any]] = [[] for _ in streams]
    left = list(range(len(streams)))
    for step in range(100):
        if step == change:
            for i in left[::2]:
                streams[i].set_sparsity(0.75)
        if together:
            decode_together([streams[i] for i in left])
        for i in list(left):
            chunk = next(streams[i])
            seen[i].append((chunk.text, chunk.token, chunk.finish_reason, chunk.logprob))
            if chunk.timings:
                seen[i].append((chunk.timings.tokens, chunk.timings.kept_fraction))
            if chunk.finish_reason:
                left.remove(i)
        if not left:
            return seen
    raise AssertionError("streams without an end")


@pytest.mark.parametrize("change", [-1, 5])
def test_streams_together(tiny: pywina.Model, change: int) -> None:
    with ExitStack() as opened:
        models = [opened.enter_context(tiny.share()) for _ in range(5)]

        def start() -> list[pywina.Stream]:
            return [
                model.stream(
                    "the sea " * (i + 1), seed=i, max_tokens=8 + 4 * i, logprobs=1,
                    sparsity=0.2 * (i % 3), stop=["e"] if i == 3 else None, ignore_eog=True,
                )
                for i, model in enumerate(models)
            ]  # fmt: skip

        assert _texts(start(), True, change) == _texts(start(), False, change)


def test_a_prompt_in_pieces(tiny: pywina.Model) -> None:
    with tiny.share() as other:
        wanted = other.generate([5] * 300, max_tokens=6, seed=1)
    with tiny.stream([5] * 300, max_tokens=6, seed=1) as stream:
        assert stream.prefill(7) == 300 - 7
        assert stream.prefill(10_000) == 300 - 7 - 128, "one batch at a time"
        assert stream.prefill(128) == 300 - 7 - 256
        text = "".join(chunk.text for chunk in stream)
    assert text == wanted
    assert stream.prefill(1) == 0, "it has ended"
    with tiny.stream([6] * 300) as stream:
        stream.prefill(1)
        stream.cancel()
        with pytest.raises(pywina.CancelledError):
            stream.prefill(1)


def test_cancelled_streams_do_not_hold_up_others(tiny: pywina.Model) -> None:
    with tiny.share() as second:
        wanted = tiny.generate("the sea", max_tokens=10, seed=1, ignore_eog=True)
        one = tiny.stream("the sea", max_tokens=10, seed=1, ignore_eog=True)
        two = second.stream("the land", max_tokens=10, seed=2, ignore_eog=True)
        texts = [next(one).text]
        next(two)
        two.cancel()
        for _ in range(9):
            decode_together([one, two])
            texts.append(next(one).text)
        with pytest.raises(pywina.CancelledError):
            next(two)
        assert "".join(texts) == wanted


def test_a_failing_processor_ends_its_own_stream_only(tiny: pywina.Model) -> None:
    def fail(tokens: Any, logits: Row) -> Row:
        if len(tokens) > 6:
            raise ValueError("enough")
        return logits

    with tiny.share() as second:
        one = tiny.stream([1, 2, 3], max_tokens=12, seed=1, ignore_eog=True)
        two = second.stream([1, 2, 3], max_tokens=12, seed=1, logits_processors=fail)
        failed = False
        for _ in range(12):
            decode_together([one, two])
            next(one)
            if not failed:
                try:
                    next(two)
                except ValueError:
                    failed = True
        assert failed and one.finish_reason == "length"
        assert second.generate("the sea", max_tokens=4)

"""Keys and values: their types, and layers that keep only their window. Whatever a cache holds, and
however it came to hold it, the results are those of a context that was evaluated from its start."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinycheckpoint import write_checkpoint

import pywina
from pywina._native import check, ffi, lib
from pywina.cli import main

TYPES = ("f16", "q8_0", "f32")
#: windows of 12: all layers, every other one, five of six
WINDOWED = ("mistral", "gemma2", "gemma3", "phi3-window")
IDS = [int(t) for t in np.random.default_rng(5).integers(0, 250, 150)]
OPTIONS: dict[str, Any] = {"max_tokens": 20, "seed": 3, "temperature": 1.2, "ignore_eog": True}


@pytest.fixture(scope="module", params=WINDOWED)
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windowed")
    source = write_checkpoint(folder / "checkpoint", request.param)
    target = folder / "model.gguf"
    assert main(["convert", str(source), str(target), "--type", "F32"]) == 0
    return target


@pytest.fixture(params=TYPES)
def cache(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"cache_type_k": request.param, "cache_type_v": request.param}


@pytest.fixture
def load(tiny_model: Path) -> Iterator[Callable[..., pywina.Model]]:
    models: list[pywina.Model] = []

    def load(path: Path | None = None, **options: Any) -> pywina.Model:
        models.append(pywina.load(path or tiny_model, **({"n_ctx": 256, "n_threads": 1} | options)))
        return models[-1]

    yield load
    for model in models:
        model.close()


Load = Callable[..., pywina.Model]


def _tokens(model: pywina.Model, prompt: list[int], **options: Any) -> list[int]:
    with model.stream(prompt, **(OPTIONS | options)) as stream:
        for _ in stream:
            pass
        return stream.tokens


def _same(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_a_ring_is_as_good_as_a_whole_cache(
    load: Load, windowed: Path, cache: dict[str, str]
) -> None:
    """With batches of 256 every layer keeps the whole context, with batches of 1 it is 13 rows."""
    whole, ring = load(windowed, n_batch=256, **cache), load(windowed, n_batch=1, **cache)
    assert ring.plan_memory().cache_bytes < whole.plan_memory().cache_bytes
    for sparsity in (0.0, 0.5):
        wanted = whole.logits(IDS, sparsity=sparsity, dense_prefix=5)
        _same(ring.logits(IDS, sparsity=sparsity, dense_prefix=5), wanted)
        _same(load(windowed, n_batch=7, **cache).logits(IDS, sparsity=sparsity, dense_prefix=5),
              wanted)  # fmt: skip
    assert _tokens(ring, IDS) == _tokens(whole, IDS)


def test_prompts_that_begin_alike(load: Load, windowed: Path, cache: dict[str, str]) -> None:
    """What the window has forgotten is evaluated again, what it has not is used."""
    model = load(windowed, n_batch=4, **cache)
    for prompt in (
        IDS, IDS[:-1], IDS[:-3], [*IDS[:-3], 1, 2], IDS[:60], [*IDS[:59], 7, 8], IDS, IDS[:10],
        [*IDS[:10], *IDS[:100]],
    ):  # fmt: skip
        assert _tokens(model, prompt) == _tokens(load(windowed, **cache), prompt)


def test_what_can_be_kept(load: Load, windowed: Path) -> None:
    """11 + 2 * 4 rows: from 150 tokens the session can go back by 8, or to the start."""
    model = load(windowed, n_batch=4)
    model.logits(IDS)
    with model._handle.run() as session:
        kept = [n for n in range(151) if lib.wina_session_n_keepable(session, n) == n]
        assert kept == [0, *range(142, 151)]
        assert {lib.wina_session_n_keepable(session, n) for n in range(142)} == {0}
        with pytest.raises(pywina.StateError, match=r"back to 141 tokens of 150.*window of 12"):
            check(lib.wina_session_truncate(session, 141))
        assert lib.wina_session_n_past(session) == 150
        check(lib.wina_session_truncate(session, 142))
        check(lib.wina_session_truncate(session, 0))
    steps = pywina.Llama(str(windowed), n_ctx=256, n_batch=4, logits_all=True)
    steps.eval(IDS)
    steps.n_tokens = 40
    steps.eval(IDS[40:44])
    wanted = load(windowed).logits(IDS[:44])
    _same(steps.scores[-1], wanted[-1])
    steps.close()


def test_a_model_without_windows_goes_back_anywhere(load: Load) -> None:
    model = load(n_batch=2)
    model.logits(IDS)
    with model._handle.run() as session:
        assert all(lib.wina_session_n_keepable(session, n) == n for n in range(151))


def test_a_cancelled_evaluation(load: Load, windowed: Path) -> None:
    """Several batches in one call may push the window out: the session is then empty."""
    model = load(windowed, n_batch=4)
    wanted = load(windowed).logits(IDS)[-1]
    for n_more, n_left in ((8, 100), (50, 0)):
        with model._handle.run() as session:
            model._begin(session, pywina.Sparsity())
            call, first = ffi.new("wina_eval *"), ffi.new("int32_t[]", IDS[:100])
            call.tokens, call.n_tokens, call.n_dense = first, 100, -1
            check(lib.wina_session_eval(session, call))
            seen = []

            def stop(
                layer: int, group: int, *_: Any, session: Any = session, seen: Any = seen,
                last: int = n_more // 4,
            ) -> None:  # fmt: skip
                seen.extend([1] if layer == group == 0 else [])
                if len(seen) == last:
                    lib.wina_session_cancel(session)

            callback = ffi.callback("wina_tap_fn", stop)
            check(lib.wina_session_set_tap(session, callback, ffi.NULL))
            more = ffi.new("int32_t[]", IDS[100:])
            call.tokens, call.n_tokens = more, 50
            with pytest.raises(pywina.CancelledError):
                check(lib.wina_session_eval(session, call))
            check(lib.wina_session_set_tap(session, ffi.NULL, ffi.NULL))
            n_past = lib.wina_session_n_past(session)
            assert n_past == n_left
            rest = ffi.new("int32_t[]", IDS[n_past:])
            call.tokens, call.n_tokens = rest, 150 - n_past
            check(lib.wina_session_eval(session, call))
            row = ffi.buffer(lib.wina_session_logits(session), 4 * model.info.n_vocab)
            _same(np.frombuffer(row, np.float32), wanted)


@pytest.mark.parametrize("batches", [(4, 64), (64, 4), (4, 4)])
def test_states_of_windows(
    load: Load, windowed: Path, cache: dict[str, str], batches: tuple[int, int]
) -> None:
    """Between sessions that keep more, or less."""
    source, target = (load(windowed, n_batch=n, **cache) for n in batches)
    wanted = _tokens(source, IDS)
    source.generate(IDS, max_tokens=1)
    state = source.save_state()
    for prompt in (IDS, [*IDS, 5, 6], IDS[:50]):
        assert target.load_state(state)[: len(IDS)] == IDS
        if batches[0] == batches[1]:
            assert target.save_state() == state
        assert _tokens(target, prompt) == _tokens(load(windowed, **cache), prompt)
    assert _tokens(target, IDS) == wanted


def test_prefixes_and_states_of_every_type(load: Load, cache: dict[str, str]) -> None:
    wanted = _tokens(load(**cache), IDS)
    model = load(**cache)
    for before in (IDS[:40], [*IDS[:90], 3], IDS + wanted):
        model.generate(before, max_tokens=3)
        assert _tokens(model, IDS) == wanted
    state = model.save_state()
    other = load(**cache)
    other.load_state(state)
    assert other.save_state() == state
    assert _tokens(other, IDS) == wanted
    damaged = bytearray(state)
    damaged[-40] ^= 4
    with pytest.raises(pywina.FormatError, match="damaged"):
        other.load_state(bytes(damaged))
    for kind in TYPES:
        if kind != cache["cache_type_k"]:
            with pytest.raises(pywina.FormatError, match="types that are not the session's"):
                load(cache_type_k=kind, cache_type_v=kind).load_state(state)


def test_types_may_be_mixed(load: Load) -> None:
    rows = {(k, v): load(cache_type_k=k, cache_type_v=v).logits(IDS) for k in TYPES for v in TYPES}
    exact = rows["f32", "f32"]
    errors = {kinds: float(np.abs(ours - exact).max()) for kinds, ours in rows.items()}
    assert errors["f16", "f16"] < errors["q8_0", "f16"]
    assert errors["f16", "f16"] < errors["f16", "q8_0"]
    assert len(set(errors.values())) == 9


def test_sizes(load: Load) -> None:
    sizes = {
        kind: load(cache_type_k=kind, cache_type_v=kind).plan_memory().cache_bytes for kind in TYPES
    }
    info = load().info
    assert sizes["f16"] == 256 * info.kv_bytes_per_token
    assert sizes["f32"] == 2 * sizes["f16"]
    width = info.head_dim
    assert sizes["q8_0"] * 2 * width == sizes["f16"] * 34 * -(-width // 32)
    mixed = load(cache_type_k="q8_0").plan_memory().cache_bytes
    assert 2 * mixed == sizes["f16"] + sizes["q8_0"]
    model = load(cache_type_k="q8_0")
    assert (model.info.cache_type_k, model.info.cache_type_v) == ("q8_0", "f16")
    with model.share() as other:
        assert other.info.cache_type_k == "q8_0"
        assert other.plan_memory() == model.plan_memory()


def test_llama_has_the_types_by_number(tiny_model: Path, load: Load) -> None:
    llm = pywina.Llama(str(tiny_model), n_ctx=256, type_k=8, type_v=0, logits_all=True)
    assert (llm.model.info.cache_type_k, llm.model.info.cache_type_v) == ("q8_0", "f32")
    llm.eval(IDS)
    _same(llm.scores[-1], load(cache_type_k="q8_0", cache_type_v="f32").logits(IDS)[-1])
    llm.close()
    with pytest.raises(pywina.UnsupportedError, match=r"type_k=2 .*8 \(q8_0\)"):
        pywina.Llama(str(tiny_model), type_k=2)


def test_wrong_types_are_named(tiny_model: Path, wina_bin: Path) -> None:
    with pytest.raises(pywina.ArgumentError, match=r"cache_type_v is 'q4_0'.*f16, q8_0, f32"):
        pywina.load(tiny_model, cache_type_v="q4_0")
    done = subprocess.run(
        [wina_bin, "run", "-m", tiny_model, "-p", "a", "-ctk", "q4_0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "--cache-type-k" in done.stderr and "q8_0" in done.stderr


def test_the_programs_have_the_options(
    tiny_model: Path,
    wina_bin: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = "bench -p 0 -n 4 -d 60 -r 1 -t 1 --json -m".split()
    rows = {}
    for kind in TYPES:
        done = subprocess.run(
            [wina_bin, *plain, tiny_model, "-ctk", kind, "--cache-type-v", kind],
            capture_output=True, check=True,
        )  # fmt: skip
        (row,) = json.loads(done.stdout)
        assert row["cache_type_k"] == row["cache_type_v"] == kind
        rows[kind] = row["logits_hash"]
    assert len(set(rows.values())) == 3
    assert main(["inspect", str(tiny_model), "--json", "-ctk", "q8_0", "-ctv", "f32"]) == 0
    info = json.loads(capsys.readouterr().out)["info"]
    assert (info["cache_type_k"], info["cache_type_v"]) == ("q8_0", "f32")
    monkeypatch.setenv("PYWINA_CACHE_TYPE_K", "f32")
    monkeypatch.setenv("PYWINA_CACHE_TYPE_V", "q8_0")
    assert main(["inspect", str(tiny_model), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)["info"]
    assert (info["cache_type_k"], info["cache_type_v"]) == ("f32", "q8_0")

"""Models: facts, tokens, logits, sparsity, and their life from load to close."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tinymodel import IM_END, TOOL, vocabulary

import pywina

TEXT = "Hello the world and the other world, is it there? Grüße! 你好 🌍"
Load = Callable[..., pywina.Model]
Write = Callable[..., Path]


# ---- facts ------------------------------------------------------------------------------------


def test_info(tiny: pywina.Model, tiny_model: Path) -> None:
    info = tiny.info
    assert (info.architecture, info.name) == ("llama", "tiny llama")
    assert (info.n_embd, info.n_layer, info.n_ff) == (64, 2, 128)
    assert (info.n_head, info.n_head_kv, info.head_dim) == (4, 2, 16)
    assert info.n_vocab == len(vocabulary()[0])
    assert info.eos_token == vocabulary()[0].index(IM_END)
    assert info.n_ctx == info.n_ctx_train == 512
    assert info.tied_output and not info.add_bos
    assert info.file_bytes == tiny_model.stat().st_size
    assert info.n_params == sum(np.prod(t.shape) for t in tiny.tensors.values())
    assert info.weight_bytes >= info.sparse_bytes > 0
    assert tiny.load_s > 0


def test_metadata_and_tensors_are_those_of_the_file(tiny: pywina.Model, tiny_model: Path) -> None:
    reader = gguf.GGUFReader(tiny_model)
    keys = [name for name in reader.fields if not name.startswith("GGUF.")]
    assert list(tiny.metadata) == keys
    assert tiny.metadata["general.name"] == "tiny llama"
    assert [t.name for t in reader.tensors] == list(tiny.tensors)
    for tensor in reader.tensors:
        ours = tiny.tensors[tensor.name]
        assert ours.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert (ours.type, ours.n_bytes) == (tensor.tensor_type.name, tensor.n_bytes)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_read_tensor_equals_gguf(write_model: Write, kind: str) -> None:
    path = write_model(types={"down": kind, "embd": kind})
    reader = gguf.GGUFReader(path)
    with pywina.load(path) as model:
        for tensor in reader.tensors:
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            ours = model.read_tensor(tensor.name)
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, expected)
        with pytest.raises(pywina.ArgumentError, match=r"nothing\.weight"):
            model.read_tensor("nothing.weight")


def test_norms_are_column_norms(write_model: Write) -> None:
    path = write_model(types={"q": "Q8_0", "up": "Q4_0"}, head_dim=32)
    groups = {
        "qkv": {"q": "attn_q", "k": "attn_k", "v": "attn_v"},
        "o": {"o": "attn_output"},
        "gate_up": {"gate": "ffn_gate", "up": "ffn_up"},
        "down": {"down": "ffn_down"},
    }
    with pywina.load(path) as model:
        for group, projections in groups.items():
            parts = []
            for projection, name in projections.items():
                weights = model.read_tensor(f"blk.1.{name}.weight").astype(np.float64)
                parts.append(weights)
                expected = np.sqrt((weights**2).sum(axis=0))
                np.testing.assert_allclose(model.norms(1, group, projection), expected, rtol=1e-6)
            expected = np.sqrt((np.concatenate(parts) ** 2).sum(axis=0))
            np.testing.assert_allclose(model.norms(1, group), expected, rtol=1e-6)
        for bad in ((2, "qkv", None), (0, "kqv", None), (0, "down", "q")):
            with pytest.raises(pywina.ArgumentError):
                model.norms(*bad)


# ---- tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [TEXT, "", " ", "\n\n\t", "a" * 1000, "\x00", "the the"])
def test_text_survives_tokenizing(tiny: pywina.Model, text: str) -> None:
    tokens = tiny.tokenize(text)
    assert tiny.detokenize(tokens) == text
    assert tiny.detokenize_bytes(tokens) == text.encode()
    assert tiny.tokenize(text.encode()) == tokens


def test_merges_are_used(tiny: pywina.Model) -> None:
    texts, _ = vocabulary()
    assert [texts[t] for t in tiny.tokenize("and the")] == ["a", "n", "d", "Ġthe"]


def test_control_tokens_are_parsed_only_where_asked(tiny: pywina.Model) -> None:
    end = vocabulary()[0].index(IM_END)
    plain = tiny.tokenize(f"a{IM_END}")
    assert end not in plain and tiny.detokenize(plain) == f"a{IM_END}"
    parsed = tiny.tokenize(f"a{IM_END}", parse_special=True)
    assert parsed == [*tiny.tokenize("a"), end]
    assert tiny.detokenize(parsed) == "a"
    assert tiny.detokenize(parsed, special=True) == f"a{IM_END}"
    assert tiny.is_eog(end) and not tiny.is_eog(parsed[0])
    assert len(tiny.tokenize(TOOL)) == 1  # user-defined tokens are ordinary text


def test_bos_is_added_where_the_model_asks_for_it(write_model: Write) -> None:
    with pywina.load(write_model(add_bos=True)) as model:
        assert model.info.add_bos
        assert model.tokenize("a", add_special=True) == [model.info.bos_token, *model.tokenize("a")]
        assert model._prompt_tokens("a")[0] == model.info.bos_token
    with pywina.load(write_model()) as model:
        assert model.tokenize("a", add_special=True) == model.tokenize("a")


def test_bytes_that_are_no_text(tiny: pywina.Model) -> None:
    assert tiny.detokenize(tiny.tokenize("ü")[:1]) == "\ufffd"
    assert isinstance(tiny.tokenize(b"\xff\xfe"), list)
    with pytest.raises(pywina.ArgumentError, match="lone surrogate at character 1"):
        tiny.tokenize("a\ud800")


# ---- logits -----------------------------------------------------------------------------------


def test_logits_have_a_row_per_token(tiny: pywina.Model) -> None:
    tokens = tiny.tokenize(TEXT)
    logits = tiny.logits(tokens)
    assert logits.shape == (len(tokens), tiny.info.n_vocab)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all() and logits.std() > 0.1
    np.testing.assert_array_equal(tiny.logits(TEXT), logits)  # text is tokenized like a prompt
    np.testing.assert_array_equal(tiny.logits(tokens, start=5), logits[5:])
    np.testing.assert_array_equal(tiny.logits(tokens[:9]), logits[:9])  # nothing looks ahead
    assert tiny.stats.n_prefill == 9


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_threads_and_runs_give_the_same_bits(
    write_model: Write, architecture: str, sparsity: float
) -> None:
    path = write_model(
        architecture=architecture,
        n_embd=96,
        n_head=6,
        n_head_kv=3,
        n_ff=224,
        tied=architecture == "llama",
        types={"q": "Q8_0", "v": "F16", "down": "Q4_0", "up": "Q5_1", "embd": "Q8_0"},
    )
    results = []
    for n_threads in (1, 2, 3, 2):
        with pywina.load(path, n_threads=n_threads) as model:
            assert model.info.n_threads == n_threads
            tokens = (model.tokenize(TEXT) * 4)[:150]
            results.append(model.logits(tokens, sparsity=sparsity))
            text = model.generate(TEXT, max_tokens=24, seed=3, sparsity=sparsity)
            results.append(text)
    for logits, text in zip(results[2::2], results[3::2], strict=True):
        np.testing.assert_array_equal(logits, results[0])
        assert text == results[1]


def test_batches_do_not_change_the_result(load_tiny: Load) -> None:
    whole = load_tiny(n_batch=512).logits(TEXT * 3)
    for n_batch in (1, 7, 64):
        part = load_tiny(n_batch=n_batch).logits(TEXT * 3)
        np.testing.assert_allclose(part, whole, atol=2e-5)


def test_sparsity_zero_is_dense_bit_for_bit(tiny: pywina.Model) -> None:
    dense = tiny.logits(TEXT, method="dense", sparsity=0.5)
    for method in ("wina", "teal"):
        for mask in ("group", "projection"):
            sparse = tiny.logits(TEXT, sparsity=0.0, method=method, mask=mask)
            np.testing.assert_array_equal(sparse, dense)
    assert tiny.stats.kept_fraction == 1.0


def test_methods_and_masks_differ(tiny: pywina.Model) -> None:
    results = [tiny.logits(TEXT)]
    for method in ("wina", "teal"):
        for mask in ("group", "projection"):
            rule = pywina.Sparsity(0.5, method, mask, exponent=1.0)
            results.append(tiny.logits(TEXT, sparsity=rule))
            assert tiny.stats.kept_fraction == pytest.approx(0.5, abs=0.02)
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            # teal chooses by x alone: one mask or many is the same choice
            if not (one is results[3] and other is results[4]):
                assert np.abs(one - other).max() > 1e-3


def test_the_dense_prefix_is_dense(tiny: pywina.Model) -> None:
    dense = tiny.logits(TEXT)
    n = len(dense)
    mixed = tiny.logits(TEXT, sparsity=0.6, dense_prefix=5)
    np.testing.assert_array_equal(mixed[:5], dense[:5])
    assert np.abs(mixed[5:] - dense[5:]).max() > 1e-3
    np.testing.assert_array_equal(tiny.logits(TEXT, sparsity=0.6, dense_prefix=n), dense)


def test_the_dense_prefix_ends_inside_a_batch(load_tiny: Load) -> None:
    by_two = load_tiny(n_batch=2).logits(TEXT, sparsity=0.6, dense_prefix=5)
    whole = load_tiny().logits(TEXT, sparsity=0.6, dense_prefix=5)
    np.testing.assert_allclose(by_two, whole, atol=2e-5)


@pytest.mark.parametrize("kept", [1.0, 0.75, 0.5, 0.3])
def test_the_kept_fraction_is_reported(tiny: pywina.Model, kept: float) -> None:
    tiny.logits(TEXT, sparsity=1 - kept)
    stats = tiny.stats
    assert stats.kept_fraction == pytest.approx(kept, abs=0.02)
    assert kept == 1 or stats.sparse_read / stats.sparse_total == stats.kept_fraction


def test_prompts_are_dense_unless_asked(load_tiny: Load) -> None:
    options = {"max_tokens": 1, "temperature": 0.0, "sparsity": 0.5}
    model = load_tiny()
    with model.stream(TEXT, **options) as stream:
        assert [chunk.timings.kept_fraction for chunk in stream if chunk.timings] == [1.0]
    with model.stream(TEXT, sparse_prefill=True, **options) as stream:
        (kept,) = [chunk.timings.kept_fraction for chunk in stream if chunk.timings]
    assert kept == pytest.approx(0.5, abs=0.02)


def test_load_sets_the_default_sparsity(load_tiny: Load) -> None:
    model = load_tiny(sparsity=0.5, method="teal")
    expected = load_tiny().logits(TEXT, sparsity=0.5, method="teal")
    np.testing.assert_array_equal(model.logits(TEXT), expected)
    np.testing.assert_array_equal(model.logits(TEXT, sparsity=0), load_tiny().logits(TEXT))
    np.testing.assert_array_equal(model.logits(TEXT), expected)  # calls do not change it


def test_numpy_numbers_are_numbers(tiny: pywina.Model) -> None:
    tokens = np.array(tiny.tokenize(TEXT))
    np.testing.assert_array_equal(
        tiny.logits(tokens, sparsity=np.float32(0.5)), tiny.logits(TEXT, sparsity=0.5)
    )


# ---- life -------------------------------------------------------------------------------------


def test_close_is_final_and_idempotent(load_tiny: Load) -> None:
    model = load_tiny()
    stream = model.stream(TEXT, ignore_eog=True)  # an answer of one token would be over by now
    next(stream)
    model.close()
    model.close()
    assert model.closed and "closed" in repr(model)
    uses: list[Callable[[], object]] = [
        lambda: model.generate("a"),
        lambda: model.chat([{"role": "user", "content": "a"}]),
        lambda: model.tokenize("a"),
        lambda: model.detokenize([1]),
        lambda: model.logits([1]),
        lambda: model.stats,
        lambda: model.norms(0, "qkv"),
        lambda: model.metadata,
        lambda: next(stream),
    ]
    for use in uses:
        with pytest.raises(pywina.StateError, match="closed"):
            use()
    stream.close()


def test_with_closes(tiny_model: Path) -> None:
    with pywina.load(tiny_model) as model:
        assert not model.closed
    assert model.closed
    with pytest.raises(KeyError), pywina.load(tiny_model) as model:
        raise KeyError
    assert model.closed


def test_dropped_models_are_freed(tiny_model: Path) -> None:
    model = pywina.load(tiny_model)
    handle = weakref.ref(model._handle)
    stream = model.stream(TEXT, ignore_eog=True)
    next(stream)
    del model
    gc.collect()
    assert not handle().closed  # the stream keeps it
    del stream
    gc.collect()
    assert handle() is None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_loading_again_and_again_does_not_grow(tiny_model: Path) -> None:
    def cycle(n: int) -> None:
        for _ in range(n):
            with pywina.load(tiny_model, n_threads=2, n_ctx=64) as model:
                model.generate("the", max_tokens=2, temperature=0.0)

    cycle(50)
    before = _resident_bytes()
    n_threads = threading.active_count()
    cycle(300)
    assert _resident_bytes() - before < 8 << 20
    assert threading.active_count() == n_threads


def test_progress_is_reported_and_can_stop_a_load(tiny_model: Path) -> None:
    seen: list[float] = []
    pywina.load(tiny_model, progress=seen.append).close()
    assert seen and seen == sorted(seen) and seen[0] >= 0 and seen[-1] <= 1

    def stop(_progress: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pywina.load(tiny_model, progress=stop)


def test_threads_take_turns(tiny: pywina.Model) -> None:
    options = {"max_tokens": 20, "temperature": 0.0}
    prompts = ["the one", "and two", "is three", "of four"]
    expected = [tiny.generate(p, **options) for p in prompts]
    results: list[list[str]] = [[] for _ in prompts]

    def work(i: int) -> None:
        for _ in range(5):
            results[i].append(tiny.generate(prompts[i], **options))
            tiny.tokenize(TEXT)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[text] * 5 for text in expected]


def test_close_stops_a_generation_of_another_thread(write_model: Write) -> None:
    model = pywina.load(write_model(n_ctx=100_000), n_ctx=100_000)
    started, errors = threading.Event(), []

    def work() -> None:
        started.set()
        try:
            model.generate("the", max_tokens=None, ignore_eog=True)
        except pywina.WinaError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    while model._handle._runner is None and thread.is_alive():
        pass
    model.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1 and isinstance(errors[0], (pywina.StateError, pywina.CancelledError))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_gets_an_error(tiny: pywina.Model) -> None:
    tiny.generate("the", max_tokens=2)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tiny.generate("the", max_tokens=2)
        except pywina.StateError as error:
            code = 0 if "forked" in str(error) else 2
        tiny.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tiny.generate("the", max_tokens=2) is not None


# ---- pywina.generate --------------------------------------------------------------------------


def test_generate_takes_a_path_or_a_model(tiny: pywina.Model, tiny_model: Path) -> None:
    options = {"max_tokens": 12, "seed": 5, "sparsity": 0.4, "method": "teal", "mask": "projection"}
    expected = tiny.generate(TEXT, **options)
    assert pywina.generate(tiny, TEXT, **options) == expected
    assert pywina.generate(tiny_model, TEXT, n_threads=1, **options) == expected
    assert pywina.generate(str(tiny_model), TEXT, n_ctx=256, **options) == expected
    assert not tiny.closed


def test_real_model_answers(smollm2_path: Path) -> None:
    with pywina.load(smollm2_path, n_ctx=512) as model:
        assert model.info.architecture == "llama"
        question = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" in model.chat(question, max_tokens=24, temperature=0.0)
        text = model.generate("The capital of France is", max_tokens=8, temperature=0.0)
        assert "Paris" in text
        model.generate("Once upon a time", max_tokens=8, sparsity=0.4)
        assert model.stats.kept_fraction == pytest.approx(0.6, abs=0.02)

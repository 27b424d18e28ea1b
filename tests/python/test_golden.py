"""The real models against golden values of transformers in float32, and against themselves.

tests/golden is written by tools/make_golden.py; tools/sketch.py says how a cosine of whole logits
vectors is had from a small file. Measured with AVX-512: 1 - cosine at most 1.2e-6 (smollm2)
and 2.4e-6 (qwen); logits of the ten best tokens off by at most 0.031, log of the sum by 0.016, and
the lead of the best token over the second by 0.0091.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pywina
from pywina._native import check, ffi, lib

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(ROOT / "tools"))

from sketch import cosine  # noqa: E402

#: A lead of the reference's best token below this counts as a tie: twice the error seen above.
TIE = 0.02


@pytest.fixture(scope="module", params=["smollm2", "qwen"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def path(name: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{name}_path")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[pywina.Model]:
    """The model, which evaluates prompts in batches of 128."""
    with pywina.load(path, n_ctx=512) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def dense(name: str) -> dict[str, np.ndarray]:
    """Golden summary of the dense logits over 200 tokens."""
    with np.load(GOLDEN / f"dense_{name}.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def tokens(dense: dict[str, np.ndarray]) -> list[int]:
    return dense["tokens"].tolist()


@pytest.fixture(scope="module")
def logits(model: pywina.Model, tokens: list[int]) -> np.ndarray:
    """(200, n_vocab) of the library."""
    return model.logits(tokens)


@pytest.fixture(scope="module")
def greedy(name: str) -> dict:
    """48 greedy tokens of the reference and the lead of each over the second best."""
    return json.loads((GOLDEN / f"greedy_{name}.json").read_text(encoding="utf-8"))


def test_dense_logits(
    model: pywina.Model, dense: dict[str, np.ndarray], logits: np.ndarray
) -> None:
    assert logits.shape == (200, model.info.n_vocab)
    check_dense(dense, logits)


def test_dense_logits_of_gemma3(gemma_path: Path) -> None:
    """The third real model: windows, post norms, GeGLU, 262144 tokens."""
    with np.load(GOLDEN / "dense_gemma3.npz") as file:
        dense = {key: file[key] for key in file.files}
    # A float16 cache costs a cosine of 1 - 1.5e-5 at one position; with float32 it is 1 - 4.2e-7.
    with pywina.load(gemma_path, n_ctx=512, cache_type_k="f32", cache_type_v="f32") as model:
        check_dense(dense, model.logits(dense["tokens"].tolist()))


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_greedy_text_of_gemma3(gemma_path: Path, kind: str) -> None:
    golden = json.loads((GOLDEN / "greedy_gemma3.json").read_text(encoding="utf-8"))
    with pywina.load(gemma_path, n_ctx=256, cache_type_k=kind, cache_type_v=kind) as model:
        assert model.tokenize(golden["prompt"], add_special=True) == golden["prompt_tokens"]
        check_greedy(model, golden)
        check_greedy_choices(model, golden)


def check_dense(dense: dict[str, np.ndarray], logits: np.ndarray) -> None:
    assert cosine(dense, logits).min() > 0.99999
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(wide, axis=1), dense["norm"], rtol=0.003)
    peak = wide.max(axis=1)
    total = peak + np.log(np.exp(wide - peak[:, None]).sum(axis=1))
    np.testing.assert_allclose(total, dense["logsumexp"], rtol=0, atol=0.03)
    top = np.take_along_axis(logits, dense["top_ids"].astype(np.int64), axis=1)
    np.testing.assert_allclose(top, dense["top_values"], rtol=0, atol=0.06)


def test_the_comparison_sees_a_wrong_position(
    dense: dict[str, np.ndarray], logits: np.ndarray
) -> None:
    """One row that belongs elsewhere, or one logit that is off by a tenth of the vector, fails."""
    assert cosine(dense, np.roll(logits, 1, axis=0)).max() < 0.9999
    spoiled = logits.copy()
    spoiled[:, 1234] += 0.1 * np.linalg.norm(logits, axis=1)
    assert cosine(dense, spoiled).max() < 0.9999


def test_greedy_continuation(model: pywina.Model, greedy: dict) -> None:
    """Token by token the same, up to the first place where the reference's lead is a tie."""
    check_greedy(model, greedy)


def check_greedy(model: pywina.Model, greedy: dict) -> None:
    wanted = greedy["tokens"]
    stream = model.stream(
        greedy["prompt_tokens"], temperature=0, max_tokens=len(wanted), ignore_eog=True
    )
    ours = [chunk.token for chunk in stream if chunk.token is not None]
    assert len(ours) == len(wanted)
    apart = [i for i, (a, b) in enumerate(zip(ours, wanted, strict=True)) if a != b]
    if apart:
        assert greedy["margins"][apart[0]] < TIE, f"token {apart[0]} differs"


def test_greedy_choice_after_every_token(model: pywina.Model, greedy: dict) -> None:
    """The reference's own text fed back: every choice but ties, whatever went before."""
    check_greedy_choices(model, greedy)


def check_greedy_choices(model: pywina.Model, greedy: dict) -> None:
    wanted, prompt = greedy["tokens"], greedy["prompt_tokens"]
    rows = model.logits(prompt + wanted[:-1], start=len(prompt) - 1)
    ours = rows.argmax(axis=1)
    clear = np.array(greedy["margins"]) >= TIE
    assert clear.sum() >= len(wanted) - 3
    np.testing.assert_array_equal(ours[clear], np.array(wanted)[clear])
    lead = rows.max(axis=1) - rows[np.arange(len(wanted)), wanted]
    assert lead.max() < TIE


def test_prompt_and_chat_template(model: pywina.Model, greedy: dict) -> None:
    """The prompt of the greedy text is what the file's chat template gives."""
    messages = [{"role": "user", "content": greedy["question"]}]
    assert model.chat_tokens(messages) == greedy["prompt_tokens"]


def bits(logits: np.ndarray) -> np.ndarray:
    return logits.view(np.uint32)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_do_not_change_a_bit(
    path: Path, tokens: list[int], logits: np.ndarray, n_threads: int
) -> None:
    """Nor does the size of the batches."""
    with pywina.load(path, n_ctx=256, n_threads=n_threads, n_batch=37) as other:
        np.testing.assert_array_equal(bits(other.logits(tokens[:90])), bits(logits[:90]))


def test_threads_do_not_change_a_sparse_bit(smollm2_path: Path) -> None:
    seen = []
    for n_threads in (1, 2, 3):
        with pywina.load(smollm2_path, n_ctx=256, n_threads=n_threads) as other:
            ids = other.tokenize("It was a bright cold day in April. " * 4)
            seen.append(bits(other.logits(ids, sparsity=0.5, dense_prefix=5)))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


@pytest.mark.parametrize("method", ["wina", "teal"])
@pytest.mark.parametrize("mask", ["group", "projection"])
def test_sparsity_zero_is_dense(
    model: pywina.Model, tokens: list[int], logits: np.ndarray, method: str, mask: str
) -> None:
    sparse = model.logits(tokens[:24], sparsity=0.0, method=method, mask=mask)
    np.testing.assert_array_equal(bits(sparse), bits(logits[:24]))


def test_dense_method_ignores_sparsity(
    model: pywina.Model, tokens: list[int], logits: np.ndarray
) -> None:
    plain = model.logits(tokens[:24], sparsity=0.7, method="dense")
    np.testing.assert_array_equal(bits(plain), bits(logits[:24]))


def test_token_by_token_equals_one_batch(
    model: pywina.Model, tokens: list[int], logits: np.ndarray
) -> None:
    """The decode call, one token after another, and the batched prompt, bit for bit."""
    rows = []
    with model._handle.run() as session:
        check(lib.wina_session_truncate(session, 0))
        native = ffi.new("wina_sparsity *")
        lib.wina_sparsity_init(native)
        check(lib.wina_session_set_sparsity(session, native))
        for token in tokens[:40]:
            check(lib.wina_session_decode(session, token))
            size = model.info.n_vocab * 4
            last = ffi.buffer(lib.wina_session_logits(session), size)
            rows.append(np.frombuffer(last, dtype=np.uint32).copy())
    np.testing.assert_array_equal(np.stack(rows), bits(logits[:40]))

"""Every architecture: converted from a checkpoint, dense against transformers' own logits, sparse
against tools/reference.py, which masks inputs and multiplies densely.

tests/golden/arch.npz is written by tools/make_arch_golden.py from the checkpoints that
tinycheckpoint.py makes of numpy's random numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tinycheckpoint import CONFIGS, TOKENS, write_checkpoint

import pywina
from pywina._native import check, ffi, lib
from pywina.cli import main

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from reference import Reference  # noqa: E402


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def path(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted file."""
    folder = tmp_path_factory.mktemp("arch")
    source = write_checkpoint(folder / "checkpoint", family)
    target = folder / f"{family}.gguf"
    assert main(["convert", str(source), str(target), "--type", "F32"]) == 0
    return target


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[pywina.Model]:
    with pywina.load(path, n_ctx=128) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def exact(path: Path) -> Iterator[pywina.Model]:
    """The same with keys and values as they were computed."""
    with pywina.load(path, n_ctx=128, cache_type_k="f32", cache_type_v="f32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reference(path: Path) -> Reference:
    return Reference(path)


@pytest.fixture(scope="module")
def golden(family: str) -> np.ndarray:
    with np.load(ROOT / "tests" / "golden" / "arch.npz") as file:
        return file[family]


def off(ours: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference over the scale of the logits."""
    return float(np.abs(ours - wanted).max() / np.abs(wanted).max())


def test_reference_is_transformers(reference: Reference, golden: np.ndarray) -> None:
    """The yardstick of the sparse comparison, without the rounding of a cache."""
    assert off(reference.logits(TOKENS)[2::3], golden) < 1e-5


def test_dense(exact: pywina.Model, golden: np.ndarray) -> None:
    assert off(exact.logits(TOKENS)[2::3], golden) < 1e-4


def test_dense_rounded(model: pywina.Model, reference: Reference, golden: np.ndarray) -> None:
    """With keys and values in half precision: what that rounding costs, and no more."""
    ours = model.logits(TOKENS)
    assert 1e-6 < off(ours[2::3], golden) < 2e-3
    assert off(ours, reference.logits(TOKENS, kv_f16=True)) < 3e-4


def test_dense_in_eight_bits(path: Path, golden: np.ndarray) -> None:
    with pywina.load(path, n_ctx=128, cache_type_k="q8_0", cache_type_v="q8_0") as model:
        ours = model.logits(TOKENS)[2::3]
        if any("_exps" in name for name in model.tensors):  # rounding may choose another expert
            apart = np.abs(ours - golden).max(axis=1) / np.abs(golden).max()
            assert 1e-5 < np.median(apart) < 5e-2
        else:
            assert 1e-5 < off(ours, golden) < 5e-2


@pytest.mark.parametrize("mask", ["group", "projection"])
def test_half_sparse(exact: pywina.Model, reference: Reference, mask: str) -> None:
    """A score that ties to rounding may flip a choice in some tokens: the median must not."""
    rule = {"sparsity": 0.5, "method": "wina", "mask": mask, "budget": "uniform", "exponent": 1.0}
    ours = exact.logits(TOKENS, sparsity=pywina.Sparsity(**rule), dense_prefix=5)
    wanted = reference.logits(TOKENS, n_dense=5, **rule)
    apart = np.linalg.norm(ours - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(apart) < 1e-4
    dense = reference.logits(TOKENS)
    far = np.linalg.norm(dense - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(far[5:]) > 0.05


def test_batches_and_threads_do_not_change_a_bit(path: Path, model: pywina.Model) -> None:
    """Token by token, in batches, and with more threads."""
    wanted = model.logits(TOKENS, sparsity=0.5, dense_prefix=5)
    for n_threads, n_batch in ((1, 1), (2, 7), (3, 128)):
        with pywina.load(path, n_ctx=128, n_threads=n_threads, n_batch=n_batch) as other:
            ours = other.logits(TOKENS, sparsity=0.5, dense_prefix=5)
            np.testing.assert_array_equal(ours.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("kind", ["q8_0", "f32"])
def test_batches_change_no_bit_with_other_caches(path: Path, kind: str) -> None:
    """A window's rows are used in turn: how many there are depends on the batch."""
    seen = []
    for n_threads, n_batch in ((1, 1), (2, 7), (3, 128)):
        options = {"cache_type_k": kind, "cache_type_v": kind}
        with pywina.load(path, n_ctx=128, n_threads=n_threads, n_batch=n_batch, **options) as model:
            seen.append(model.logits(TOKENS * 2).view(np.uint32))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


def test_packed(model: pywina.Model, path: Path, tmp_path: Path) -> None:
    """The packed file gives the same bits, and the same weights, fused or not."""
    target = tmp_path / "packed.gguf"
    model.write_packed(target)
    with pywina.load(target, n_ctx=128) as packed:
        for sparsity in (0.0, 0.5):
            np.testing.assert_array_equal(
                packed.logits(TOKENS, sparsity=sparsity), model.logits(TOKENS, sparsity=sparsity)
            )
        assert set(model.tensors) <= set(packed.tensors)
        for name, tensor in model.tensors.items():
            assert packed.tensors[name].shape == tensor.shape
            np.testing.assert_array_equal(packed.read_tensor(name), model.read_tensor(name))
        # Rows from the middle on, across what a fused matrix or a stack of experts holds.
        mixture = "blk.0.ffn_up_exps.weight" in model.tensors
        if not mixture:
            np.testing.assert_array_equal(packed.norms(0, "gate_up"), model.norms(0, "gate_up"))
        own = f"blk.0.ffn_up{'_exps' * mixture}.weight"
        whole = model.read_tensor(own)
        whole = whole.reshape(-1, whole.shape[-1])
        rows = np.empty_like(whole[7:-3])
        with packed._handle.borrow() as native:
            buffer = ffi.from_buffer("float[]", rows)
            name = own.encode()
            check(lib.wina_model_read_rows(native, name, 7, len(rows), buffer))
        np.testing.assert_array_equal(rows, whole[7:-3])

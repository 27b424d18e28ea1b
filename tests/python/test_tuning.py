"""Calibrated budgets, norms and thresholds: from metadata, from a caller, and wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pywina

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from reference import Reference

N_LAYER, WIDTHS = 2, {"qkv": 64, "o": 64, "gate_up": 64, "down": 128}
IDS = [int(t) for t in np.random.default_rng(8).integers(0, 250, 40)]


def make_tuning() -> pywina.Tuning:
    rng = np.random.default_rng(3)
    norms = {name: rng.uniform(0.1, 2, (N_LAYER, n)) for name, n in WIDTHS.items()}
    norms |= {name: rng.uniform(0.1, 2, (N_LAYER, 64)) for name in ("q", "k", "v", "gate", "up")}
    return pywina.Tuning(
        targets=np.array([0.25, 0.5, 0.75], dtype=np.float32),
        kept=rng.uniform(0.2, 0.9, (3, N_LAYER, 4)).astype(np.float32),
        thresholds=np.sort(rng.uniform(0.1, 0.6, (3, N_LAYER, 4)).astype(np.float32), axis=0),
        norms={name: value.astype(np.float32) for name, value in norms.items()},
        exponents=np.full(4, 0.5, dtype=np.float32),
    )


def metadata(tuning: pywina.Tuning) -> dict[str, tuple[float, ...]]:
    return {key: tuple(map(float, values)) for key, values in tuning.metadata()}


@pytest.fixture(scope="module")
def tuned(write_model: Callable[..., Path]) -> Path:
    return write_model(extra=metadata(make_tuning()))


@pytest.mark.parametrize("mask", ["group", "projection"])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75, 0.9])
def test_calibrated_rule_against_the_reference(tuned: Path, mask: str, sparsity: float) -> None:
    """At a target the row is its own shape; beyond the last one the last row is."""
    tuning = make_tuning()
    row = min(list(tuning.targets).index(min(sparsity, 0.75)), 2)
    with pywina.load(tuned) as model:
        ours = model.logits(IDS, sparsity=sparsity, mask=mask, dense_prefix=5)
        plain = model.logits(
            IDS, sparsity=pywina.Sparsity(sparsity, norms="l2", exponent=0.5), dense_prefix=5
        )
    wanted = Reference(tuned).logits(
        IDS, sparsity=sparsity, mask=mask, budget=tuning.kept[row], exponent=0.5,
        norms=tuning.norms, n_dense=5, kv_f16=True,
    )  # fmt: skip
    off = np.linalg.norm(ours - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(off) < 1e-4 and (off > 1e-3).sum() <= 1
    assert np.abs(plain - wanted).max() > 1e-2 * np.abs(wanted).max()


def test_between_targets_the_budgets_lie_between(tuned: Path) -> None:
    with pywina.load(tuned) as model:
        low, middle, high = (model.keep_counts(s)[..., 0] for s in (0.25, 0.35, 0.5))
        assert ((middle >= high - 1) & (middle <= low + 1)).mean() > 0.8
        for sparsity in (0.1, 0.35, 0.6, 0.9):
            model.logits(IDS, sparsity=sparsity)
            assert model.stats.kept_fraction == pytest.approx(1 - sparsity, abs=0.01)


def test_a_callers_tuning_is_the_files(tuned: Path, tiny_model: Path) -> None:
    tuning = make_tuning()
    with pywina.load(tuned) as with_file, pywina.load(tiny_model) as model:
        plain = model.logits(IDS, sparsity=0.5)
        model.set_tuning(tuning)
        for select in ("topk", "threshold"):
            rule = pywina.Sparsity(0.4, select=select)
            np.testing.assert_array_equal(
                model.logits(IDS, sparsity=rule), with_file.logits(IDS, sparsity=rule)
            )
        model.set_tuning(None)
        np.testing.assert_array_equal(model.logits(IDS, sparsity=0.5), plain)


def test_projection_budgets(tiny_model: Path) -> None:
    tuning = make_tuning()
    table = np.random.default_rng(4).uniform(0.2, 0.9, (3, N_LAYER, 7)).astype(np.float32)
    tuning.kept_projections = table
    with pywina.load(tiny_model) as model:
        model.set_tuning(tuning)
        model.logits(IDS, sparsity=0.5, mask="projection")
        assert model.stats.kept_fraction == pytest.approx(0.5, abs=0.01)


def test_thresholds_keep_what_scores_more(tuned: Path) -> None:
    """Counted by hand from the inputs of the first group, for one sparse token each."""
    tuning = make_tuning()
    weights = tuning.norms["qkv"][0] ** np.float32(0.5)
    seen: list[np.ndarray] = []

    def look(layer: int, group: str, x: np.ndarray) -> None:
        if (layer, group) == (0, "qkv"):
            seen.append(x.copy())

    with pywina.load(tuned) as model:
        rule = pywina.Sparsity(0.5, select="threshold")
        with model.tap(look):
            batch = model.logits(IDS, sparsity=rule)
        expected = (np.abs(np.concatenate(seen)) * weights >= tuning.thresholds[1, 0, 0]).mean()
        assert 0.05 < expected < 0.95
        assert 0.05 < model.stats.kept_fraction < 0.95
        one = np.concatenate([model.logits(IDS[: i + 1], sparsity=rule, start=i) for i in (0, 1)])
        np.testing.assert_array_equal(one, batch[:2])
        with pytest.raises(pywina.ArgumentError, match="calibrated up to"):
            model.logits(IDS, sparsity=pywina.Sparsity(0.8, select="threshold"))
        with pytest.raises(pywina.ArgumentError, match="thresholds belong"):
            model.logits(IDS, sparsity=pywina.Sparsity(0.5, method="teal", select="threshold"))


@pytest.mark.parametrize("rule", [
    pywina.Sparsity(0.5), pywina.Sparsity(0.5, mask="projection"), pywina.Sparsity(0.3, "cats"),
    pywina.Sparsity(0.5, exponent=0.5), pywina.Sparsity(0.5, select="threshold"),
])  # fmt: skip
def test_tokens_one_by_one_are_tokens_in_a_batch(tuned: Path, rule: pywina.Sparsity) -> None:
    with pywina.load(tuned) as batched, pywina.load(tuned, n_batch=1) as single:
        np.testing.assert_array_equal(
            batched.logits(IDS, sparsity=rule), single.logits(IDS, sparsity=rule)
        )
        assert batched.stats.sparse_read == single.stats.sparse_read


def test_what_a_plain_file_lacks(tiny: pywina.Model) -> None:
    for rule in (
        pywina.Sparsity(0.5, budget="calibrated"),
        pywina.Sparsity(0.5, norms="calibrated"),
        pywina.Sparsity(0.5, select="threshold"),
    ):
        with pytest.raises(pywina.ArgumentError, match="calibrated"):
            tiny.logits(IDS, sparsity=rule)
    assert np.isfinite(tiny.logits(IDS, sparsity=0.5)).all()


def _spoil(key: str, change: Callable[[list[float]], list[float]]) -> dict[str, object]:
    values = metadata(make_tuning())
    values[key] = tuple(change(list(values[key])))
    return values


WRONG: dict[str, dict[str, object]] = {
    "too short": _spoil("wina.kept", lambda v: v[:-1]),
    "too long": _spoil("wina.norms.down", lambda v: [*v, 1.0]),
    "one target": _spoil("wina.targets", lambda v: v[:1]),
    "zero kept": _spoil("wina.kept", lambda v: [0.0, *v[1:]]),
    "kept above one": _spoil("wina.kept", lambda v: [1.01, *v[1:]]),
    "not a number": _spoil("wina.kept", lambda v: [float("nan"), *v[1:]]),
    "infinite norm": _spoil("wina.norms.o", lambda v: [float("inf"), *v[1:]]),
    "negative norm": _spoil("wina.norms.k", lambda v: [-1.0, *v[1:]]),
    "falling targets": _spoil("wina.targets", lambda v: v[::-1]),
    "equal targets": _spoil("wina.targets", lambda v: [v[0], v[0], v[2]]),
    "target of one": _spoil("wina.targets", lambda v: [*v[:2], 1.0]),
    "a wrong type": metadata(make_tuning()) | {"wina.kept": "high"},
    "a scalar": metadata(make_tuning()) | {"wina.targets": 0.5},
    "exponent": _spoil("wina.exponents", lambda v: [5.0, *v[1:]]),
    "threshold of zero": _spoil("wina.thresholds", lambda v: [0.0, *v[1:]]),
    "norms of some groups": {
        key: value for key, value in metadata(make_tuning()).items() if key != "wina.norms.o"
    },
    "no targets": {k: v for k, v in metadata(make_tuning()).items() if k != "wina.targets"},
    "no kept": {k: v for k, v in metadata(make_tuning()).items() if k != "wina.kept"},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_metadata_is_refused(write_model: Callable[..., Path], name: str) -> None:
    path = write_model(extra=WRONG[name])
    with pytest.raises(pywina.FormatError, match="wina\\."):
        pywina.load(path)


def test_wrong_arrays_are_refused(tiny: pywina.Model) -> None:
    before = tiny.logits(IDS, sparsity=0.5)
    for change in (
        {"kept": np.ones((2, N_LAYER, 4))},
        {"targets": np.array([0.5, 0.25, 0.75])},
        {"kept": np.full((3, N_LAYER, 4), np.nan)},
        {"norms": {"qkv": np.ones((N_LAYER, 64))}},
        {"norms": {"mlp": np.ones((N_LAYER, 64))}},
        {"exponents": np.array([1, 1, 1, -1.0])},
    ):
        tuning = make_tuning()
        for key, value in change.items():
            setattr(tuning, key, value)
        with pytest.raises(pywina.ArgumentError):
            tiny.set_tuning(tuning)
    np.testing.assert_array_equal(tiny.logits(IDS, sparsity=0.5), before)


def test_budgets_that_cannot_reach_the_sparsity(tiny: pywina.Model) -> None:
    kept = np.ones((1, N_LAYER, 4), dtype=np.float32)
    kept[0, :, 1] = 0.5
    tiny.set_tuning(pywina.Tuning(targets=np.array([0.5]), kept=kept))
    with pytest.raises(pywina.ArgumentError, match="cannot be reached"):
        tiny.logits(IDS, sparsity=0.5)


def test_inspect_says_which_rule(tuned: Path, tiny_model: Path, wina_bin: Path) -> None:
    def rule(path: Path, *options: str) -> str:
        command = [str(wina_bin), "inspect", "-m", str(path), "--json", *options]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["rule"]

    assert "calibrated budgets" in rule(tuned) and "(calibrated norm)^0.5" in rule(tuned)
    assert "profile budgets" in rule(tiny_model)
    assert "qkv 0.75" in rule(tiny_model, "--budget", "uniform", "--sparsity", "0.25")
    assert rule(tiny_model, "--method", "cats", "--sparsity", "0.2").startswith("cats: |silu(gate)")


def test_tap(tiny: pywina.Model) -> None:
    shapes: dict[tuple[int, str], tuple[int, int]] = {}

    def look(layer: int, group: str, x: np.ndarray) -> None:
        shapes[layer, group] = x.shape

    with tiny.tap(look):
        dense = tiny.logits(IDS)
    assert shapes == {(i, g): (40, n) for i in range(N_LAYER) for g, n in WIDTHS.items()}
    np.testing.assert_array_equal(dense, tiny.logits(IDS))

    def fail(layer: int, group: str, x: np.ndarray) -> None:
        raise ZeroDivisionError(group)

    with pytest.raises(ZeroDivisionError), tiny.tap(fail):
        tiny.logits(IDS)
    tiny.logits(IDS)

"""pywina report: the page holds what was measured, and nothing from outside."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pywina
from pywina.calibrate.thresholds import Histogram
from pywina.cli import main
from pywina.eval.statistics import Mean
from pywina.report.measure import (
    Measurements,
    Quality,
    Speed,
    kept_by_projection,
    measure_quality,
)
from pywina.report.page import recommend
from pywina.tuning import Tuning

pytest.importorskip("matplotlib")

WORDS = "the in and there an of on a woman at sea is seen with all to rest far over".split()
TEXT = " ".join(np.random.default_rng(3).choice(WORDS, 3000))


def test_a_report(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "new" / "report"
    arguments = ["report", str(tiny_model), "-o", str(out), "-f", str(tmp_path / "text.txt")]
    assert main([*arguments, "--windows", "2", "--sparsity", "0.6,0.3", "-t", "1"]) == 0
    names = {"quality", "speed", "frontier", "kept", "scores"}
    assert {p.name for p in out.iterdir()} == {f"{n}.png" for n in names} | {"report.html"}
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "tiny llama" in page and "profile budgets" in page
    for path in out.glob("*.png"):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 5000
    with pywina.load(tiny_model, n_threads=1) as model:
        rows, dense, n = measure_quality(model, TEXT, ["wina", "teal"], [0.3, 0.6], 2)
    assert n == 2 and f"{dense:.3f}" in page
    for row in rows:
        assert f"{row.perplexity:.3f}" in page
        assert row.perplexity == pytest.approx(dense * np.exp(row.nats.value), rel=1e-6)
        assert row.kept == pytest.approx(1 - row.sparsity, abs=0.01)


def test_the_map_has_every_projection(tiny_model: Path) -> None:
    shares = np.array([0.9, 0.5, 0.2, 0.6, 0.3, 0.8, 0.45], dtype=np.float32)
    with pywina.load(tiny_model, n_threads=1) as model:
        together = kept_by_projection(model, pywina.Sparsity(0.5))
        groups = model.kept_fractions(0.5)
        np.testing.assert_array_equal(together, groups[:, [0, 0, 0, 1, 2, 2, 3]])
        table = np.tile(shares, (1, model.info.n_layer, 1))
        kept = np.full((1, model.info.n_layer, 4), 0.5, dtype=np.float32)
        model.set_tuning(Tuning(np.array([0.5], np.float32), kept, table))
        alone = kept_by_projection(model, pywina.Sparsity(0.5, mask="projection"))
    assert alone.shape == (len(groups), 7)
    assert (alone.argsort(axis=1) == shares.argsort()).all()


def _measured(nats: dict[float, float], rates: dict[float, float]) -> Measurements:
    quality = [
        Quality("wina", s, 10.0, Mean(value, 0.01, 8), 0.1, 0.9, 1 - s) for s, value in nats.items()
    ]
    speed = [Speed(s, rate, 100.0) for s, rate in rates.items()]
    return Measurements(quality, speed, 9.0, 8, 512, {}, Histogram(1, {}), "a rule")


def test_recommendations() -> None:
    nats = {0.25: 0.01, 0.4: 0.03, 0.5: 0.2}
    text = recommend(_measured(nats, {0.0: 10, 0.25: 12, 0.4: 13, 0.5: 15}))
    assert "At 40% sparsity" in text and "1.30 times" in text and "3.0%" in text
    slow = recommend(_measured(nats, {0.0: 10, 0.25: 9, 0.4: 9.5, 0.5: 15}))
    assert slow.startswith("No sparsity") and "0.90 times" in slow


def test_text_in_a_page_is_escaped(tiny_model: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from pywina.report.page import write

    with pywina.load(tiny_model, n_threads=1) as model:
        from pywina.report.measure import measure

        found = measure(model, TEXT, ["wina"], [0.5], 1)
        page = write(tmp_path, "<script>x</script>", replace(model.info), found).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_wrong_arguments(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    base = ["report", str(tiny_model), "-o", str(tmp_path / "o"), "-f", str(tmp_path / "text.txt")]
    for extra in (["--sparsity", "x"], ["--sparsity", "0"], ["--windows", "0"]):
        assert main([*base, *extra]) == 2
    (tmp_path / "o").write_text("a file is here")
    assert main([*base, "--sparsity", "0.5", "--windows", "1", "-t", "1"]) == 2
    assert "cannot write" in capsys.readouterr().err

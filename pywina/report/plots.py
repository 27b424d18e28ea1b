"""The figures of a report, as PNG files. matplotlib is the optional extra ``pywina[report]``."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import LibraryError
from ..tuning import GROUPS, PROJECTIONS
from .measure import Measurements

_SIZE = (6.4, 4.0)


def import_pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise LibraryError("a report needs matplotlib: pip install 'pywina[report]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _png(draw: Callable[[Any], object], size: tuple[float, float] = _SIZE) -> bytes:
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    try:
        draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
        return buffer.getvalue()
    finally:
        pyplot.close(figure)


def _sparsity_axis(axes: Any, sparsities: list[float], lowest: float = 0.0) -> None:
    """Ticks where something was measured, and a scale that begins at 0 unless a value is lower."""
    axes.set_xticks(sparsities, [f"{value:.0%}" for value in sparsities])
    axes.set_xlabel("sparsity")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if lowest < 0 else 0.0)
    axes.grid(alpha=0.3)


def quality(m: Measurements) -> bytes:
    """Loss over dense against sparsity, a line per method."""

    def draw(axes: Any) -> None:
        for method in dict.fromkeys(row.method for row in m.quality):
            rows = [row for row in m.quality if row.method == method]
            axes.errorbar(
                [row.sparsity for row in rows],
                [row.nats.value for row in rows],
                [np.nan_to_num(row.nats.error) for row in rows],
                marker="o", capsize=3, label=method,
            )  # fmt: skip
        _sparsity_axis(
            axes,
            sorted({row.sparsity for row in m.quality}),
            min(row.nats.value - np.nan_to_num(row.nats.error) for row in m.quality),
        )
        axes.set(ylabel="loss over dense (nats a token)")
        axes.legend()

    return _png(draw)


def speed(m: Measurements) -> bytes:
    """Tokens per second against sparsity, and what reading fewer bytes alone would give."""

    def draw(axes: Any) -> None:
        x = [row.sparsity for row in m.speed]
        axes.plot(x, [row.tokens_s for row in m.speed], marker="o", label="measured")
        dense = m.speed[0]
        ideal = [dense.tokens_s * dense.mb_per_token / row.mb_per_token for row in m.speed]
        axes.plot(x, ideal, linestyle="--", label="by bytes read")
        _sparsity_axis(axes, x)
        axes.set(ylabel="decoded tokens per second")
        axes.legend()

    return _png(draw)


def frontier(m: Measurements) -> bytes:
    """Loss against speed-up, a line per method; sparsities are written below the lowest point."""
    rates = {row.sparsity: row.tokens_s / m.speed[0].tokens_s for row in m.speed}

    def draw(axes: Any) -> None:
        for method in dict.fromkeys(row.method for row in m.quality):
            rows = [row for row in m.quality if row.method == method]
            points = [(rates[row.sparsity], row.nats.value) for row in rows]
            axes.plot(*zip(*points, strict=True), marker="o", label=method)
        for sparsity in dict.fromkeys(row.sparsity for row in m.quality):
            lowest = min(row.nats.value for row in m.quality if row.sparsity == sparsity)
            axes.annotate(
                f"{sparsity:.0%}", (rates[sparsity], lowest), textcoords="offset points",
                xytext=(0, -8), ha="center", va="top",
            )  # fmt: skip
        axes.margins(0.08, 0.12)
        axes.set(xlabel="speed-up of decoding (at wina's rule)", ylabel="loss over dense (nats)")
        axes.grid(alpha=0.3)
        axes.legend()

    return _png(draw)


def heat_map(m: Measurements, sparsity: float) -> bytes:
    """Kept fraction by block and projection."""

    def draw(axes: Any) -> None:
        kept = 100 * m.kept[sparsity]
        image = axes.imshow(kept.T, aspect="auto", vmin=0, vmax=100, cmap="viridis")
        axes.set_yticks(range(len(PROJECTIONS)), PROJECTIONS)
        axes.set(xlabel="block", title=f"per cent of its inputs kept, at sparsity {sparsity:.0%}")
        for (block, row), value in np.ndenumerate(kept):
            axes.text(
                block, row, f"{value:.0f}", ha="center", va="center", fontsize=6,
                color="white" if value < 60 else "black",
            )  # fmt: skip
        axes.figure.colorbar(image)

    return _png(draw, (9.0, 3.2))


def scores(m: Measurements) -> bytes:
    """Distribution of log2 |x| norm by group, all blocks together."""

    def draw(axes: Any) -> None:
        from ..calibrate.thresholds import _LOW, _PER_OCTAVE

        counts = m.histogram.counts.sum(axis=0)
        step = _PER_OCTAVE // 4
        for group, row in zip(GROUPS, counts, strict=True):
            bins = row.reshape(-1, step).sum(axis=1) / max(1, row.sum())
            x = _LOW + (np.arange(len(bins)) + 0.5) * step / _PER_OCTAVE
            shown = bins > 1e-5
            axes.plot(x[shown], bins[shown], label=group)
        axes.set(xlabel="log2 of |x| times l2 norm", ylabel="share of inputs", xlim=(-12, None))
        axes.grid(alpha=0.3)
        axes.legend()

    return _png(draw)


def draw_all(m: Measurements) -> dict[str, bytes]:
    """PNG files by name."""
    sparsities = list(m.kept)
    return {
        "quality": quality(m),
        "speed": speed(m),
        "frontier": frontier(m),
        "kept": heat_map(m, sparsities[len(sparsities) // 2]),
        "scores": scores(m),
    }

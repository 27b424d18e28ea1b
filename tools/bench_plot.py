"""Plot of results of tools/bench_peers.py: tokens per second against sparsity, a panel per model.

Solid with marks: libwina, median and quartiles. Dashed: llama.cpp, which is dense, so a level.
Dotted: what the machine's read bandwidth allows for the bytes that sparsity leaves to be read.
A colour is a number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_report
import matplotlib
import numpy as np
from bench_report import OURS, PEER, Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

COLOURS = ("#1f6fb4", "#d1660a", "#2c8a4b", "#7d4fa8")
INK, FAINT = "#333333", "#dddddd"
COLUMNS = 3


def bounds(result: dict[str, Any], ours: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The curve (sparsity in percent, tokens per second) if reading the bytes of each sparsity at
    the measured bandwidth were all there is. Between rows bytes grow linearly with what is kept."""
    sparsities = [row.sparsity for row in ours]
    x = np.union1d(np.linspace(sparsities[0], sparsities[-1], 40), sparsities)
    n_bytes = np.interp(x, sparsities, [row.bytes_per_token for row in ours])
    bandwidth = bench_report.bandwidth_of(result, ours[0].n_threads).median * 1e9
    return 100 * x, bandwidth / n_bytes


def _draw(axes: Axes, result: dict[str, Any], colours: dict[int, str]) -> None:
    """One model: for each number of threads ours, the peer's level and the bound."""
    decoded = [row for row in bench_report.rows(result) if row.test.startswith("tg")]
    for n_threads, colour in colours.items():
        ours = [r for r in decoded if r.program == OURS and r.n_threads == n_threads]
        peer = [r for r in decoded if r.program == PEER and r.n_threads == n_threads]
        if not ours:
            continue
        x = [100 * row.sparsity for row in ours]
        y = [row.tok_s.median for row in ours]
        error = [
            [row.tok_s.median - row.tok_s.low for row in ours],
            [row.tok_s.high - row.tok_s.median for row in ours],
        ]
        limits = bounds(result, ours)
        axes.plot(*limits, color=colour, linewidth=1.4, linestyle=":", zorder=2)
        axes.errorbar(
            x, y, error, color=colour, linewidth=2, marker="o", markersize=5, capsize=3, zorder=4
        )
        for row in peer:
            axes.axhline(row.tok_s.median, color=colour, linewidth=1.5, linestyle="--", zorder=3)
    axes.set_title(bench_report.title(result), fontsize=11, color=INK, loc="left")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=-4)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xticks([100 * s for s in result["settings"]["sparsities"]])
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)


def _legend(colours: dict[int, str], peer: str | None) -> list[Line2D]:
    lines = [
        Line2D([], [], color=colour, linewidth=4, label=f"{n} thread{'s' if n > 1 else ''}")
        for n, colour in colours.items()
    ]
    lines.append(Line2D([], [], color=INK, linewidth=2, marker="o", label="wina"))
    if peer:
        lines.append(Line2D([], [], color=INK, linewidth=1.5, linestyle="--", label=peer))
    lines.append(
        Line2D([], [], color=INK, linewidth=1, linestyle=":", label="bound: read bandwidth / bytes")
    )
    return lines


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the picture; its format is that of the path's ending. Raises ValueError for none."""
    if not results:
        raise ValueError("there are no results to plot")
    threads = sorted({n for result in results for n in result["settings"]["threads"]})
    colours = {n: COLOURS[i % len(COLOURS)] for i, n in enumerate(threads)}
    columns = min(COLUMNS, len(results))
    n_rows = -(-len(results) // columns)
    figure, grid = plt.subplots(
        n_rows, columns, figsize=(max(4.0 * columns, 6.5), 3.0 * n_rows + 1.0), squeeze=False
    )
    for axes, result in zip(grid.flat, results, strict=False):
        _draw(axes, result, colours)
    for axes in list(grid.flat)[len(results) :]:
        axes.set_visible(False)
    for line in grid:
        line[0].set_ylabel("tokens per second", fontsize=10, color=INK)
    # The lowest panel of each column names the x axis.
    for i in range(columns):
        last = max(j for j in range(i, len(results), columns))
        grid.flat[last].set_xlabel("sparsity (share of inputs skipped)", fontsize=10, color=INK)
    peers = {r["programs"][PEER]["version"].split("-")[0] for r in results if PEER in r["programs"]}
    peer = {"llama": "llama.cpp (dense)"}.get(next(iter(peers), ""), "peer (dense)")
    lines = _legend(colours, peer if peers else None)
    figure.legend(
        handles=lines,
        loc="upper center",
        ncols=min(len(lines), 5 if columns > 1 else 3),
        frameon=False,
        fontsize=10,
        labelcolor=INK,
    )
    top = 0.35 if columns > 1 else 0.6
    figure.tight_layout(rect=(0, 0, 1, 1 - top / figure.get_figheight()), h_pad=2.0, w_pad=2.0)
    figure.savefig(path, dpi=140)
    plt.close(figure)

"""The page itself: one HTML file without links to anything, and the figures beside it."""

from __future__ import annotations

import base64
import math
from importlib import resources
from pathlib import Path

import jinja2

from .. import _version
from ..errors import FileError
from ..info import ModelInfo
from .measure import Measurements, Quality
from .plots import draw_all

#: relative rise of perplexity that a recommendation accepts
ACCEPTED = 0.05

_TEMPLATE = resources.files(__package__).joinpath("page.html")

_CAPTIONS = {
    "quality": "What each method loses at each sparsity; bars are standard errors.",
    "speed": "Decoding speed, and what reading fewer bytes would give by itself.",
    "frontier": "Loss against speed: lower and further right is better.",
    "kept": "Share of its inputs that each block's projections keep.",
    "scores": "How scores are distributed: where a curve is wide, few inputs carry most.",
}


def recommend(m: Measurements) -> str:
    """In plain words: the highest sparsity whose perplexity is within ACCEPTED of dense."""
    rates = {row.sparsity: row.tokens_s / m.speed[0].tokens_s for row in m.speed}
    rows = [row for row in m.quality if row.method == m.quality[0].method]

    def rise(row: Quality) -> float:
        return math.expm1(row.nats.value)

    good = [row for row in rows if rise(row) <= ACCEPTED and rates[row.sparsity] > 1]
    if good:
        best = max(good, key=lambda row: row.sparsity)
        return (
            f"At {best.sparsity:.0%} sparsity this model decodes {rates[best.sparsity]:.2f} times "
            f"as fast as dense on this machine, and its perplexity rises by {rise(best):.1%}."
        )
    least = min(rows, key=lambda row: row.sparsity)
    return (
        f"No sparsity that was measured is worth it here: at {least.sparsity:.0%} perplexity rises "
        f"by {rise(least):.1%} and decoding runs at {rates[least.sparsity]:.2f} times dense speed."
    )


def write(folder: Path, name: str, info: ModelInfo, m: Measurements) -> Path:
    """Writes report.html and the figures into a folder, which is made; returns the page's path."""
    images = draw_all(m)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        info=info,
        m=m,
        advice=recommend(m),
        captions=_CAPTIONS,
        images={key: base64.b64encode(data).decode() for key, data in images.items()},
        version=_version.__version__,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, data in images.items():
            (folder / f"{key}.png").write_bytes(data)
        path = folder / "report.html"
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error}") from error
    return path

"""What a report shows: quality and speed at several sparsities, budgets, and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..calibrate.thresholds import Histogram
from ..convert.convert import l2_norms
from ..eval.runner import WINDOW, Evaluation, Results, make_rules
from ..eval.statistics import Mean, mean, paired
from ..eval.windows import cut_windows
from ..model import Model
from ..sparsity import Sparsity
from ..tuning import GROUPS, PROJECTIONS

N_DECODED, ROUNDS = 48, 3


@dataclass(frozen=True)
class Quality:
    """nats: what a method loses against dense, paired over windows."""

    method: str
    sparsity: float
    perplexity: float
    nats: Mean
    kld: float
    agreement: float
    kept: float


@dataclass(frozen=True)
class Speed:
    """Median of interleaved rounds; bytes of weights that a token reads."""

    sparsity: float
    tokens_s: float
    mb_per_token: float


@dataclass(frozen=True)
class Measurements:
    quality: list[Quality]
    speed: list[Speed]
    dense_perplexity: float
    n_windows: int
    window: int  # tokens
    kept: dict[float, NDArray[np.float64]]  # (n_layer, 7) by sparsity
    histogram: Histogram
    rule: str


def measure_quality(
    model: Model,
    text: str,
    methods: Sequence[str],
    sparsities: Sequence[float],
    n_windows: int,
    progress: Callable[[str], object] = lambda text: None,
) -> tuple[list[Quality], float, int]:
    """Also the dense perplexity and the number of windows. The windows are the eval command's."""
    results = Results(Path(), {})
    evaluation = Evaluation(model, Path(), results, text=text, keep=False)
    rules = make_rules(methods, sparsities)
    evaluation.run("wikitext2", rules, n_windows, 1, progress)
    items = results.items["wikitext2"]
    dense = [values[0] for values in items["dense"].values()]
    rows = []
    for sparsity in sparsities:
        for method in methods:
            name = f"{method} {sparsity:g}"
            nll, kld, same = zip(*items[name].values(), strict=True)
            rows.append(
                Quality(
                    method, sparsity, float(np.exp(np.mean(nll))), paired(nll, dense),
                    mean(kld).value, mean(same).value, results.kept["wikitext2"][name],
                )
            )  # fmt: skip
    return rows, float(np.exp(np.mean(dense))), len(dense)


def measure_speed(
    model: Model,
    text: str,
    sparsities: Sequence[float],
    progress: Callable[[str], object] = lambda text: None,
) -> list[Speed]:
    """Decoding after a short prompt."""
    prompt = model.tokenize(text, add_special=True)[:32]
    rates: dict[float, list[float]] = {s: [] for s in sparsities}
    sizes: dict[float, float] = {}
    for _ in range(ROUNDS):
        for sparsity in sparsities:
            with model.stream(
                prompt, max_tokens=N_DECODED, temperature=0.0, sparsity=sparsity, ignore_eog=True
            ) as stream:
                for _chunk in stream:
                    pass
            assert stream.timings is not None
            rates[sparsity].append(stream.timings.decode_tok_s)
            sizes[sparsity] = model.stats.bytes_per_token / 1e6
            progress(f"speed at {sparsity:g}")
    return [Speed(s, float(np.median(rates[s])), sizes[s]) for s in sparsities]


def kept_by_projection(model: Model, rule: Sparsity) -> NDArray[np.float64]:
    """(n_layer, 7) share of its inputs that each projection keeps; those of a group that chooses
    once keep the same."""
    counts = model.keep_counts(rule).astype(np.float64)
    columns = []
    for group, names in zip(
        GROUPS, (PROJECTIONS[:3], ("o",), ("gate", "up"), ("down",)), strict=True
    ):
        own = counts[:, GROUPS.index(group)]
        for i in range(len(names)):
            columns.append(np.where(own[:, i] > 0, own[:, i], own[:, 0]) / model.width(group))
    return np.stack(columns, axis=1)


def measure_scores(model: Model, text: str) -> Histogram:
    """Scores with l2 norms over one window, dense."""
    size = min(WINDOW, model.info.n_ctx)
    histogram = Histogram(model.info.n_layer, l2_norms(model).norms)
    with model.tap(histogram.add):
        model.logits(cut_windows(model, text, size, 1)[0], start=size - 1, method="dense")
    return histogram


def measure(
    model: Model,
    text: str,
    methods: Sequence[str],
    sparsities: Sequence[float],
    n_windows: int,
    progress: Callable[[str], object] = lambda text: None,
) -> Measurements:
    """Everything; sparsities above 0, rising."""
    quality, dense, n = measure_quality(model, text, methods, sparsities, n_windows, progress)
    middle = sparsities[len(sparsities) // 2]
    return Measurements(
        quality=quality,
        speed=measure_speed(model, text, [0.0, *sparsities], progress),
        dense_perplexity=dense,
        n_windows=n,
        window=min(WINDOW, model.info.n_ctx),
        kept={s: kept_by_projection(model, Sparsity(s)) for s in sparsities},
        histogram=measure_scores(model, text),
        rule=f"at {middle:.0%}: {model.describe_rule(Sparsity(middle))}",
    )

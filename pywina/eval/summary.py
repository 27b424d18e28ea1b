"""Results as rows: means with errors, and each rule against the baseline of its sparsity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .runner import Results, metrics_of
from .statistics import Mean, mcnemar, mean, paired

_SHARES = {"acc", "acc_norm", "exact_match"}


@dataclass(frozen=True)
class Row:
    """One metric of one rule. against: the baseline's name, difference: paired, on items that both
    have; p: McNemar's, for metrics that are right or wrong."""

    task: str
    rule: str
    metric: str
    mean: Mean
    kept: float
    against: str | None = None
    difference: Mean | None = None
    p: float | None = None


def split_rule(rule: str) -> tuple[str, float]:
    """Method with its options, and sparsity; ("dense", 0.0) for the dense rule."""
    method, _, sparsity = rule.rpartition(" ")
    return (method, float(sparsity)) if method else (rule, 0.0)


def rows(results: Results, baseline: str = "teal") -> Iterator[Row]:
    """In the order of the results. Rules of the baseline itself are compared with dense."""
    for task, by_rule in results.items.items():
        for rule, items in by_rule.items():
            if not items:
                continue
            method, sparsity = split_rule(rule)
            against: str | None = f"{baseline} {sparsity:g}" if sparsity > 0 else None
            if method == baseline or (against and not by_rule.get(against)):
                against = "dense" if by_rule.get("dense") else None
            for index, metric in enumerate(metrics_of(task)):
                own = {number: values[index] for number, values in items.items()}
                difference, p = None, None
                if against is not None and against != rule:
                    other = {n: values[index] for n, values in by_rule[against].items()}
                    both = [n for n in own if n in other]
                    pair = [own[n] for n in both], [other[n] for n in both]
                    difference = paired(*pair)
                    p = mcnemar(*pair) if metric in _SHARES else None
                yield Row(
                    task,
                    rule,
                    metric,
                    mean(list(own.values())),
                    results.kept.get(task, {}).get(rule, 1.0),
                    against if difference else None,
                    difference,
                    p,
                )


def table(results: Results, baseline: str = "teal") -> str:
    """For people, as Markdown."""
    lines = [
        "| task | rule | metric | value | n | kept | against | difference | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(results, baseline):
        difference = (
            f"{row.difference.value:+.4f} ± {row.difference.error:.4f}" if row.difference else ""
        )
        lines.append(
            f"| {row.task} | {row.rule} | {row.metric} | {row.mean.value:.4f} ± "
            f"{row.mean.error:.4f} | {row.mean.n} | {row.kept:.3f} | {row.against or ''} | "
            f"{difference} | {'' if row.p is None else f'{row.p:.3f}'} |"
        )
    return "\n".join(lines)

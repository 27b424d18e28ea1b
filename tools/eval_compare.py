"""Rules over several files of results, paired with one baseline.

    python tools/eval_compare.py [--baseline teal] NAME=FILE[,FILE...] ...

Files of one name are shards or tasks of one evaluation; the first name holds the dense rule and the
baseline that all others are paired with, item by item, at the same sparsity. Prints Markdown: nats
(or shares) over dense, the difference from the baseline with its standard error, and for wikitext2
the divergence and the share of tokens with the dense model's best successor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from pywina.eval.runner import metrics_of
from pywina.eval.statistics import mcnemar
from pywina.eval.summary import split_rule

Items = dict[str, list[float]]


def read(paths: list[str]) -> dict[str, dict[str, Items]]:
    """items[task][rule] of all files together."""
    result: dict[str, dict[str, Items]] = {}
    for path in paths:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        for task, by_rule in content["items"].items():
            for rule, items in by_rule.items():
                result.setdefault(task, {}).setdefault(rule, {}).update(items)
    return result


def paired(own: Items, other: Items, metric: int) -> tuple[float, float, int]:
    """Mean difference, its standard error, and the number of items that both have."""
    both = sorted(set(own) & set(other))
    found = np.array([own[n][metric] - other[n][metric] for n in both])
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else float("nan")
    return float(found.mean()) if len(found) else float("nan"), float(error), len(both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--baseline", default="teal")
    parser.add_argument("results", nargs="+", metavar="NAME=FILE[,FILE...]")
    args = parser.parse_args()
    named = {text.partition("=")[0]: text.partition("=")[2].split(",") for text in args.results}
    found = {name: read(paths) for name, paths in named.items()}
    first = next(iter(found.values()))
    for task, base in first.items():
        metric = metrics_of(task)[0]
        print(f"\n| {task} | rule | {metric} | over dense | against {args.baseline} | n | more |")
        print("|---|---|---|---|---|---|---|")
        for name, tasks in found.items():
            for rule, items in tasks.get(task, {}).items():
                method, sparsity = split_rule(rule)
                dense = tasks[task].get("dense") or base["dense"]
                over, _, n = paired(items, dense, 0)
                against = base.get(f"{args.baseline} {sparsity:g}")
                difference = ""
                if against and items is not against:
                    mean, error, n = paired(items, against, 0)
                    difference = f"{mean:+.4f} ± {error:.4f}"
                    if metric in ("acc", "exact_match"):
                        both = sorted(set(items) & set(against))
                        sides = [[x[i][0] for i in both] for x in (items, against)]
                        difference += f" (p {mcnemar(*sides):.3f})"
                values = np.array(list(items.values()))
                more = ", ".join(
                    f"{other} {values[:, i].mean():.4f}"
                    for i, other in enumerate(metrics_of(task))
                    if i
                )
                print(
                    f"| {name} | {method} {sparsity:g} | {values[:, 0].mean():.4f} | {over:+.4f} | "
                    f"{difference} | {n} | {more} |"
                )


if __name__ == "__main__":
    main()

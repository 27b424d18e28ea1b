"""Sparse models over a text by the float32 graph in torch, on a GPU: minutes instead of hours.

    python tools/eval_graph.py MODEL -f TEXT --sparsity 0.5,0.65 --json OUT [--tuning FILE]
        [--method teal,wina] [--select threshold] [--limit N] [--equal-bytes]

Masks are exact top-K with the library's numbers and scores, activations are not rounded; results
have the form that `pywina eval` keeps, so that both can be compared window by window. For files
whose basis changes on the way, --equal-bytes raises the sparsity until the bytes of sparse weights
and basis changes together are those of the same sparsity without any.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pywina.api import load
from pywina.calibrate.graph import Graph
from pywina.calibrate.objective import TorchSparse
from pywina.convert.transform import at_equal_bytes
from pywina.eval.runner import WINDOW, Results, choose
from pywina.eval.windows import Scorer, cut_windows
from pywina.hub.fetch import resolve
from pywina.sparsity import Select, Sparsity
from pywina.tuning import Tuning

STACK = 4  # windows that are computed at a time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--sparsity", default="0.5")
    parser.add_argument("--method", default="wina")
    parser.add_argument("--exponent", type=float, help="of norms; default: the tuning's, else 0")
    parser.add_argument("--select", choices=("topk", "threshold"), default="topk")
    parser.add_argument("--tuning", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--equal-bytes", action="store_true")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    path = resolve(args.model)
    tuning = Tuning.load(args.tuning) if args.tuning else None
    setting = {"model": path.name, "model_bytes": path.stat().st_size, "seed": 1}
    results = Results.open(args.json, setting | {"dense_prefix": 5, "by": "graph"})
    with load(path, backend="cpu") as model:
        sparse = TorchSparse(model, Graph(model, args.device))
        windows = cut_windows(model, args.file.read_text(encoding="utf-8"), WINDOW)
        rules: dict[str, Sparsity | None] = {"dense": None}
        for text in args.sparsity.split(","):
            amount = float(text)
            if args.equal_bytes:
                amount = round(at_equal_bytes(model, amount), 6)
            for method in args.method.split(","):
                select: Select = args.select if method == "wina" else "topk"
                rules[f"{method} {text}"] = Sparsity(
                    amount, method, exponent=args.exponent, select=select
                )
        known = results.of("wikitext2", list(rules)[-1])
        missing = [n for n in choose(len(windows), args.limit, 1) if str(n) not in known]
        scorer, first = Scorer(f"{args.device}:0"), WINDOW // 2
        shares: dict[str, list[float]] = {}  # kept by thresholds in each part
        for at in range(0, len(missing), STACK):
            numbers = missing[at : at + STACK]
            part = [windows[number] for number in numbers]
            sparse.use_dense()
            dense = sparse.logs(part, first)
            for name, rule in rules.items():
                if rule is not None:
                    sparse.use(tuning if rule.method == "wina" else None, rule)
                own = dense if rule is None else sparse.logs(part, first)
                for i, number in enumerate(numbers):
                    score = scorer.score(model, part[i], own[i], dense[i], first=first)
                    values = [score.nll, score.kld, score.agreement]
                    results.of("wikitext2", name)[str(number)] = values
                kept = 1.0 if rule is None else 1 - rule.sparsity
                if rule is not None and rule.select == "threshold":
                    shares.setdefault(name, []).append(sparse.kept_fraction())
                    kept = sum(shares[name]) / len(shares[name])
                results.kept.setdefault("wikitext2", {})[name] = kept
            results.save()
        results.save(now=True)
    for name, items in results.items["wikitext2"].items():
        mean = sum(values[0] for values in items.values()) / len(items)
        kept = results.kept["wikitext2"][name]
        print(f"{path.name} {name}: {mean:.4f} nats, {kept:.4f} kept, {len(items)} windows")


if __name__ == "__main__":
    main()

"""pywina eval: what sparsity costs, task by task and rule by rule."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

from ..api import load
from ..errors import ArgumentError, FileError
from ..eval.runner import Evaluation, Results, make_rules
from ..eval.summary import table
from ..eval.tasks import TASKS
from ..hub.fetch import resolve
from ..model import Model
from ..sparsity import Sparsity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF file or the name of a known model")
    parser.add_argument("--tasks", default="wikitext2", help=f"from {','.join(TASKS)}")
    parser.add_argument("--sparsity", default="0.5", metavar="S,S", help="default 0.5")
    parser.add_argument(
        "--method", action="append", metavar="RULE",
        help="wina, teal, cats; with options wina:budget=uniform,mask=projection,exponent=1; "
        "may be repeated, plain names may be joined by commas; default wina,teal",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="items of each task; default: all")
    parser.add_argument("--seed", type=int, default=1, help="of the items' order; default 1")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("PYWINA_DATA"), metavar="DIR",
        help="folder of hellaswag/, piqa/, ...; default $PYWINA_DATA",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=Path, required=True, metavar="OUT", help="results; an old file is continued"
    )
    parser.add_argument(
        "--dense-prefix", type=int, default=5, metavar="N", help="first tokens, dense; default 5"
    )
    parser.add_argument("--baseline", default="teal", metavar="RULE", help="default teal")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: physical cores")


def _methods(given: list[str] | None) -> list[str]:
    names: list[str] = []
    for text in given or ["wina,teal"]:
        names += [text] if ":" in text else text.split(",")
    return names


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentError(f"--sparsity: {text!r} is no list of numbers") from error


def _possible(model: Model, rules: dict[str, Sparsity]) -> dict[str, Sparsity]:
    """The rules that this model can follow; the others are named."""
    found = {}
    for name, rule in rules.items():
        try:
            model.describe_rule(rule)
            found[name] = rule
        except ArgumentError as error:
            print(f"pywina: left out: {name}: {error}", file=sys.stderr)
    return found


def main(args: argparse.Namespace) -> int:
    if args.data is None or not Path(args.data).is_dir():
        raise FileError(f"{args.data} is no folder of data: give --data DIR, or set PYWINA_DATA")
    if args.limit is not None and args.limit < 1:
        raise ArgumentError(f"--limit is {args.limit}; give at least 1")
    tasks = args.tasks.split(",")
    for task in tasks:
        if task not in TASKS:
            raise ArgumentError(f"task {task!r} is unknown; choose from {', '.join(TASKS)}")
    rules = make_rules(_methods(args.method), _numbers(args.sparsity))
    path = resolve(args.model)
    setting = {"model": path.name, "model_bytes": path.stat().st_size, "seed": args.seed}
    setting["dense_prefix"] = args.dense_prefix
    results = Results.open(args.json, setting)
    with load(path, n_threads=args.threads) as model:
        rules = _possible(model, rules)
        evaluation = Evaluation(model, Path(args.data), results, args.dense_prefix)
        for task in tasks:
            total = evaluation.count(task, args.limit) * len(rules)
            with tqdm(total=total, desc=task, unit="run", disable=None) as bar:

                def step(rule: str, bar: tqdm = bar) -> None:
                    bar.set_postfix_str(rule, refresh=False)
                    bar.update()

                evaluation.run(task, rules, args.limit, args.seed, step)
    print(table(results, args.baseline))
    return 0

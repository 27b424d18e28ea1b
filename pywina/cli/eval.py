"""pywina eval: what sparsity costs, task by task and rule by rule."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

from ..errors import ArgumentError, FileError
from ..eval.runner import Evaluation, Results, make_rules
from ..eval.summary import table
from ..eval.tasks import TASKS
from ..hub.fetch import resolve
from ..model import Model
from ..sparsity import Sparsity
from .common import announce, load_shown
from .options import add_threads


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
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N",
        help="only every N-th item from the I-th on: N processes, each with its own --json",
    )  # fmt: skip
    parser.add_argument(
        "--merge", type=Path, nargs="+", default=[], metavar="JSON",
        help="results of shards, taken over into OUT first",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="cpu", metavar="NAME",
        help="where wikitext2's distributions are compared: cpu (numpy), or cuda (torch)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=("auto", "cpu", "cuda"), default="auto", help="default auto"
    )
    add_threads(parser)


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


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ArgumentError(f"--shard is {text!r}; give I/N with 1 <= I <= N")
    return int(index) - 1, int(count)


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
    if args.data is None:
        raise ArgumentError("there are no tasks to ask: give --data DIR, or set PYWINA_DATA")
    if not Path(args.data).is_dir():
        raise FileError(f"--data {args.data} is not a folder")
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
    results, shard = Results.open(args.json, setting), _shard(args.shard)
    for part in args.merge:
        results.absorb(part)
    results.save(now=True)
    with load_shown(path, n_threads=args.threads, backend=args.backend) as model:
        announce(model, f"0, {', '.join(f'{number:g}' for number in _numbers(args.sparsity))}")
        rules = _possible(model, rules)
        evaluation = Evaluation(
            model, Path(args.data), results, args.dense_prefix, device=args.device
        )
        for task in tasks:
            total = evaluation.count(task, args.limit, shard) * len(rules)
            with tqdm(total=total, desc=task, unit="run", disable=None) as bar:

                def step(rule: str, bar: tqdm = bar) -> None:
                    bar.set_postfix_str(rule, refresh=False)
                    bar.update()

                evaluation.run(task, rules, args.limit, args.seed, step, shard)
    print(table(results, args.baseline))
    return 0

"""pywina report: quality and speed of a model at several sparsities, as one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from ..errors import ArgumentError
from ..hub.fetch import resolve
from ..report.measure import ROUNDS, measure
from ..report.page import write
from ..report.plots import import_pyplot
from .common import announce, load_shown, read_text
from .options import add_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF file or the name of a known model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR",
                        help="folder of the page")  # fmt: skip
    parser.add_argument(
        "-f", "--file", type=Path, required=True, metavar="TEXT", help="text to predict"
    )
    parser.add_argument("--sparsity", default="0.25,0.4,0.5,0.65", metavar="S,S",
                        help="default %(default)s")  # fmt: skip
    parser.add_argument("--method", default="wina,teal", metavar="NAME,NAME",
                        help="default %(default)s")  # fmt: skip
    parser.add_argument("--windows", type=int, default=8, metavar="N", help="of 512 tokens; 8")
    add_threads(parser)


def main(args: argparse.Namespace) -> int:
    import_pyplot()  # its absence is best told before an hour of measuring
    try:
        sparsities = sorted({float(part) for part in args.sparsity.split(",")} - {0.0})
    except ValueError as error:
        raise ArgumentError(f"--sparsity: {args.sparsity!r} is no list of numbers") from error
    if not sparsities or args.windows < 1:
        raise ArgumentError("give at least one sparsity above 0 and one window")
    methods = args.method.split(",")
    text, path = read_text(args.file), resolve(args.model)
    total = args.windows * (1 + len(methods) * len(sparsities)) + ROUNDS * (1 + len(sparsities))
    with load_shown(path, n_threads=args.threads) as model:
        announce(model, f"0, {', '.join(f'{number:g}' for number in sparsities)} ({args.method})")
        with tqdm(total=total, desc="measuring", disable=None) as bar:

            def step(what: str) -> None:
                bar.set_postfix_str(what, refresh=False)
                bar.update()

            found = measure(model, text, methods, sparsities, args.windows, step)
        page = write(args.output, model.info.name or path.stem, model.info, found)
    print(f"pywina: wrote {page}", file=sys.stderr)
    return 0

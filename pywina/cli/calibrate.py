"""pywina calibrate: budgets, norms and thresholds for a model, from a text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from ..calibrate.objective import Kind
from ..calibrate.run import Allocate, NormKind, Settings, calibrate
from ..convert import convert, imatrix
from ..convert.transform import at_equal_bytes
from ..errors import ArgumentError
from ..eval.windows import cut_windows
from ..hub.fetch import resolve
from .common import announce, load_shown, read_text
from .options import add_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF file or the name of a known model")
    parser.add_argument("-f", "--file", type=Path, required=True, metavar="TEXT", help="the text")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT",
        help="OUT.json: the tuning; OUT.gguf: the model with it, and OUT.json beside it",
    )  # fmt: skip
    parser.add_argument(
        "--imatrix", type=Path, metavar="FILE",
        help="in place of -o: write an importance matrix for `pywina convert --quantize`, the mean "
        "square of every input (also for llama.cpp)",
    )  # fmt: skip
    parser.add_argument(
        "--target", default="0.5", metavar="S,S", help="sparsities to calibrate for; default 0.5"
    )
    parser.add_argument(
        "--equal-bytes", action="store_true",
        help="of a transformed model: sparsities so much higher that its changes of basis are paid",
    )  # fmt: skip
    parser.add_argument(
        "--allocate", choices=get_args(Allocate), default="global",
        help="how budgets are looked for: not at all (uniform, profile), by block (greedy, block), "
        "over all blocks (global), by gradients (descent: needs torch); default global",
    )  # fmt: skip
    parser.add_argument(
        "--norms", choices=get_args(NormKind), default="l2",
        help="l2 norms of weights, loss-weighted ones, or these fitted to what inputs are worth "
        "(with --allocate descent; both need torch: pywina[calibrate])",
    )  # fmt: skip
    parser.add_argument(
        "--objective", choices=get_args(Kind), default="kl",
        help="what budgets are searched on: divergence from the dense model, or the text's loss",
    )  # fmt: skip
    parser.add_argument("--windows", type=int, default=8, metavar="N", help="of the text; 8")
    parser.add_argument("--size", type=int, default=256, metavar="N", help="tokens of each; 256")
    parser.add_argument("--thresholds", action="store_true", help="calibrate thresholds, too")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME",
        help="cuda: let torch measure on the GPU, which is much faster; default cpu",
    )  # fmt: skip
    add_threads(parser)


def _targets(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ArgumentError(f"--target: {text!r} is no list of numbers") from error


def _measure(args: argparse.Namespace) -> int:
    """Writes the importance matrix."""
    source = resolve(args.model)
    convert.check_paths(source, args.imatrix)
    with load_shown(source, n_threads=args.threads, n_ctx=None, backend="cpu") as model:
        size = min(args.size, model.info.n_ctx)
        windows = cut_windows(model, read_text(args.file), size, args.windows)
        with tqdm(total=len(windows), desc="measuring", unit="window", disable=None) as bar:
            found = imatrix.measure(model, windows, bar.update)
        imatrix.save(args.imatrix, found, args.file.name, len(windows), size)
    print(f"pywina: wrote {args.imatrix}, {len(found)} tensors", file=sys.stderr)
    return 0


def main(args: argparse.Namespace) -> int:
    if (args.output is None) == (args.imatrix is None):
        raise ArgumentError("give -o OUT, or --imatrix FILE")
    if args.imatrix is not None:
        return _measure(args)
    if args.output.suffix not in (".json", ".gguf"):
        raise ArgumentError(f"{args.output} must end in .json or .gguf")
    source = resolve(args.model)
    convert.check_paths(source, args.output)
    targets = _targets(args.target)
    if args.equal_bytes:
        with load_shown(source, n_ctx=1, n_threads=args.threads, backend="cpu") as model:
            targets = tuple(round(at_equal_bytes(model, target), 6) for target in targets)
    settings = Settings(
        targets, args.allocate, args.norms, args.windows, args.size,
        args.thresholds, args.device, args.objective,
    )  # fmt: skip
    log = args.output.with_suffix(".log.json")
    text = read_text(args.file)
    with load_shown(source, n_threads=args.threads, n_ctx=None, backend="cpu") as model:
        announce(model, f"{args.target} to calibrate for")
        with tqdm(desc="calibrating", unit="step", disable=None) as bar:

            def note(what: str) -> None:
                bar.set_postfix_str(what, refresh=False)
                bar.update()

            result = calibrate(model, text, settings, log, note)
        result.tuning.save(args.output.with_suffix(".json"), result.notes)
        if args.output.suffix == ".gguf":
            plan = convert.plan_tuned(model, result.tuning)
            with tqdm(total=plan.n_bytes, unit="B", unit_scale=True, disable=None) as bar:
                convert.run(plan, args.output, bar.update)
    for shape in result.notes["shapes"]:
        numbers = {name: value for name, value in shape.items() if isinstance(value, float)}
        print(", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
    print(f"pywina: wrote {args.output}; {log} may be removed", file=sys.stderr)
    return 0

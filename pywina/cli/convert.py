"""pywina convert: the same model quantised, with norms and budgets in the file, or with rotated
weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from .._replace import scratch_folder
from ..convert import convert, imatrix
from ..convert.checkpoint import plan_checkpoint
from ..convert.convert import Plan
from ..convert.mixture import MIXTURES
from ..convert.quantize import plan_quantized, quantize
from ..convert.transform import Rotation, make_bases
from ..errors import ArgumentError, UnsupportedError
from ..eval.windows import cut_windows
from ..hub.fetch import resolve
from ..model import Model
from ..tuning import Tuning
from .common import load_shown, read_text
from .options import add_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="IN",
        help="a GGUF file, a known model's name, or a Hugging Face checkpoint folder",
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument(
        "--tuning", type=Path, metavar="FILE", help="what `pywina calibrate` found (JSON)"
    )
    parser.add_argument(
        "--transform", metavar="NAME",
        help="rotate the residual stream: global (one basis, free at run time), segments:K, "
        "blocks, or paper; all but the last need -f",
    )  # fmt: skip
    parser.add_argument(
        "--type", choices=tuple(convert.TYPES), default="F16",
        help="of the matrices of transformed models and checkpoints; default F16",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=tuple(MIXTURES), metavar="TYPE",
        help="write the matrices of an F32, F16 or BF16 model in this type, some better, as "
        f"llama.cpp does: {', '.join(MIXTURES)}",
    )  # fmt: skip
    parser.add_argument(
        "--imatrix", type=Path, metavar="FILE",
        help="an importance matrix for --quantize, from `pywina calibrate --imatrix` or llama.cpp",
    )  # fmt: skip
    parser.add_argument(
        "-f", "--file", type=Path, metavar="TEXT", help="text that a transform is made from"
    )
    parser.add_argument("--windows", type=int, default=16, metavar="N", help="of 512 tokens; 16")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME",
        help="cuda: torch on the GPU looks for the cuts of segments; default cpu",
    )  # fmt: skip
    add_threads(parser)
    parser.add_argument(
        "--pack", action="store_true",
        help="lay the weights out as they are in memory: loads at once, but in pywina only",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")


def _rotation(model: Model, args: argparse.Namespace) -> Rotation:
    windows: list[list[int]] = []
    if args.transform != "paper":
        if args.file is None:
            raise ArgumentError("--transform needs -f TEXT, a text to measure activations on")
        size = min(512, model.info.n_ctx)
        windows = cut_windows(model, read_text(args.file), size, args.windows)
    with tqdm(total=len(windows), desc="measuring", unit="window", disable=None) as bar:
        bases = make_bases(model, args.transform, windows, bar.update, args.device)
        return Rotation(model, bases)


def _pack(source: Path, target: Path, threads: int | None) -> None:
    with (
        load_shown(source, n_ctx=1, n_threads=threads, backend="cpu") as model,
        tqdm(total=100, unit="%", desc="packing", disable=None) as bar,
    ):
        model.write_packed(target, lambda done: bar.update(int(done * 100) - bar.n))


def _convert(plan: Plan, target: Path) -> None:
    with tqdm(total=plan.n_bytes, unit="B", unit_scale=True, desc="writing", disable=None) as bar:
        convert.run(plan, target, bar.update)


def _write(plan: Plan, target: Path, args: argparse.Namespace) -> int:
    for line in plan.lines:
        print(line)
    if args.pack:
        print("panels: laid out as in memory; only pywina and wina can read the file")
    if args.dry_run:
        return 0
    if args.pack:
        # A packed file is made from a file: what would be written without --pack, for a while.
        with scratch_folder(target) as folder:
            _convert(plan, folder / "plain.gguf")
            _pack(folder / "plain.gguf", target, args.threads)
    else:
        _convert(plan, target)
    print(f"pywina: wrote {target}", file=sys.stderr)
    return 0


def main(args: argparse.Namespace) -> int:
    if args.quantize and (args.transform or args.tuning):
        raise ArgumentError("--quantize goes without --transform and --tuning: convert twice")
    if args.imatrix and not args.quantize:
        raise ArgumentError("--imatrix goes with --quantize")
    importance = imatrix.load(args.imatrix) if args.imatrix else None
    n_threads = args.threads or 0
    if Path(args.source).is_dir():
        if args.transform or args.tuning:
            raise ArgumentError("convert the checkpoint first, then the GGUF file it becomes")
        convert.check_paths(Path(args.source), args.target)
        plan = plan_checkpoint(Path(args.source), "F32" if args.quantize else args.type)
        if args.quantize:
            plan = quantize(plan.content, args.quantize, importance, n_threads)
        return _write(plan, args.target, args)
    source = resolve(args.source)
    convert.check_paths(source, args.target)
    if args.quantize:
        plan = plan_quantized(source, args.quantize, importance, n_threads)
        return _write(plan, args.target, args)
    tuning = Tuning.load(args.tuning) if args.tuning else None
    with load_shown(source, n_threads=args.threads, backend="cpu") as model:
        mixture = tuning is None and model._is_mixture
        if mixture and (args.transform or not args.pack):
            raise UnsupportedError(
                f"{source} is a mixture of experts, which have norms of their own: norms cannot be "
                "stored, weights not rotated; only --pack, --quantize and --tuning with budgets"
            )
        if tuning is not None:
            model.set_tuning(tuning)  # refuses what does not belong to this model
        if mixture:
            plan = convert.plan_copy(source)
        elif args.transform is None:
            plan = convert.plan_tuned(model, tuning)
        else:
            rotation = _rotation(model, args)
            plan = convert.plan_rotated(model, rotation, args.transform, args.type, tuning)
        return _write(plan, args.target, args)

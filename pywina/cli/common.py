"""What the commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import _native
from .._open import trained_context
from ..api import load
from ..errors import ArgumentError, FetchError, FileError
from ..generation import Chunk, Stream, Timings
from ..hub.catalog import CATALOG
from ..hub.fetch import cached, resolve
from ..hub.pretrained import fetch_repository
from ..model import Model
from ..params import GenerateOptions
from ..sparsity import Sparsity
from .options import SAMPLER_FIELDS
from .terminal import Answer


def note(text: str) -> None:
    """A line on stderr, in its place among what stdout got."""
    sys.stdout.flush()
    print(f"pywina: {text}", file=sys.stderr, flush=True)


def sparsity_of(args: argparse.Namespace, sparsity: float | None = None) -> Sparsity:
    """What the sparsity arguments say; sparsity: in place of --sparsity."""
    return Sparsity(
        sparsity=args.sparsity if sparsity is None else sparsity,
        method=args.method,
        mask=args.mask,
        prefill=args.sparse_prefill,
        budget=args.budget,
        norms=args.norms,
        exponent=args.exponent,
        select=args.select,
    )


def go_offline() -> None:
    """Keeps huggingface_hub, which reads this when it is first imported, off the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def model_path(args: argparse.Namespace) -> Path:
    """The file that the model arguments name, fetched if need be."""
    if args.offline:
        go_offline()
    target = getattr(args, "target", None)
    if args.hf_repo is not None:
        if target is not None:
            raise ArgumentError("give a MODEL or -hf, not both")
        return fetch_repository(args.hf_repo, args.hf_file)
    if args.hf_file is not None:
        raise ArgumentError("--hf-file needs -hf OWNER/REPO")
    name = target if target is not None else args.model
    if name is None:
        raise ArgumentError(
            "no model: give -m with a GGUF file or a known name (`pywina list`), "
            "-hf OWNER/REPO:QUANT, or set PYWINA_MODEL"
        )
    if args.offline and name in CATALOG and not cached(CATALOG[name]) and not Path(name).exists():
        raise FetchError(f"{name} was not fetched yet: run `pywina pull {name}` without --offline")
    return resolve(name)


def load_shown(path: Path, **options: Any) -> Model:
    """:func:`pywina.load` with a bar on a terminal, if it takes more than a second."""
    with tqdm(
        total=100, desc="loading", unit="%", delay=1, leave=False, disable=None,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}",
    ) as bar:  # fmt: skip
        return load(path, progress=lambda share: bar.update(100 * share - bar.n), **options)


def load_model(args: argparse.Namespace, sparsity: Sparsity | None = None) -> Model:
    """The model of the arguments. The sparsity arguments, or sparsity, become its defaults."""
    wanted = sparsity_of(args) if sparsity is None else sparsity
    path = model_path(args)
    return load_shown(
        path,
        n_ctx=trained_context(str(path)) if args.ctx == 0 else args.ctx,
        n_threads=args.threads,
        n_batch=args.n_batch,
        sparsity=wanted,
        backend=args.backend,
        n_gpu_layers=None if args.gpu_layers == -1 else args.gpu_layers,
        cache_type_k=args.cache_type_k,
        cache_type_v=args.cache_type_v,
        mem_limit=args.mem_limit,
        resident=args.resident,
    )


def placement(model: Model) -> str:
    """What the model runs on."""
    info = model.info
    cpu = _native.ffi.string(_native.lib.wina_cpu_name()).decode("ascii")
    threads = f"{info.n_threads} thread{'s' if info.n_threads != 1 else ''} ({cpu})"
    if info.backend == "cpu":
        return f"the CPU, {threads}"
    return f"{info.device or info.backend} ({info.gpu_bytes / 1e6:.0f} MB), {threads}"


def dial_of(model: Model) -> str:
    """The sparsity in force, and how it is done."""
    sparsity = model.sparsity
    return f"{sparsity.sparsity:g} ({sparsity.method if sparsity.sparsity else 'dense'})"


def announce(model: Model, dial: str = "") -> None:
    """The first line: what runs where, and at which sparsity. dial: where that is several."""
    info = model.info
    note(
        f"{Path(model.path).name} ({info.architecture}, {info.n_params / 1e6:.0f}M weights) on "
        f"{placement(model)}, {info.n_ctx} tokens of context, sparsity {dial or dial_of(model)}"
    )


def read_text(path: Path) -> str:
    """A text file as it is; bytes that are no UTF-8 become U+FFFD."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def prompt_of(args: argparse.Namespace) -> str | None:
    """What -p or -f gives."""
    if args.file is None:
        return None if args.prompt is None else str(args.prompt)
    if args.prompt is not None:
        raise ArgumentError("give -p or -f, not both")
    return read_text(args.file).removesuffix("\n")


def generate_options(args: argparse.Namespace) -> GenerateOptions:
    options = GenerateOptions(
        max_tokens=None if args.max_tokens == -1 else args.max_tokens,
        temperature=args.temp,
        seed=args.seed,
        stop=args.stop,
        ignore_eog=args.ignore_eog,
    )
    for name in SAMPLER_FIELDS:
        options[name] = getattr(args, name)  # type: ignore[literal-required]
    if args.dry_sequence_breaker is not None:
        options["dry_sequence_breakers"] = [t for t in args.dry_sequence_breaker if t != "none"]
    return options


def pieces(stream: Stream) -> Iterator[Chunk]:
    """The chunks of an answer. A terminal gets a bar while a long prompt is evaluated."""
    with tqdm(
        total=len(stream.prompt), desc="prompt", unit="token", delay=1, leave=False, disable=None
    ) as bar:
        stream.progress = lambda done, _total: bar.update(done - bar.n)
        first = next(stream, None)
        stream.progress = None
    if first is not None:
        yield first
        yield from stream


def print_stream(stream: Stream) -> str:
    """Writes an answer to stdout as it comes, and returns it."""
    parts, answer = [], Answer(markdown=False)
    for chunk in pieces(stream):
        parts.append(chunk.text)
        answer.write(chunk.text)
    answer.end()
    return "".join(parts)


def summary(timings: Timings) -> str:
    """One line for people."""
    return (
        f"{timings.prompt_tokens} prompt tokens at {timings.prefill_tok_s:.1f} tok/s, "
        f"{timings.tokens} tokens at {timings.decode_tok_s:.1f} tok/s, "
        f"kept {timings.kept_fraction:.1%}"
    )

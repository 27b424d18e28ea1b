"""What the commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..api import load
from ..errors import FileError
from ..generation import Stream, Timings
from ..model import Model
from ..params import GenerateOptions
from ..sparsity import Sparsity


def sparsity_of(args: argparse.Namespace) -> Sparsity:
    """What the sparsity arguments say."""
    return Sparsity(
        sparsity=args.sparsity,
        method=args.method,
        mask=args.mask,
        prefill=args.sparse_prefill,
        budget=args.budget,
        norms=args.norms,
        exponent=args.exponent,
        select=args.select,
    )


def load_model(args: argparse.Namespace) -> Model:
    """The model of the arguments. The sparsity arguments become its defaults."""
    return load(
        args.model,
        n_ctx=args.ctx,
        n_threads=args.threads,
        n_batch=args.n_batch,
        sparsity=sparsity_of(args),
    )


def read_text(path: Path) -> str:
    """A text file as it is; bytes that are no UTF-8 become U+FFFD."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error


def generate_options(args: argparse.Namespace) -> GenerateOptions:
    return GenerateOptions(
        max_tokens=None if args.max_tokens == -1 else args.max_tokens,
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repeat_last_n=args.repeat_last_n,
        repeat_penalty=args.repeat_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        seed=args.seed,
        stop=args.stop,
        ignore_eog=args.ignore_eog,
    )


def print_stream(stream: Stream) -> str:
    """Writes an answer to stdout as it comes, and returns it."""
    parts = []
    for chunk in stream:
        parts.append(chunk.text)
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(parts)


def summary(timings: Timings) -> str:
    """One line for people."""
    return (
        f"{timings.prompt_tokens} prompt tokens at {timings.prefill_tok_s:.1f} tok/s, "
        f"{timings.tokens} tokens at {timings.decode_tok_s:.1f} tok/s, "
        f"kept {timings.kept_fraction:.1%}"
    )

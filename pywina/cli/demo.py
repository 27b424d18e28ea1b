"""pywina demo: one question, answered dense and sparse, with the measured figures of both."""

from __future__ import annotations

import argparse
import sys

from .. import _native
from ..generation import Timings
from .common import generate_options, load_model, print_stream

PROMPT = "Explain in a few sentences why the sky is blue."


def main(args: argparse.Namespace) -> int:
    rows: list[tuple[str, Timings]] = []
    with load_model(args) as model:
        info = model.info
        cpu = _native.ffi.string(_native.lib.wina_cpu_name()).decode("ascii")
        print(f"model    {info.name} ({info.architecture}, {info.n_params / 1e6:.0f}M weights)")
        print(f"file     {model.path}")
        print(f"machine  {info.n_threads} threads, {cpu} kernels")
        print(f"prompt   {args.prompt}")
        messages = [{"role": "user", "content": args.prompt}]
        for title, sparsity in (("dense", 0.0), (f"{args.sparsity:.0%} sparse", args.sparsity)):
            print(f"\n--- {title} ---")
            sys.stdout.flush()
            options = generate_options(args) | {"sparsity": sparsity}
            with model.chat(messages, stream=True, **options) as stream:
                print_stream(stream)
                if stream.timings is not None:
                    rows.append((title, stream.timings))
    print(f"\n{'':12} {'tokens/s':>9} {'prompt tokens/s':>16} {'tokens':>7} {'kept':>7}")
    for title, timings in rows:
        print(
            f"{title:12} {timings.decode_tok_s:9.1f} {_prompt_rate(timings):>16} "
            f"{timings.tokens:7} {timings.kept_fraction:7.1%}"
        )
    return 0


def _prompt_rate(timings: Timings) -> str:
    """The speed of the prompt, or "reused" where the run before had evaluated most of it: the rate
    of a token or two would say nothing about prompts."""
    evaluated = round(timings.prefill_s * timings.prefill_tok_s)
    return f"{timings.prefill_tok_s:.1f}" if evaluated > timings.prompt_tokens // 2 else "reused"

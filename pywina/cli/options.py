"""Arguments that several commands have. Names are llama.cpp's where it has the option.

What is not given on the command line comes from the environment (``PYWINA_MODEL``,
``PYWINA_SPARSITY``, ``PYWINA_THREADS`` ...), then from the defaults.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, get_args

from ..errors import ArgumentError
from ..model import Backend, CacheType
from ..params import Params
from ..sparsity import Budget, Mask, Method, Norms, Select

#: flag, field of Params, type
_SAMPLERS: tuple[tuple[str, str, type], ...] = (
    ("--top-k", "top_k", int),
    ("--top-p", "top_p", float),
    ("--min-p", "min_p", float),
    ("--typical", "typical_p", float),
    ("--top-nsigma", "top_n_sigma", float),
    ("--xtc-probability", "xtc_probability", float),
    ("--xtc-threshold", "xtc_threshold", float),
    ("--dynatemp-range", "dynatemp_range", float),
    ("--dynatemp-exp", "dynatemp_exponent", float),
    ("--repeat-last-n", "repeat_last_n", int),
    ("--repeat-penalty", "repeat_penalty", float),
    ("--presence-penalty", "presence_penalty", float),
    ("--frequency-penalty", "frequency_penalty", float),
    ("--dry-multiplier", "dry_multiplier", float),
    ("--dry-base", "dry_base", float),
    ("--dry-allowed-length", "dry_allowed_length", int),
    ("--dry-penalty-last-n", "dry_penalty_last_n", int),
    ("--mirostat", "mirostat", int),
    ("--mirostat-ent", "mirostat_tau", float),
    ("--mirostat-lr", "mirostat_eta", float),
)

#: fields of Params that add_sampling gives arguments to, by their own names
SAMPLER_FIELDS = tuple(name for _, name, _ in _SAMPLERS)


def environment(name: str, default: Any = None) -> Any:
    """A variable's text, which argparse converts and checks like an argument; or the default."""
    return os.environ.get(name) or default


def add_threads(group: Any) -> None:
    group.add_argument(
        "-t", "--threads", type=int, default=environment("PYWINA_THREADS"), metavar="N",
        help="default: $PYWINA_THREADS, else physical cores",
    )  # fmt: skip


def add_model(
    parser: argparse.ArgumentParser, *, default: str | None = None, positional: bool = False
) -> None:
    """Which model, and what it runs on."""
    group = parser.add_argument_group("model")
    if positional:
        group.add_argument("target", nargs="?", metavar="MODEL", help="as with -m")
    group.add_argument(
        "-m",
        "--model",
        default=environment("PYWINA_MODEL", default),
        metavar="MODEL",
        help="a GGUF file or the name of a known model (`pywina list`); "
        + (f"default {default}" if default else "default: $PYWINA_MODEL"),
    )
    group.add_argument(
        "-hf", "-hfr", "--hf-repo", metavar="OWNER/REPO[:QUANT]",
        help="a repository on the Hugging Face hub, fetched on first use; QUANT such as Q4_K_M",
    )  # fmt: skip
    group.add_argument("-hff", "--hf-file", metavar="FILE", help="which file of it")
    group.add_argument("--offline", action="store_true", help="use only what was fetched before")
    add_threads(group)
    group.add_argument("-c", "--ctx-size", "--ctx", dest="ctx", type=int, metavar="N",
                       default=environment("PYWINA_CTX_SIZE"),
                       help="tokens of context; $PYWINA_CTX_SIZE, else at most 4096")  # fmt: skip
    group.add_argument("-b", "--batch-size", "--n-batch", dest="n_batch", type=int, metavar="N",
                       help="prompt tokens per step")  # fmt: skip
    for short, which, what in (("-ctk", "k", "keys"), ("-ctv", "v", "values")):
        group.add_argument(
            short, f"--cache-type-{which}", choices=get_args(CacheType),
            default=environment(f"PYWINA_CACHE_TYPE_{which.upper()}", "f16"),
            help=f"how {what} are kept; default: $PYWINA_CACHE_TYPE_{which.upper()}, else f16",
        )  # fmt: skip
    group.add_argument(
        "--mem-limit", default=environment("PYWINA_MEM_LIMIT"), metavar="SIZE",
        help="fail at once if more memory is needed: bytes, 800M, 1.5G; default: $PYWINA_MEM_LIMIT",
    )  # fmt: skip
    group.add_argument(
        "--resident", default=environment("PYWINA_RESIDENT"), metavar="SIZE",
        help="of a packed file larger than the memory: how much of its layers to keep there; "
        "default: $PYWINA_RESIDENT, else all",
    )  # fmt: skip
    group.add_argument("--backend", choices=get_args(Backend),
                       default=environment("PYWINA_BACKEND", "auto"),
                       help="default: $PYWINA_BACKEND, else auto")  # fmt: skip
    group.add_argument(
        "-ngl", "--gpu-layers", "--n-gpu-layers", dest="gpu_layers", type=int, metavar="N",
        default=environment("PYWINA_GPU_LAYERS"),
        help="how many of the last layers are on GPUs; default: $PYWINA_GPU_LAYERS, else as many "
        "as fit; 0: none",
    )  # fmt: skip


def add_rule(group: Any) -> None:
    """How sparsity is done, without how much."""
    group.add_argument("--method", choices=get_args(Method), default="wina")
    group.add_argument("--mask", choices=get_args(Mask), default="group")
    group.add_argument("--budget", choices=get_args(Budget), default="auto")
    group.add_argument("--norms", choices=get_args(Norms), default="auto")
    group.add_argument("--exponent", type=float, metavar="X", help="of the norms; default: best")
    group.add_argument("--select", choices=get_args(Select), default="topk")
    group.add_argument("--sparse-prefill", action="store_true", help="the prompt is sparse too")


def add_sparsity(parser: argparse.ArgumentParser, *, sparsity: float = 0.0) -> None:
    group = parser.add_argument_group("sparsity")
    group.add_argument(
        "--sparsity",
        type=float,
        default=environment("PYWINA_SPARSITY", sparsity),
        metavar="S",
        help="share of the bytes of the sparsified weights that is skipped, 0 <= S < 1; "
        f"default $PYWINA_SPARSITY, else {sparsity:g}",
    )
    add_rule(group)


def add_sampling(parser: argparse.ArgumentParser, *, n: int | None, temp: float) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument(
        "-n", "--max-tokens", "--predict", "--n-predict", dest="max_tokens", type=int, default=n,
        metavar="N", help=f"default {n}; -1: until the context is full",
    )  # fmt: skip
    group.add_argument(
        "--temp", type=float, default=temp, metavar="T", help=f"0: greedy; default {temp:g}"
    )
    for flag, name, kind in _SAMPLERS:
        default = getattr(Params, name)
        group.add_argument(
            flag, dest=name, type=kind, default=default, metavar="X", help=f"default {default:g}"
        )
    group.add_argument(
        "--dry-sequence-breaker", action="append", metavar="TEXT",
        help="in place of newline, colon, quote and asterisk; may be repeated; none: no breaker",
    )  # fmt: skip
    group.add_argument("-s", "--seed", type=int, metavar="SEED", help="default: a random one")
    group.add_argument("--stop", action="append", metavar="TEXT", help="may be given repeatedly")
    group.add_argument("--ignore-eog", "--ignore-eos", action="store_true",
                       help="go on past the answer's end")  # fmt: skip


def add_prompt(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("-p", "--prompt", metavar="TEXT", help=help)
    parser.add_argument(
        "-f", "--file", type=Path, metavar="FILE",
        help="read it from a file, without one newline at its end",
    )  # fmt: skip
    parser.add_argument("-sys", "--system", "--system-prompt", dest="system", metavar="TEXT",
                        help="system message")  # fmt: skip


def sparsities(text: str) -> list[float]:
    """The numbers of ``0,0.5``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentError(f"--sparsity: {text!r} is no list of numbers") from error

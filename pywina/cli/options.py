"""Arguments that several commands have. Names are llama.cpp's where it has the option.

What is not given on the command line comes from the environment (``PYWINA_MODEL``,
``PYWINA_SPARSITY``, ``PYWINA_THREADS`` ...), then from the defaults.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, get_args

from .._open import Backend, CacheType
from ..errors import ArgumentError
from ..params import Params
from ..sparsity import Budget, Mask, Method, Norms, Select

#: flag, field of Params, type, what it does
_SAMPLERS: tuple[tuple[str, str, type, str], ...] = (
    ("--top-k", "top_k", int, "only the K likeliest tokens; 0: all"),
    ("--top-p", "top_p", float, "only the likeliest that together have this probability; 1: all"),
    ("--min-p", "min_p", float, "none less likely than this share of the likeliest; 0: all"),
    ("--typical", "typical_p", float, "only those of about the expected surprise; 1: all"),
    (
        "--top-nsigma",
        "top_n_sigma",
        float,
        "only so many deviations below the best logit; -1: all",
    ),
    (
        "--xtc-probability",
        "xtc_probability",
        float,
        "how often top choices are left out; 0: off",
    ),
    ("--xtc-threshold", "xtc_threshold", float, "from which probability on they are top choices"),
    ("--dynatemp-range", "dynatemp_range", float, "temperature by entropy, +- this range; 0: off"),
    ("--dynatemp-exp", "dynatemp_exponent", float, "its exponent"),
    ("--repeat-last-n", "repeat_last_n", int, "penalties look so far back; 0: off, -1: all"),
    ("--repeat-penalty", "repeat_penalty", float, "divides logits of tokens that occurred; 1: off"),
    ("--presence-penalty", "presence_penalty", float, "subtracted if a token occurred; 0: off"),
    ("--frequency-penalty", "frequency_penalty", float, "subtracted per occurrence; 0: off"),
    ("--dry-multiplier", "dry_multiplier", float, "penalty of going on with a repetition; 0: off"),
    ("--dry-base", "dry_base", float, "how it grows with the repetition's length"),
    ("--dry-allowed-length", "dry_allowed_length", int, "longer repetitions are lowered"),
    ("--dry-penalty-last-n", "dry_penalty_last_n", int, "it looks so far back; 0: off, -1: all"),
    ("--mirostat", "mirostat", int, "1 or 2 keeps the surprise at --mirostat-ent; 0: off"),
    ("--mirostat-ent", "mirostat_tau", float, "that surprise, in bits"),
    ("--mirostat-lr", "mirostat_eta", float, "how fast it is approached"),
)

#: fields of Params that add_sampling gives arguments to, by their own names
SAMPLER_FIELDS = tuple(name for _, name, _, _ in _SAMPLERS)


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
                       help="tokens of context; 0: the model's own; default: $PYWINA_CTX_SIZE, "
                       "else at most 4096")  # fmt: skip
    group.add_argument("-b", "--batch-size", "--n-batch", dest="n_batch", type=int, metavar="N",
                       help="prompt tokens per step")  # fmt: skip
    for short, which, what in (("-ctk", "k", "keys"), ("-ctv", "v", "values")):
        group.add_argument(
            short, f"--cache-type-{which}", choices=get_args(CacheType), metavar="TYPE",
            default=environment(f"PYWINA_CACHE_TYPE_{which.upper()}", "f16"),
            help=f"how {what} are kept: {', '.join(get_args(CacheType))}; default: "
            f"$PYWINA_CACHE_TYPE_{which.upper()}, else f16",
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
    group.add_argument("--backend", choices=get_args(Backend), metavar="NAME",
                       default=environment("PYWINA_BACKEND", "auto"),
                       help="auto, cpu or cuda; default: $PYWINA_BACKEND, else auto")  # fmt: skip
    group.add_argument(
        "-ngl", "--gpu-layers", "--n-gpu-layers", dest="gpu_layers", type=int, metavar="N",
        default=environment("PYWINA_GPU_LAYERS"),
        help="how many of the last layers are on GPUs; 0: none; -1, and the default without "
        "$PYWINA_GPU_LAYERS: as many as fit",
    )  # fmt: skip


def add_rule(group: Any) -> None:
    """How sparsity is done, without how much."""
    for flag, choices, default, what in (
        ("--method", get_args(Method), "wina", "what is kept: the largest |x| * norm (wina), |x| "
         "(teal), activated gates (cats), all (dense)"),
        ("--mask", get_args(Mask), "group", "chosen once for matrices with one input, or for each"),
        ("--budget", get_args(Budget), "auto", "how bytes are divided; auto: the best there is"),
        ("--norms", get_args(Norms), "auto", "auto: calibrated where the file has them"),
        ("--select", get_args(Select), "topk", "exactly the budget, or all above a calibrated "
         "threshold"),
    ):  # fmt: skip
        group.add_argument(flag, choices=choices, default=default, metavar=flag[2:].upper(),
                           help=f"{', '.join(choices)}: {what}; default {default}")  # fmt: skip
    group.add_argument("--exponent", type=float, metavar="X", help="of the norms; default: best")
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
    for flag, name, kind, what in _SAMPLERS:
        default = getattr(Params, name)
        group.add_argument(
            flag, dest=name, type=kind, default=default, metavar="N" if kind is int else "X",
            help=f"{what}; default {default:g}",
        )  # fmt: skip
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

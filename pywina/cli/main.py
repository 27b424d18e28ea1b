"""Argument parsing and error reporting. Exit codes: 0 success, 1 stopped or failed while running,
2 bad usage or bad input. Text goes to stdout, notes and errors to stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import get_args

from .. import __version__
from ..errors import (
    ArgumentError,
    ContextError,
    FileError,
    FormatError,
    TemplateError,
    UnsupportedError,
    WinaError,
)
from ..params import Params
from ..sparsity import Budget, Mask, Method, Norms, Select
from . import calibrate, chat, convert, demo, eval, fetch, report, run, serve

Handler = Callable[[argparse.Namespace], int]

_BAD_INPUT = (
    ArgumentError,
    ContextError,
    FileError,
    FormatError,
    TemplateError,
    UnsupportedError,
)


def _add_model(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        default=default,
        required=default is None,
        metavar="MODEL",
        help="a GGUF file or the name of a known model (`pywina fetch` lists them)"
        + (f"; default {default}" if default else ""),
    )
    group.add_argument("-t", "--threads", type=int, metavar="N", help="default: physical cores")
    group.add_argument("-c", "--ctx", type=int, metavar="N", help="tokens of context")
    group.add_argument("--n-batch", type=int, metavar="N", help="prompt tokens per step")


def _add_sparsity(parser: argparse.ArgumentParser, *, sparsity: float = 0.0) -> None:
    group = parser.add_argument_group("sparsity")
    group.add_argument(
        "--sparsity",
        type=float,
        default=sparsity,
        metavar="S",
        help="share of the bytes of the sparsified weights that is skipped, 0 <= S < 1; "
        f"default {sparsity:g}",
    )
    group.add_argument("--method", choices=get_args(Method), default="wina")
    group.add_argument("--mask", choices=get_args(Mask), default="group")
    group.add_argument("--budget", choices=get_args(Budget), default="auto")
    group.add_argument("--norms", choices=get_args(Norms), default="auto")
    group.add_argument("--exponent", type=float, metavar="X", help="of the norms; default: best")
    group.add_argument("--select", choices=get_args(Select), default="topk")
    group.add_argument("--sparse-prefill", action="store_true", help="the prompt is sparse too")


def _add_sampling(parser: argparse.ArgumentParser, *, n: int | None, temp: float) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument(
        "-n",
        "--max-tokens",
        type=int,
        default=n,
        metavar="N",
        help=f"default {n}; -1: until the context is full",
    )
    group.add_argument(
        "--temp", type=float, default=temp, metavar="T", help=f"0: greedy; default {temp:g}"
    )
    for flag, name, kind in (
        ("--top-k", "top_k", int),
        ("--top-p", "top_p", float),
        ("--min-p", "min_p", float),
        ("--repeat-last-n", "repeat_last_n", int),
        ("--repeat-penalty", "repeat_penalty", float),
        ("--presence-penalty", "presence_penalty", float),
        ("--frequency-penalty", "frequency_penalty", float),
    ):
        default = getattr(Params, name)
        group.add_argument(
            flag, type=kind, default=default, metavar="X", help=f"default {default:g}"
        )
    group.add_argument("-s", "--seed", type=int, metavar="SEED", help="default: a random one")
    group.add_argument("--stop", action="append", metavar="TEXT", help="may be given repeatedly")
    group.add_argument("--ignore-eog", action="store_true", help="go on past the answer's end")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `handler`."""
    parser = argparse.ArgumentParser(
        prog="pywina",
        description="Run language models from GGUF files, dense or with WINA activation sparsity.",
    )
    parser.add_argument("--version", action="version", version=f"pywina {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, handler: Handler) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(handler=handler)
        return command

    command = add("run", "Continue a prompt.", run.main)
    _add_model(command)
    command.add_argument("-p", "--prompt", metavar="TEXT", help="default: read from stdin")
    command.add_argument(
        "--chat", action="store_true", help="the prompt is a message to a chat model"
    )
    command.add_argument("--system", metavar="TEXT", help="system message; with --chat")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_sampling(command, n=Params.max_tokens, temp=Params.temperature)
    _add_sparsity(command)

    command = add("chat", "Talk to a chat model.", chat.main)
    _add_model(command)
    command.add_argument("--system", metavar="TEXT", help="system message")
    _add_sampling(command, n=-1, temp=Params.temperature)
    _add_sparsity(command)

    command = add(
        "convert", "Store norms and budgets in a file, or rotate its weights.", convert.main
    )
    convert.add_arguments(command)

    command = add("calibrate", "Find budgets, norms and thresholds.", calibrate.main)
    calibrate.add_arguments(command)

    command = add("eval", "Measure what sparsity costs.", eval.main)
    eval.add_arguments(command)

    command = add("report", "A page about one model's sparsity.", report.main)
    report.add_arguments(command)

    command = add("serve", "Answer HTTP requests in OpenAI's form.", serve.main)
    _add_model(command)
    serve.add_arguments(command)
    _add_sparsity(command)

    command = add("fetch", "Fetch known models, or list them.", fetch.main)
    command.add_argument("names", nargs="*", metavar="NAME", help="none: list all")

    command = add("demo", "Answer one question, dense and sparse.", demo.main)
    _add_model(command, default="smollm2-135m")
    command.add_argument("-p", "--prompt", default=demo.PROMPT, metavar="TEXT")
    _add_sampling(command, n=128, temp=0.0)
    _add_sparsity(command, sparsity=0.4)
    return parser


def _fail(text: str, code: int) -> int:
    print(f"pywina: error: {text}", file=sys.stderr)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        handler: Handler = args.handler
        return handler(args)
    except _BAD_INPUT as error:
        return _fail(str(error), 2)
    except WinaError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:
        # The reader has gone. Python flushes stdout once more at exit: let that succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1

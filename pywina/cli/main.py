"""Argument parsing and error reporting. Exit codes: 0 success, 1 stopped or failed while running,
2 bad usage or bad input. Text goes to stdout, notes and errors to stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

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
from . import (
    bench,
    calibrate,
    chat,
    completion,
    convert,
    demo,
    eval,
    inspect,
    pull,
    report,
    run,
    serve,
)
from .options import add_model, add_prompt, add_sampling, add_sparsity

Handler = Callable[[argparse.Namespace], int]

_BAD_INPUT = (
    ArgumentError,
    ContextError,
    FileError,
    FormatError,
    TemplateError,
    UnsupportedError,
)


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
    add_model(command)
    add_prompt(command, "default: read from stdin")
    command.add_argument(
        "--chat", action="store_true", help="the prompt is a message to a chat model"
    )
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_sampling(command, n=Params.max_tokens, temp=Params.temperature)
    add_sparsity(command)

    command = add("chat", "Talk to a chat model.", chat.main)
    add_model(command)
    add_prompt(command, "the first message")
    command.add_argument("--no-markdown", action="store_true",
                         help="show answers as they are; so does NO_COLOR")  # fmt: skip
    add_sampling(command, n=-1, temp=Params.temperature)
    add_sparsity(command)

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
    add_model(command)
    serve.add_arguments(command)
    add_sparsity(command)

    command = add("bench", "Measure prompt and decode speed.", bench.main)
    add_model(command, positional=True)
    bench.add_arguments(command)

    command = add("inspect", "What a file holds, its sparsity and memory.", inspect.main)
    add_model(command, positional=True)
    inspect.add_arguments(command)
    add_sparsity(command)

    command = add("pull", "Fetch models, and print where they are.", pull.main)
    pull.add_arguments(command, names_help="a known model, or OWNER/REPO:QUANT on the hub")

    add("list", "List the known models and those fetched from the hub.", pull.main_list)

    command = add("fetch", "The same as pull; as list without a name.", pull.main_fetch)
    pull.add_arguments(command, names_help="none: list all")

    command = add("completion", "Print a script that completes commands in a shell.",
                  completion.main)  # fmt: skip
    completion.add_arguments(command)

    command = add("demo", "Answer one question, dense and sparse.", demo.main)
    add_model(command, default="smollm2-135m")
    command.add_argument("-p", "--prompt", default=demo.PROMPT, metavar="TEXT")
    add_sampling(command, n=128, temp=0.0)
    add_sparsity(command, sparsity=0.4)
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
    except OSError as error:
        return _fail(str(error), 2)
    except MemoryError:
        return _fail("out of memory", 1)

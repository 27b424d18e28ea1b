"""Argument parsing and error reporting. Exit codes: 0 success, 1 stopped or failed while running,
2 bad usage or bad input. Text goes to stdout, notes and errors to stderr."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

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


_EPILOG = """\
examples:
  pywina run -m smollm2-135m -p "Once upon a time" -n 64 --sparsity 0.4
  pywina chat -m smollm2-135m
  pywina serve -m ./model.gguf

`pywina COMMAND --help` lists the options of a command."""

#: what usage says before "[options]"; other commands take nothing else
_USAGE = {
    "run": "-m MODEL -p TEXT", "chat": "-m MODEL", "serve": "-m MODEL", "bench": "MODEL",
    "inspect": "MODEL", "pull": "NAME", "fetch": "[NAME]", "convert": "IN OUT",
    "calibrate": "MODEL -f TEXT -o OUT", "eval": "MODEL --tasks TASKS --json OUT",
    "report": "MODEL -f TEXT -o DIR", "completion": "SHELL",
}  # fmt: skip


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Names and explanations side by side, as far as the terminal is wide enough."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 100) - 2
        super().__init__(prog, max_help_position=27, width=width)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += 2  # argparse forgets that commands are indented


class _Parser(argparse.ArgumentParser):
    """One whose errors say where help is, and not everything that there is."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}; `{self.prog} --help` says more\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `handler`, and `parser`: its own."""
    parser = _Parser(
        prog="pywina",
        description="Run language models from GGUF files, dense or with WINA activation sparsity.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"pywina {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, handler: Handler) -> argparse.ArgumentParser:
        words = ["pywina", name, _USAGE.get(name, ""), "[options]"]
        command = commands.add_parser(
            name, help=text, description=text, usage=" ".join(filter(None, words)),
            formatter_class=_Formatter,
        )  # fmt: skip
        command.set_defaults(handler=handler, parser=command)
        return command

    command = add("pull", "Fetch models, and print where they are.", pull.main)
    pull.add_arguments(command, names_help="a known model, or OWNER/REPO:QUANT on the hub")

    add("list", "List the known models and those fetched from the hub.", pull.main_list)

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

    command = add("serve", "Answer HTTP requests in OpenAI's form, and show a page.", serve.main)
    add_model(command)
    serve.add_arguments(command)
    add_sparsity(command)

    command = add("inspect", "What a file holds, its sparsity and memory.", inspect.main)
    add_model(command, positional=True)
    inspect.add_arguments(command)
    add_sparsity(command)

    command = add("bench", "Measure prompt and decode speed.", bench.main)
    add_model(command, positional=True)
    bench.add_arguments(command)

    command = add(
        "convert",
        "Make a GGUF file: of a checkpoint, in a smaller type, with norms and budgets, rotated.",
        convert.main,
    )
    convert.add_arguments(command)

    command = add("calibrate", "Find budgets, norms and thresholds.", calibrate.main)
    calibrate.add_arguments(command)

    command = add("eval", "Measure what sparsity costs.", eval.main)
    eval.add_arguments(command)

    command = add("report", "A page about one model's sparsity.", report.main)
    report.add_arguments(command)

    command = add("demo", "Answer one question, dense and sparse.", demo.main)
    add_model(command, default="smollm2-135m")
    command.add_argument("-p", "--prompt", default=demo.PROMPT, metavar="TEXT",
                         help="the question; default: why the sky is blue")  # fmt: skip
    add_sampling(command, n=128, temp=0.0)
    add_sparsity(command, sparsity=0.4)

    command = add("completion", "Print a script that completes commands in a shell.",
                  completion.main)  # fmt: skip
    completion.add_arguments(command)

    command = add("fetch", "The same as pull; as list without a name.", pull.main_fetch)
    pull.add_arguments(command, names_help="none: list all")
    return parser


def _fail(text: str, code: int) -> int:
    print(f"pywina: error: {text}", file=sys.stderr)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return 2
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.parser.error(f"there is no option {unknown[0]}")
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

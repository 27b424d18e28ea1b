"""pywina completion: what a shell needs to complete commands, options, models and files.

shtab writes the script from the parser itself, so nothing here names an option. What an argument
completes to is told by its type and by its name in the help.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from ..hub.catalog import CATALOG

SHELLS = ("bash", "zsh", "fish")

_HELP = """\
bash: pywina completion bash > ~/.local/share/bash-completion/completions/pywina
zsh:  pywina completion zsh > DIR/_pywina, DIR being a folder of $fpath
fish: pywina completion fish > ~/.config/fish/completions/pywina.fish
The shells read it when they start the next time."""

_NAMES = " ".join(sorted(CATALOG))

#: A model is a known name or a file.
_MODEL = {
    "bash": "_pywina_model",
    "zsh": "_pywina_model",
    "fish": f"(string split ' ' '{_NAMES}'; __fish_complete_suffix .gguf)",
}
_PREAMBLE = {
    "bash": f"""\
_pywina_model() {{
  compgen -W "{_NAMES}" -- "$1"
  compgen -f -- "$1"
}}
""",
    "zsh": f"""\
_pywina_model() {{
  _alternative 'names:known model:({_NAMES})' 'files:file:_files'
}}
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _HELP
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script for a shell."""
    for action in _actions(parser):
        if action.metavar == "MODEL" or action.dest in ("source", "names"):
            action.complete = _MODEL  # type: ignore[attr-defined]
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell, preamble=_PREAMBLE)


def main(args: argparse.Namespace) -> int:
    from .main import build_parser  # which knows this command

    print(script(build_parser(), args.shell))
    return 0

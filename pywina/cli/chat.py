"""pywina chat: a conversation on the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys

from ..errors import ContextError
from ..model import Model
from .common import generate_options, load_model, print_stream, summary

_HELP = "Ctrl-C stops an answer, Ctrl-D ends the conversation, /new starts over."


def _answer(model: Model, messages: list[dict[str, str]], args: argparse.Namespace) -> str | None:
    """Prints the answer and returns it; None if it was stopped or did not fit."""
    try:
        with model.chat(messages, stream=True, **generate_options(args)) as stream:
            text = print_stream(stream)
            if sys.stderr.isatty() and stream.timings is not None:
                print(f"[{summary(stream.timings)}]", file=sys.stderr)
            return text
    except KeyboardInterrupt:
        print("\n[stopped]", file=sys.stderr)
    except ContextError as error:
        print(f"pywina: {error}; /new starts over", file=sys.stderr)
    return None


def main(args: argparse.Namespace) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() a history)
    first = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(first)
    interactive = sys.stdin.isatty()
    with load_model(args) as model:
        if interactive:
            print(_HELP, file=sys.stderr)
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return 0
            if not line:
                continue
            if line == "/new":
                messages = list(first)
                continue
            answer = _answer(model, [*messages, {"role": "user", "content": line}], args)
            if answer is not None:
                messages.append({"role": "user", "content": line})
                messages.append({"role": "assistant", "content": answer})

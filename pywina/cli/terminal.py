"""Lines that somebody types: history, several lines in one message, colours where they are wanted.

The history is ``pywina/history`` in ``$XDG_STATE_HOME`` or ``~/.local/state``, for its owner's eyes
alone; where it cannot be kept, there is none.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

from .markdown import Markdown, printable

_QUOTES = '"""'
_MAX_HISTORY = 1000


def state_dir() -> Path:
    """Where this user's programs keep what is worth keeping and no configuration."""
    given = os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return base / "pywina"


def wants_color(stream: TextIO) -> bool:
    """True on a terminal, unless NO_COLOR is set (https://no-color.org) or it cannot."""
    return (
        stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def dim(text: str) -> str:
    """For notes on stderr."""
    return f"\x1b[2m{text}\x1b[0m" if wants_color(sys.stderr) else text


class Answer:
    """Where an answer goes: to a terminal, markdown as colours and nothing that steers it; into a
    file or a pipe, as it is."""

    def __init__(self, *, markdown: bool = True) -> None:
        self._markdown: Markdown | None = None
        self._terminal = sys.stdout.isatty()
        if markdown and wants_color(sys.stdout):
            width = lambda: shutil.get_terminal_size().columns  # noqa: E731
            self._markdown = Markdown(sys.stdout.write, width)

    def write(self, text: str) -> None:
        if self._markdown is not None:
            self._markdown.feed(text)
        else:
            sys.stdout.write(printable(text) if self._terminal else text)
        sys.stdout.flush()

    def end(self) -> None:
        if self._markdown is not None:
            self._markdown.finish()
        sys.stdout.write("\n")
        sys.stdout.flush()


class Lines:
    """Messages from stdin: with prompts and a history on a terminal, plainly from a pipe."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text become U+FFFD
        self._readline: Any = None
        self._history: Path | None = None
        # Prompts belong to the terminal, not to what stdout is redirected into.
        self._shown = self.interactive and sys.stdout.isatty()
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline

                self._readline = readline
                self._open_history()

    def _open_history(self) -> None:
        path = state_dir() / "history"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._readline.read_history_file(path)
        except (OSError, RuntimeError):
            return
        self._readline.set_history_length(_MAX_HISTORY)
        self._history = path

    def close(self) -> None:
        """Shortens the history to its limit."""
        if self._history is not None:
            with contextlib.suppress(OSError):
                self._readline.write_history_file(self._history)

    def _keep(self) -> None:
        """The line just read goes to the file at once: a closed window loses nothing."""
        append = getattr(self._readline, "append_history_file", None)
        if self._history is not None and append is not None:
            with contextlib.suppress(OSError):
                append(1, self._history)

    def _line(self, prompt: str) -> str:
        if not self.interactive:
            return input()
        if not self._shown:
            print(prompt, end="", file=sys.stderr, flush=True)
            line = input()
        else:
            # \x01 and \x02 tell readline what takes no room.
            bold = f"\x01\x1b[1;32m\x02{prompt}\x01\x1b[0m\x02"
            line = input(bold if wants_color(sys.stdout) and self._readline else prompt)
        if line.strip():
            self._keep()
        return line

    def read(self) -> str:
        """The next message. A backslash at a line's end goes on with the next line, and so does
        everything between triple quotes. Raises EOFError at the end."""
        line = self._line("> ")
        if line.lstrip().startswith(_QUOTES):
            return self._quoted(line.lstrip()[len(_QUOTES) :])
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            try:
                line = self._line(". ")
            except EOFError:
                line = ""
        return "\n".join([*lines, line]).strip()

    def _quoted(self, line: str) -> str:
        lines = []
        while not line.rstrip().endswith(_QUOTES):
            lines.append(line)
            try:
                line = self._line(". ")
            except EOFError:
                return "\n".join(lines).strip("\n")
        return "\n".join([*lines, line.rstrip()[: -len(_QUOTES)]]).strip("\n")

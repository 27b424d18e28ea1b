"""Markdown on a terminal while it is still being written.

Text goes out as soon as it is clear what it is: a word at its end, emphasis, code and links when
they are closed, which must be in their line and within a few hundred characters; if they are not,
their marks are shown as they came. Nothing that was written is ever taken back, so no cursor moves
and nothing depends on the terminal beyond colours. However the text is cut into pieces, the result
is the same.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable

#: SGR parameters that are in force for a piece of text
Style = tuple[int, ...]

BOLD, DIM, ITALIC, UNDERLINE, CYAN = 1, 2, 3, 4, 36

#: Emphasis, code and links are at most this long.
_SPAN = 300

#: What a line may turn into while only this much of it is there.
_UNDECIDED = re.compile(r" *(#{0,6}|>?|([-*_+] *)*|\d{0,9}[.)]?|`*|~*)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_RULE = re.compile(r" {0,3}([-*_])( *\1){2,} *")
_HEADING = re.compile(r" {0,3}(#{1,6}) +")
_QUOTE = re.compile(r" {0,3}> ?")
_BULLET = re.compile(r"( *)[-*+] +")
_NUMBER = re.compile(r" *\d{1,9}[.)] +")
_LINK = re.compile(r"!?\[([^\[\]\n]+)\]\(([^()\s]*)\)")
_MAYBE_WIDE = re.compile(r"([\u1100-\U0003ffff])")
_PIECES = re.compile(r" +|[^ ]+")


_CONTROLS = {"\t": "    ", "\r": ""}


def printable(text: str) -> str:
    """The text without characters that steer a terminal, which a model must not do."""
    return "".join(
        c if c == "\n" or unicodedata.category(c) != "Cc" else _CONTROLS.get(c, "\ufffd")
        for c in text
    )


def _cells(text: str) -> int:
    """How many columns it takes."""
    return sum(
        0 if unicodedata.combining(c) or unicodedata.category(c) == "Cf" else 1 + _is_wide(c)
        for c in text
    )


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"


def _run(text: str, start: int) -> int:
    """Length of the run of one character that begins at start."""
    return len(text) - start - len(text[start:].lstrip(text[start]))


class _Paper:
    """Breaks lines between words at the terminal's width."""

    def __init__(self, write: Callable[[str], object], width: Callable[[], int]) -> None:
        self._write, self._get_width = write, width
        self._column, self._width = 0, width()
        self._word: list[tuple[Style, str]] = []
        self._gap: tuple[Style, str] = ((), "")
        self.indent = 0  # of the lines that go on with this one

    def _out(self, style: Style, text: str) -> None:
        if style and text:
            text = f"\x1b[{';'.join(map(str, style))}m{text}\x1b[0m"
        self._write(text)

    def flush(self) -> None:
        """Writes the word that is held."""
        if not self._word:
            return
        size = sum(_cells(text) for _, text in self._word)
        if self._column + len(self._gap[1]) + size > self._width and self._column > self.indent:
            self._write("\n" + " " * self.indent)
            self._column = self.indent
        else:
            self._out(*self._gap)
            self._column += len(self._gap[1])
        for style, parts in itertools.groupby(self._word, lambda part: part[0]):
            self._out(style, "".join(text for _, text in parts))
        self._column += size
        self._word, self._gap = [], ((), "")

    def put(self, text: str, style: Style = ()) -> None:
        """Text without newlines."""
        for piece in _PIECES.findall(text):
            if piece[0] == " ":
                self.flush()
                self._gap = (style, self._gap[1] + piece)
                continue
            for part in (
                re.split(r"([\u1100-\U0003ffff])", piece) if not piece.isascii() else [piece]
            ):
                wide = bool(part) and _is_wide(part[0])  # lines break between these, too
                if wide:
                    self.flush()
                if part:
                    self._word.append((style, part))
                if wide:
                    self.flush()

    def verbatim(self, text: str, style: Style = ()) -> None:
        """Text that is not broken, newlines included."""
        self.flush()
        self._out(*self._gap)
        self._gap = ((), "")
        self._out(style, text)
        self._column += _cells(text)

    def newline(self) -> None:
        self.flush()
        self._write("\n")
        self._column, self._gap, self.indent = 0, ((), ""), 0
        self._width = self._get_width()


class Markdown:
    """Renders what is fed to it. write: gets text with colours; width: asked at every line."""

    def __init__(self, write: Callable[[str], object], width: Callable[[], int]) -> None:
        self._paper = _Paper(write, width)
        self._text = ""  # not decided yet
        self._at_start = True  # of a line
        self._fence = ""  # what closes the code block that this is
        self._style: Style = ()  # of the line
        self._before = " "  # the character before _text

    def feed(self, text: str) -> None:
        self._text += printable(text)
        while self._step(done=False):
            pass

    def finish(self) -> None:
        """The text is complete. A newline is not added."""
        while self._text and self._step(done=True):
            pass
        self._paper.flush()

    def _take(self, n: int) -> str:
        """The next n characters."""
        taken, self._text = self._text[:n], self._text[n:]
        self._before = taken[-1:] or self._before
        return taken

    def _step(self, done: bool) -> bool:
        """Goes on by one piece; False if that needs more text."""
        line, newline, _ = self._text.partition("\n")
        if self._at_start:
            begin = self._begin_code_line if self._fence else self._begin_line
            self._at_start = not begin(line, bool(newline) or done)
            return not self._at_start
        if not self._text:
            return False
        if self._text[0] == "\n":
            self._end_line()
            return True
        if self._fence:
            self._paper.verbatim(self._take(len(line)), (CYAN,))
            return True
        n = self._inline(line, self._before, self._style, bool(newline) or done)
        self._take(n)
        return n > 0

    def _end_line(self) -> None:
        self._take(1)
        self._paper.newline()
        self._style, self._at_start, self._before = (), True, " "

    # ---- how a line begins: False if that cannot be told yet ------------------------------------

    def _begin_code_line(self, line: str, whole: bool) -> bool:
        mark = line.strip(" ")
        if not whole and mark == self._fence[0] * len(mark):
            return False
        if whole and len(mark) >= len(self._fence) and mark == self._fence[0] * len(mark):
            self._paper.verbatim(self._take(len(line)), (DIM,))
            self._fence = ""
        return True

    def _begin_line(self, line: str, whole: bool) -> bool:
        if not whole and (_UNDECIDED.fullmatch(line) or _FENCE.match(line)):
            return False
        if fence := _FENCE.fullmatch(line):
            if "`" in fence[2] and fence[1][0] == "`":
                return True  # code in a line, with three marks
            self._paper.verbatim(self._take(len(line)), (DIM,))
            self._fence = fence[1]
        elif _RULE.fullmatch(line):
            self._take(len(line))
            self._paper.verbatim("─" * 40, (DIM,))
        elif heading := _HEADING.match(line):
            self._take(heading.end())
            self._style = (BOLD, UNDERLINE) if len(heading[1]) == 1 else (BOLD,)
        elif quote := _QUOTE.match(line):
            self._take(quote.end())
            self._begin_with("│ ", (DIM,))
        elif bullet := _BULLET.match(line):
            self._take(bullet.end())
            self._begin_with(bullet[1] + "• ")
        elif number := _NUMBER.match(line):
            self._begin_with(self._take(number.end()))
        else:
            self._begin_with(self._take(len(line) - len(line.lstrip(" "))))
        return True

    def _begin_with(self, text: str, style: Style = ()) -> None:
        self._paper.verbatim(text, style)
        self._paper.indent, self._before = len(text), " "

    # ---- inside a line -------------------------------------------------------------------------

    def _inline(self, line: str, before: str, style: Style, whole: bool) -> int:
        """Writes what is clear of the rest of a line, and says how much that was.
        whole: no more of the line will come."""
        i = 0
        while i < len(line):
            plain = re.match(r"[^`*_\\!\[]+", line[i:])
            if plain:
                self._paper.put(plain[0], style)
                i += plain.end()
                continue
            n = self._span(line[i:], line[i - 1] if i else before, style, whole)
            if n == 0:
                break
            i += n
        return i

    def _span(self, line: str, before: str, style: Style, whole: bool) -> int:
        """The same for what begins with a character that may mean something; 0: more is needed."""
        mark, n = line[0], _run(line, 0)
        enough = whole or len(line) > _SPAN + n + 1  # what follows changes nothing
        if n == len(line) and not whole:
            return 0
        if mark == "\\":
            if len(line) > 1 and line[1] in "\\`*_{}[]()#+-.!|<>~":
                self._paper.put(line[1], style)
                return 2
        elif mark in "![":
            link = _LINK.match(line[:_SPAN])
            if link:
                self._paper.put(link[1], (*style, UNDERLINE))
                self._paper.put(f" ({link[2]})", (*style, DIM))
                return link.end()
            if not enough and re.fullmatch(r"!?(\[[^\[\]]*(\]|\]\([^()\s]*)?)?", line):
                return 0
            n = 1
        elif mark == "`":
            end = self._closing(line, n, lambda _: True)
            if end == len(line) and not whole:
                return 0  # the run may still grow
            if end:
                code = line[n : end - n]
                self._paper.put(code.strip(" ") or code, (*style, CYAN))
                return end
            if not enough:
                return 0
        else:
            opens = n < 4 and n < len(line) and line[n] != " " and not (
                mark == "_" and before.isalnum()
            )  # fmt: skip
            end = opens and self._closing(line, n, lambda at: self._closes(line, at, n))
            if end == len(line) and not whole:
                return 0
            if end:
                inner = {1: (ITALIC,), 2: (BOLD,), 3: (BOLD, ITALIC)}[n]
                self._inline(line[n : end - n], mark, (*style, *inner), whole=True)
                return end
            if opens and not enough:
                return 0
        self._paper.put(line[:n], style)
        return n

    @staticmethod
    def _closing(line: str, size: int, fits: Callable[[int], bool]) -> int:
        """Where the span ends that begins with a run of this size, or 0."""
        i = size
        while 0 < (i := line.find(line[0], i)) < _SPAN:
            n = _run(line, i)
            if n == size and fits(i):
                return i + n
            i += n
        return 0

    @staticmethod
    def _closes(line: str, at: int, n: int) -> bool:
        """Whether the run of n at this place can end an emphasis."""
        after = line[at + n : at + n + 1]
        return line[at - 1] != " " and not (line[at] == "_" and after.isalnum())

"""Markdown on a terminal: what it looks like, and that pieces and width change nothing else."""

from __future__ import annotations

import random
import re

import pytest

from pywina.cli.markdown import Markdown

_SGR = re.compile(r"\x1b\[([0-9;]*)m")


def render(text: str, width: int = 80, cuts: list[int] | None = None) -> str:
    """With styles as <1;3>...</>."""
    parts: list[str] = []
    markdown = Markdown(parts.append, lambda: width)
    for start, end in zip([0, *(cuts or [])], [*(cuts or []), len(text)], strict=True):
        markdown.feed(text[start:end])
    markdown.finish()
    return joined(_SGR.sub(lambda m: "</>" if m[1] == "0" else f"<{m[1]}>", "".join(parts)))


def joined(text: str) -> str:
    """Without the seams inside of one style."""
    previous = None
    while previous != text:
        previous = text
        text = re.sub(r"(<[0-9;]+>)((?:(?!</>|<[0-9;]+>).)*)</>\1", r"\1\2", text, flags=re.DOTALL)
    return text


def plain(text: str) -> str:
    return re.sub(r"<[0-9;]*>|</>", "", text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a **bold** word", "a <1>bold</> word"),
        ("*it* and _it_", "<3>it</> and <3>it</>"),
        ("***both***", "<1;3>both</>"),
        ("**a `b` c**", "<1>a </><1;36>b</><1> c</>"),
        ("`x * y * z`", "<36>x * y * z</>"),
        ("``a`b``", "<36>a`b</>"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("snake_case_name", "snake_case_name"),
        ("f(*args, **kwargs)", "f(*args, **kwargs)"),
        ("never **closed", "never **closed"),
        ("never `closed", "never `closed"),
        ("a\\*b\\*", "a*b*"),
        ("# One\n## Two\ntext", "<1;4>One</>\n<1>Two</>\ntext"),
        ("#hashtag", "#hashtag"),
        ("- a\n* b\n  + c", "• a\n• b\n  • c"),
        ("1. a\n2) b", "1. a\n2) b"),
        ("> said", "<2>│ </>said"),
        ("[here](http://a.b/c)", "<4>here</><2> (http://a.b/c)</>"),
        ("[x] and [y](z", "[x] and [y](z"),
        ("***", f"<2>{'─' * 40}</>"),
        ("```python\nx = a*b*c  # **no**\n```\n**yes**",
         "<2>```python</>\n<36>x = a*b*c  # **no**</>\n<2>```</>\n<1>yes</>"),
        ("~~~\n```\n~~~\nz", "<2>~~~</>\n<36>```</>\n<2>~~~</>\nz"),
        ("```\nnever closed", "<2>```</>\n<36>never closed</>"),
        ("| a | b |\n|---|---|", "| a | b |\n|---|---|"),
        ("bad \x1b[2J\x07\x9b thing", "bad \ufffd[2J\ufffd\ufffd thing"),
    ],
)  # fmt: skip
def test_what_it_looks_like(text: str, shown: str) -> None:
    assert render(text) == shown
    letters = list(range(1, len(text)))
    assert render(text, cuts=letters) == shown


def test_pieces_do_not_matter() -> None:
    """Random texts of marks, words and line ends, cut at random places."""
    rng = random.Random(1)
    alphabet = ["*", "**", "_", "`", "```", "~~~", "\n", "\n", " ", " ", "[", "](", ")", "\\", "# ",
                "- ", "> ", "1. ", "word", "x", "日本", "é", "!"]  # fmt: skip
    for _ in range(400):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(80)))
        width = rng.choice([10, 80])
        places = range(1, len(text))
        cuts = sorted(rng.sample(places, min(rng.randrange(20), len(places))))
        assert render(text, width, cuts) == render(text, width), text


def test_long_spans_are_not_waited_for() -> None:
    text = "**" + "word " * 200
    for cuts in ([], list(range(1, len(text)))):
        assert plain(render(text, 10_000, cuts)).rstrip() == text.rstrip()
    parts: list[str] = []
    markdown = Markdown(parts.append, lambda: 80)
    markdown.feed(text)
    assert "word" in "".join(parts)


def test_words_are_shown_as_they_end() -> None:
    parts: list[str] = []
    markdown = Markdown(parts.append, lambda: 80)
    markdown.feed("one two thr")
    assert "".join(parts) == "one two"
    markdown.feed("ee ")
    assert "".join(parts) == "one two three"


def test_lines_break_between_words() -> None:
    words = " ".join(f"word{i}" for i in range(40))
    for text, indent in ((words, 0), ("- " + words, 2), ("10. " + words, 4)):
        lines = plain(render(text, 30)).split("\n")
        assert len(lines) > 5 and all(len(line) <= 30 for line in lines)
        assert all(line.startswith(" " * indent + "word") for line in lines[1:])
        assert " ".join(lines).split()[-40:] == words.split()
    assert plain(render("日本語" * 20, 20)).split("\n")[0] == "日本語日本語日本語日"
    assert plain(render("x" * 50, 20)) == "x" * 50

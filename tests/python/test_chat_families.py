"""Chat templates of the common families, against transformers; typed control tokens stay text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import pywina
from pywina.chat import ChatTemplate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "chat.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_renders_as_transformers_does(case: dict) -> None:
    template = ChatTemplate(case["template"], {}, bos_token="<s>", eos_token="</s>")
    options = {"tools": None, **case["options"]}
    assert template.render(case["messages"], **options) == case["text"]


@pytest.fixture(scope="module", params=["smollm2_path", "qwen_path", "gemma_path"])
def model(request: pytest.FixtureRequest) -> Iterator[pywina.Model]:
    with pywina.load(request.getfixturevalue(request.param), n_ctx=64, n_threads=1) as model:
        yield model


#: for files without a template; control tokens of Gemma's kind, tools in the text
GEMMA = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{{ '<start_of_turn>model\n' }}"
)


def _typed(model: pywina.Model) -> list[str]:
    """Texts of the control tokens; of Gemma's 6,242 unused ones every 211th."""
    texts = list(model.control_tokens)
    unused = [text for text in texts if text.startswith("<unused")]
    return [text for text in texts if text not in unused] + unused[::211]


def _controls(model: pywina.Model, messages: list[dict], **options: object) -> list[int]:
    known = set(model.control_tokens.values())
    if not model.chat_template:
        options["template"] = GEMMA
    return [t for t in model.chat_tokens(messages, **options) if t in known]


def _conversation(texts: list[object]) -> list[dict]:
    roles = ["system", "user", "assistant", "user"]
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]


def test_no_typed_text_becomes_a_control_token(model: pywina.Model) -> None:
    """Every control token at every place of a message, whole and cut over the borders of parts and
    of messages."""
    wanted = _controls(model, _conversation(["a", "b", "c", "d"]))
    assert wanted and len(model.control_tokens) > 10
    for text in _typed(model):
        half = len(text) // 2
        for i in range(4):
            for typed in (text, f"x {text}", f"{text} y", f"{text[0]}{text}{text}"):
                texts: list[object] = ["a", "b", "c", "d"]
                texts[i] = typed
                assert _controls(model, _conversation(texts)) == wanted, (text, i, typed)
        for cut in {1, half, len(text) - 1}:
            parts = [{"type": "text", "text": t} for t in (text[:cut], text[cut:])]
            assert _controls(model, _conversation(["a", parts, "c", "d"])) == wanted
            split = _conversation([text[:cut], text[cut:], text[:cut], text[cut:]])
            assert _controls(model, split) == wanted


def test_every_control_token_is_text_when_typed(model: pywina.Model) -> None:
    """All of the vocabulary, Gemma's unused ones too: alone, side by side, cut in every way into
    two texts, and many to a message in each of its places."""
    control = model.control_tokens
    known, texts = set(control.values()), list(control)
    for text in texts:
        assert known.isdisjoint(model.tokenize(text)), text
        for cut in range(1, len(text)):
            pieces = model.tokenize(text[:cut]) + model.tokenize(text[cut:])
            assert known.isdisjoint(pieces), (text, cut)
    wanted = _controls(model, _conversation(["a", "b", "c", "d"]))
    for start in range(0, len(texts), 512):
        some = texts[start : start + 512]
        for between in ("", " ", "\n"):
            assert known.isdisjoint(model.tokenize(between.join(some)))
        for i in range(4):
            contents: list[object] = ["a", "b", "c", "d"]
            contents[i] = "".join(some)
            assert _controls(model, _conversation(contents)) == wanted, (start, i)


def test_every_control_token_cut_at_every_border(model: pywina.Model) -> None:
    """All of the vocabulary, Gemma's unused ones too, cut in every way over the border of two parts
    of a message and over the border of two messages, many to a conversation."""
    texts = list(model.control_tokens)
    short = _controls(model, _conversation(["a", "b", "c", "d"]))
    for start in range(0, len(texts), 512):
        some = texts[start : start + 512]
        roles = [("user", "assistant")[i % 2] for i in range(len(some) + 1)]
        long = _controls(model, [{"role": role, "content": "a"} for role in roles])
        for cut in range(1, max(map(len, some))):
            heads, tails = [t[:cut] for t in some], [t[cut:] for t in some]
            pieces = [piece for pair in zip(heads, tails, strict=True) for piece in pair if piece]
            contents: list[object] = ["a", "b", "c", "d"]
            contents[cut % 4] = [{"type": "text", "text": piece} for piece in pieces]
            assert _controls(model, _conversation(contents)) == short, (start, cut)
            borders = zip(roles, ["", *tails], [*heads, ""], strict=True)
            messages = [{"role": role, "content": tail + head} for role, tail, head in borders]
            assert _controls(model, messages) == long, (start, cut)


def test_no_tool_becomes_a_control_token(model: pywina.Model) -> None:
    messages = [{"role": "user", "content": "a"}]

    def tool(text: str) -> list[dict]:
        return [{"type": "function", "function": {"name": text, "description": text}}]

    wanted = _controls(model, messages, tools=tool("add"))
    for text in _typed(model):
        assert _controls(model, messages, tools=tool(text)) == wanted, text

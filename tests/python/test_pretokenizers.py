"""What tokenizer.json says of its pre-tokenizer becomes llama.cpp's name, or is refused.

tests/golden/pretokenizers.json holds the descriptions as Hugging Face's `tokenizers` writes them,
of the pre-tokenizers of that name whose words test_pretok.c compares
(tools/make_tokenizer_golden.py).
"""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path

import pytest

from pywina.convert.pretokenizers import name_of
from pywina.errors import UnsupportedError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "pretokenizers.json").read_text())
#: where another name has the same expression, that one
SAME = {"starcoder": "smollm", "bailingmoe": "qwen2"}
WHOLE_WORDS = {"llama-bpe": True, "tekken": True}
REFUSED = {"falcon", "bloom", "viking", "minicpm5", "seed-coder", "deepseek-llm"}


def content(name: str, **model: object) -> dict:
    return {"pre_tokenizer": copy.deepcopy(GOLDEN[name]), "model": {"type": "BPE", **model}}


@pytest.mark.parametrize("name", GOLDEN)
def test_names(name: str) -> None:
    described = content(name, ignore_merges=WHOLE_WORDS.get(name, False))
    if name in REFUSED:
        with pytest.raises(UnsupportedError, match="pre-tokenizer"):
            name_of(described)
    else:
        assert name_of(described) == SAME.get(name, name)


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - REFUSED))
def test_every_letter_counts(name: str) -> None:
    """A description that differs anywhere is another one, known or refused, never this one."""
    own = WHOLE_WORDS.get(name, False)
    wanted = name_of(content(name, ignore_merges=own))
    steps = GOLDEN[name]["pretokenizers"]
    changed = 0
    for i, step in enumerate(steps):
        expression = (step.get("pattern") or {}).get("Regex", "")
        for at in range(len(expression)):
            other = content(name, ignore_merges=own)
            pattern = other["pre_tokenizer"]["pretokenizers"][i]["pattern"]
            pattern["Regex"] = expression[:at] + expression[at + 1 :]
            with contextlib.suppress(UnsupportedError):
                assert name_of(other) != wanted, (i, at)
            changed += 1
    assert changed > 20
    for i in range(len(steps) - 1):
        other = content(name, ignore_merges=own)
        del other["pre_tokenizer"]["pretokenizers"][i]
        with contextlib.suppress(UnsupportedError):
            assert name_of(other) != wanted


def test_byte_level_with_its_own_expression() -> None:
    """GPT-2 and its kin leave the expression to ByteLevel, whose default is to have one."""
    level = {"type": "ByteLevel", "add_prefix_space": False}
    digits = {"type": "Digits", "individual_digits": True}
    assert name_of({"pre_tokenizer": level}) == "gpt-2"
    assert name_of({"pre_tokenizer": level | {"use_regex": True}}) == "gpt-2"
    sequence = {"type": "Sequence", "pretokenizers": [digits, level]}
    assert name_of({"pre_tokenizer": sequence}) == "smollm"


def test_newlines_written_out() -> None:
    """DeepSeek's file has line ends in the expression where others have escapes."""
    described = content("deepseek-v3")
    for step in described["pre_tokenizer"]["pretokenizers"][:-1]:
        step["pattern"]["Regex"] = step["pattern"]["Regex"].replace(r"\r\n", "\r\n")
    assert described != content("deepseek-v3")
    assert name_of(described) == "deepseek-v3"


def test_what_is_removed() -> None:
    """Some write the same as "what does not match is removed"."""
    described = content("gpt-4o")
    described["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    assert name_of(described) == "gpt-4o"
    described["pre_tokenizer"]["pretokenizers"][0]["invert"] = False
    with pytest.raises(UnsupportedError, match="step"):
        name_of(described)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        (None, "not understood"), ([], "not understood"), ({}, "step"),
        ({"pretokenizers": [3]}, "not understood"), ({"pretokenizers": []}, "not understood"),
        ({"type": "ByteLevel"}, "step"),
        ({"type": "ByteLevel", "add_prefix_space": True}, "step"),
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}, "is not known"),
        ({"type": "Digits", "individual_digits": False}, "step"),
        ({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}, "step"),
    ],
)  # fmt: skip
def test_refused(pre: object, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        name_of({"pre_tokenizer": pre})


@pytest.mark.parametrize(("name", "whole"), [("qwen2", True), ("gpt-4o", True), ("tekken", False)])
def test_words_taken_whole_or_not(name: str, whole: bool) -> None:
    with pytest.raises(UnsupportedError, match=f"ignore_merges {whole}"):
        name_of(content(name, ignore_merges=whole))
    assert name_of(content("llama-bpe", ignore_merges=False)) == "dbrx"
    assert name_of(content("dbrx", ignore_merges=True)) == "llama-bpe"


@pytest.mark.parametrize(("name", "whole"), [("gpt-4o", True), ("qwen2", True), ("tekken", False)])
def test_words_that_merges_make_anyway(name: str, whole: bool) -> None:
    """gpt-oss's file says that words are taken whole; its merges make each of them."""
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "<|end|>": 5}
    added = [{"id": 5, "content": "<|end|>", "special": True}]

    def described(merges: object, **more: object) -> dict:
        own = content(name, ignore_merges=whole, vocab=vocab | more, merges=merges)
        return own | {"added_tokens": added}

    assert name_of(described(["a b", "ab c"])) == name
    assert name_of(described([["a", "b"], ["ab", "c"]])) == name
    # "b c" comes first and leaves "a bc"; nothing makes "ca"; merges that are none.
    wrong = [described(["b c", "a b", "ab c"]), described(["a b", "ab c"], ca=6), described(7)]
    for other in [*wrong, described(["a b c"]), described(None)]:
        with pytest.raises(UnsupportedError, match=f"ignore_merges {whole}"):
            name_of(other)

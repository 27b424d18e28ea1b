"""The tasks: where their data is, what is asked, and how an answer is judged.

Prompts and scores are lm-eval's (its zero-shot defaults): the choice with the largest summed log
likelihood (acc), or the largest per byte of its text (acc_norm). GSM8K takes its examples from the
end of the test file, because the training file is not part of our data; those are not asked.
"""

from __future__ import annotations

import bz2
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileError, FormatError

N_SHOT = 4  # examples in a GSM8K prompt


@dataclass(frozen=True)
class Choice:
    """One question with several answers. A context per answer, since WinoGrande's differ."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    lengths: tuple[int, ...]  # bytes of the answers, for acc_norm
    gold: int


@dataclass(frozen=True)
class Question:
    """A prompt for generation, what ends the answer, and the number that is right."""

    prompt: str
    stop: tuple[str, ...]
    answer: str


Item = Choice | Question


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        text = (bz2.decompress(data) if path.suffix == ".bz2" else data).decode("utf-8")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    return text.splitlines()


def _choice(context: str, choices: Sequence[str], gold: int) -> Choice:
    lengths = tuple(len(choice.encode("utf-8")) for choice in choices)
    continuations = tuple(f" {choice}" for choice in choices)
    return Choice((context,) * len(choices), continuations, lengths, gold)


def _hellaswag(folder: Path) -> list[Item]:
    lines = _lines(folder / "hellaswag" / "hellaswag_val_full.txt.bz2")
    groups = [lines[i : i + 6] for i in range(0, len(lines) - 5, 6)]
    return [_choice(group[0], group[2:], int(group[1])) for group in groups]


def _piqa(folder: Path) -> list[Item]:
    labels = _lines(folder / "piqa" / "valid-labels.lst")
    docs = map(json.loads, _lines(folder / "piqa" / "valid.jsonl"))
    return [
        _choice(f"Question: {doc['goal']}\nAnswer:", (doc["sol1"], doc["sol2"]), int(label))
        for doc, label in zip(docs, labels, strict=True)
    ]


def _winogrande(folder: Path) -> list[Item]:
    items: list[Item] = []
    for doc in map(json.loads, _lines(folder / "winogrande" / "dev.jsonl")):
        before, after = doc["sentence"].split("_", 1)
        contexts = (before + doc["option1"], before + doc["option2"])
        ending = f" {after.strip()}"
        items.append(Choice(contexts, (ending, ending), (1, 1), int(doc["answer"]) - 1))
    return items


def _arc_easy(folder: Path) -> list[Item]:
    docs = map(json.loads, _lines(folder / "arc" / "arc_easy_test.jsonl"))
    return [
        _choice(f"Question: {doc['question']}\nAnswer:", doc["choices"], doc["gold"])
        for doc in docs
    ]


def _gsm8k(folder: Path) -> list[Item]:
    docs = [json.loads(line) for line in _lines(folder / "gsm8k" / "test.jsonl")]
    asked, shown = docs[:-N_SHOT], docs[-N_SHOT:]
    shots = "".join(f"Question: {doc['question']}\nAnswer: {doc['answer']}\n\n" for doc in shown)
    return [
        Question(
            f"{shots}Question: {doc['question']}\nAnswer:",
            ("Question:", "</s>", "<|im_end|>"),
            final_number(doc["answer"]) or "",
        )
        for doc in asked
    ]


def final_number(text: str) -> str | None:
    """The number after the first ####, as lm-eval has it in its strict match; None without one."""
    found = re.search(r"#### (\-?[0-9\.\,]+)", text)
    return found.group(1).replace(",", "").rstrip(".") if found else None


LOADERS: dict[str, Callable[[Path], list[Item]]] = {
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "winogrande": _winogrande,
    "arc_easy": _arc_easy,
    "gsm8k": _gsm8k,
}
#: tasks over windows of the test text
TEXT_TASKS = ("wikitext2", "generation")
TASKS = (*LOADERS, *TEXT_TASKS)


def load_items(task: str, folder: Path) -> list[Item]:
    """All items of a task, in file order."""
    try:
        return LOADERS[task](folder)
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"the data of {task} in {folder} is not understood: {error!r}") from error


def test_text(folder: Path) -> str:
    """The test text of WikiText-2."""
    path = folder / "wikitext2" / "wiki.test.raw"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error

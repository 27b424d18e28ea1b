"""Runs tasks under many rules, item by item, and keeps every result in one JSON file.

Items are the outer loop: all rules see the same items, the dense distributions of a window serve
every rule, and a run that was stopped or is asked for more items goes on where it was.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, FileError
from ..model import Model
from ..sparsity import Sparsity
from ..tuning import write_text
from . import windows
from .scoring import likelihoods, split_tokens
from .tasks import TASKS, TEXT_TASKS, Choice, Item, Question, final_number, load_items, test_text

#: metrics of an item, in the order in which results hold them
METRICS = {
    "choice": ("acc", "acc_norm"),
    "gsm8k": ("exact_match",),
    "wikitext2": ("nll", "kld", "agreement"),
    "generation": ("agreement", "same_prefix"),
}
WINDOW, N_GENERATED, PROMPT = 512, 64, 64
_SAVE_EVERY_S = 20.0

Progress = Callable[[str], object]


def metrics_of(task: str) -> tuple[str, ...]:
    names = METRICS.get(task, METRICS["choice"])
    return names[:1] if task == "winogrande" else names  # its answers differ in their context


def parse_rule(text: str, sparsity: float) -> Sparsity:
    """ "wina", or with options: "wina:budget=uniform,mask=projection,exponent=1"."""
    method, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not equals or key not in ("mask", "budget", "norms", "exponent", "select"):
            raise ArgumentError(
                f"{text!r}: {part!r} is no option (mask=, budget=, norms=, exponent=, select=)"
            )
        try:
            options[key] = float(value) if key == "exponent" else value
        except ValueError as error:
            raise ArgumentError(f"{text!r}: {value!r} is no number") from error
    return Sparsity(sparsity, method, **options)  # type: ignore[arg-type]


@dataclass
class Results:
    """items[task][rule][item number] = values of the task's metrics; rule is "dense" or
    "<method> <sparsity>"."""

    path: Path
    setting: dict[str, Any]
    items: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    kept: dict[str, dict[str, float]] = field(default_factory=dict)  # last measured, by task, rule
    _saved: float = 0.0

    @classmethod
    def open(cls, path: Path, setting: dict[str, Any]) -> Results:
        """Goes on with a file of the same setting."""
        if not path.exists():
            return cls(path, setting)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            result = cls(path, content["setting"], content["items"], content["kept"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArgumentError(f"{path} cannot be resumed ({error!r}); remove it") from error
        if result.setting != setting:
            raise ArgumentError(f"{path} is of another evaluation: {result.setting}")
        return result

    def absorb(self, path: Path) -> None:
        """Takes over the items of another file of the same setting."""
        if not path.is_file():
            raise FileError(f"{path} is no file of results")
        other = Results.open(path, self.setting)
        for task, by_rule in other.items.items():
            for rule, items in by_rule.items():
                self.of(task, rule).update(items)
                kept = other.kept.get(task, {})
                if rule in kept:
                    self.kept.setdefault(task, {})[rule] = kept[rule]

    def of(self, task: str, rule: str) -> dict[str, list[float]]:
        return self.items.setdefault(task, {}).setdefault(rule, {})

    def save(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self._saved > _SAVE_EVERY_S:
            content = {"setting": self.setting, "kept": self.kept, "items": self.items}
            write_text(self.path, json.dumps(content))
            self._saved = time.monotonic()


def make_rules(methods: Sequence[str], sparsities: Sequence[float]) -> dict[str, Sparsity]:
    """Dense first, then every method at every sparsity above 0."""
    rules = {"dense": Sparsity(0.0, "dense")}
    for sparsity in sparsities:
        for method in methods:
            if sparsity > 0 and method != "dense":
                rules[f"{method} {sparsity:g}"] = parse_rule(method, sparsity)
    return rules


def choose(n: int, limit: int | None, seed: int) -> list[int]:
    """Item numbers in the order of a seeded shuffle, so that a larger limit extends a smaller one
    and no order of the file matters."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order[:limit]


class Evaluation:
    """One model, one data folder, one file of results."""

    def __init__(
        self,
        model: Model,
        folder: Path,
        results: Results,
        dense_prefix: int = 5,
        *,
        text: str | None = None,
        keep: bool = True,
        device: str = "cpu",
    ) -> None:
        """text: in place of WikiText-2's. keep: write the results to their file. device: where
        distributions are compared (:class:`windows.Scorer`); the model runs where it was loaded."""
        self.scorer = windows.Scorer(device)
        self.model, self.folder, self.results = model, folder, results
        self.text, self.keep = text, keep
        self.dense_prefix = dense_prefix
        self._loaded: dict[str, Sequence[Item | list[int]]] = {}

    def _items(self, task: str) -> Sequence[Item | list[int]]:
        if task not in TASKS:
            raise ArgumentError(f"task {task!r} is unknown; choose from {', '.join(TASKS)}")
        if task not in self._loaded:
            if task in TEXT_TASKS:
                size = min(WINDOW, self.model.info.n_ctx)
                text = test_text(self.folder) if self.text is None else self.text
                found = windows.cut_windows(self.model, text, size)
            else:
                found = load_items(task, self.folder)
            self._loaded = {task: found}
        return self._loaded[task]

    def count(self, task: str, limit: int | None, shard: tuple[int, int] = (0, 1)) -> int:
        """Items that a run would look at."""
        return len(self._items(task)[:limit][shard[0] :: shard[1]])

    def run(
        self,
        task: str,
        rules: dict[str, Sparsity],
        limit: int | None,
        seed: int,
        progress: Progress = lambda text: None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """Whatever is missing. progress is called for every item and rule. shard: (i, n), only
        every n-th of the items, from the i-th on: n processes share the work, each with its own
        results."""
        items = self._items(task)
        try:
            for number in choose(len(items), limit, seed)[shard[0] :: shard[1]]:
                self._item(task, items[number], str(number), rules, progress)
                if self.keep:
                    self.results.save()
        finally:
            if self.keep:
                self.results.save(now=True)

    def _item(
        self,
        task: str,
        item: Item | list[int],
        number: str,
        rules: dict[str, Sparsity],
        progress: Progress,
    ) -> None:
        missing = [rule for rule in rules if number not in self.results.of(task, rule)]
        shared: dict[str, Any] = {}  # what the dense model gives, for the rules of this item
        for rule in rules:
            if rule in missing:
                values = self._values(item, task, rules[rule], shared)
                self.results.of(task, rule)[number] = values
                kept = self.model.stats.kept_fraction
                self.results.kept.setdefault(task, {})[rule] = kept
            progress(rule)

    def _values(
        self, item: Item | list[int], task: str, rule: Sparsity, shared: dict[str, Any]
    ) -> list[float]:
        if isinstance(item, Choice):
            return self._choose(item, rule)[: len(metrics_of(task))]
        if isinstance(item, Question):
            return [self._answer(item, rule)]
        return (
            self._window(item, rule, shared)
            if task == "wikitext2"
            else self._continue(item, rule, shared)
        )

    def _choose(self, item: Choice, rule: Sparsity) -> list[float]:
        pairs = [
            split_tokens(self.model, context, continuation)
            for context, continuation in zip(item.contexts, item.continuations, strict=True)
        ]
        found = likelihoods(self.model, pairs, rule, self.dense_prefix)
        scores = np.array([one.log_p for one in found])
        normed = scores / np.array(item.lengths)
        return [float(s.argmax() == item.gold) for s in (scores, normed)]

    def _answer(self, item: Question, rule: Sparsity) -> float:
        text = self.model.generate(
            item.prompt, sparsity=rule, temperature=0.0, max_tokens=256, stop=list(item.stop)
        )
        return float(final_number(text) == item.answer)

    def _window(self, window: list[int], rule: Sparsity, shared: dict[str, Any]) -> list[float]:
        first, scorer = len(window) // 2, self.scorer
        if "dense" not in shared:
            shared["dense"] = scorer.logs(self.model, window, Sparsity(), first=first)
        dense = shared["dense"]
        own = dense if rule.method == "dense" else scorer.logs(
            self.model, window, rule, first=first, n_dense=self.dense_prefix
        )  # fmt: skip
        score = scorer.score(self.model, window, own, dense, first=first)
        return [score.nll, score.kld, score.agreement]

    def _continue(self, window: list[int], rule: Sparsity, shared: dict[str, Any]) -> list[float]:
        """Greedy tokens after a dense prompt, against the dense model's."""

        def tokens(sparsity: Sparsity) -> list[int]:
            stream = self.model.stream(
                window[:PROMPT], sparsity=sparsity, temperature=0.0, max_tokens=N_GENERATED,
                ignore_eog=True,
            )  # fmt: skip
            return [chunk.token for chunk in stream if chunk.token is not None]

        if "dense" not in shared:
            shared["dense"] = tokens(Sparsity())
        same = np.array(tokens(rule)) == np.array(shared["dense"])
        prefix = len(same) if same.all() else int(np.argmin(same))
        return [float(same.mean()), prefix / len(same)]

"""Many prompts with one model: answers are made side by side, each in a context of its own.

A lane is a context and what runs in it. Prompts are sorted, and neighbours go through the same
lane, where the second finds what it shares with the first; what all of them share is evaluated once
and copied. Lanes without work take it from the one that has most left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING

from ._native import check, ffi, lib
from .generation import Stream, decode_together
from .params import GenerateOptions, split_options

if TYPE_CHECKING:
    from .model import Model

#: a common beginning of fewer tokens is sooner evaluated than copied
_WORTH_COPYING = 16


class _Lane:
    def __init__(self, model: Model, work: Sequence[int]) -> None:
        self.model = model
        self.work = deque(work)  # numbers of prompts
        self.number = -1  # of the one under way
        self.stream: Stream | None = None
        self.texts: list[str] = []

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def _common(first: Sequence[int], last: Sequence[int]) -> int:
    """Tokens that all of a sorted list begin with, given its ends; one is left for each to do."""
    n = min(len(first), len(last)) - 1
    return next((i for i in range(n) if first[i] != last[i]), n)


def _copy_beginning(lanes: Sequence[_Lane], tokens: Sequence[int]) -> None:
    """Evaluates tokens, as a dense prompt, in the first lane and gives all others the result."""
    model = lanes[0].model
    with model._handle.run() as session:
        done = model._begin_prompt(session, tokens, model.sparsity.replace(prefill=False))
        for first in range(done, len(tokens), model._n_batch):
            model._handle.check_open()
            part = ffi.new("int32_t[]", tokens[first : first + model._n_batch])
            check(lib.wina_session_prefill(session, part, len(part)))
    state = model.save_state()
    for lane in lanes[1:]:
        lane.model.load_state(state)


def _next_prompt(lanes: Sequence[_Lane], lane: _Lane) -> int | None:
    if lane.work:
        return lane.work.popleft()
    longest = max(lanes, key=lambda other: len(other.work))
    return longest.work.pop() if longest.work else None


def generate_together(
    model: Model, prompts: Sequence[list[int]], options: GenerateOptions, n_lanes: int
) -> list[str]:
    """The texts that ``model.generate`` gives for each of the prompts. Inside ``Handle.run``."""
    _, sparsity = split_options(options, model.sparsity)
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    n_lanes = min(n_lanes, len(prompts))
    ends = [len(order) * i // n_lanes for i in range(n_lanes + 1)]
    answers = [""] * len(prompts)
    with ExitStack() as opened:
        lanes: list[_Lane] = []
        for begin, end in pairwise(ends):
            own = opened.enter_context(model.share()) if lanes else model
            lanes.append(_Lane(own, order[begin:end]))
        for lane in lanes:
            opened.callback(lane.close)
        n_common = _common(prompts[order[0]], prompts[order[-1]])
        if n_common >= _WORTH_COPYING and not sparsity.prefill:
            _copy_beginning(lanes, prompts[order[0]][:n_common])
        while True:
            for lane in lanes:
                if lane.stream is None and (number := _next_prompt(lanes, lane)) is not None:
                    lane.number, lane.texts = number, []
                    lane.stream = lane.model.stream(prompts[number], **options)
                    while lane.stream.prefill(model._n_batch):
                        pass
            running = [lane for lane in lanes if lane.stream is not None]
            if not running:
                return answers
            decode_together([lane.stream for lane in running if lane.stream is not None])
            for lane in running:
                assert lane.stream is not None
                chunk = next(lane.stream)
                lane.texts.append(chunk.text)
                if chunk.finish_reason is not None:
                    answers[lane.number] = "".join(lane.texts)
                    lane.stream = None

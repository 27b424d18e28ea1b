"""Counters of the server, and their text for Prometheus."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..generation import Stream

if TYPE_CHECKING:
    from .engine import Engine


class Metrics:
    """Each field is written by one thread only: the loop's, or the engine's."""

    def __init__(self) -> None:
        self.responses: Counter[tuple[str, int]] = Counter()  # by route and status
        self.rejected = 0  # no room in the queue
        self.prompt_tokens = 0
        self.tokens = 0
        self.streams = 0
        self.cancelled = 0
        self.busy_s = 0.0  # of the engine's thread
        self.kept_fraction = 1.0  # of the last answer that was read to its end

    def count_stream(self, stream: Stream, cancelled: bool) -> None:
        self.streams += 1
        self.cancelled += cancelled
        self.prompt_tokens += len(stream.prompt)
        self.tokens += len(stream.tokens)
        if stream.timings is not None:
            self.kept_fraction = stream.timings.kept_fraction

    def text(self, engine: Engine) -> str:
        """The exposition format, version 0.0.4."""
        lines = []

        def add(name: str, kind: str, what: str, value: float) -> None:
            full = f"pywina_{name}"
            lines.extend([f"# HELP {full} {what}", f"# TYPE {full} {kind}", f"{full} {value}"])

        add("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens)
        add("tokens_total", "counter", "Tokens generated.", self.tokens)
        add("generations_total", "counter", "Generations ended.", self.streams)
        add("cancelled_total", "counter", "Generations whose client left.", self.cancelled)
        add("rejected_total", "counter", "Requests refused for want of room.", self.rejected)
        add("busy_seconds_total", "counter", "Time spent computing.", round(self.busy_s, 6))
        add("slots", "gauge", "Slots.", engine.n_slots)
        add("slots_busy", "gauge", "Slots at work.", engine.n_busy)
        add("queue", "gauge", "Requests waiting for a slot.", engine.n_waiting)
        add("kept_fraction", "gauge", "Of the last whole answer, counted.", self.kept_fraction)
        lines += [
            "# HELP pywina_responses_total Responses.",
            "# TYPE pywina_responses_total counter",
        ]
        for (route, status), n in sorted(self.responses.items()):
            lines.append(f'pywina_responses_total{{route="{route}",status="{status}"}} {n}')
        return "\n".join(lines) + "\n"

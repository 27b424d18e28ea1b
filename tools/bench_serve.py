"""What the workers of a benchmark share: the tokens, the commands they obey, memory readings.

A worker is a process that holds one loaded model and takes turns with another one. It reads JSON
objects, one a line, from stdin and answers each with one line; its first line says what was loaded.

    {"do": "threads", "n": 2}
    {"do": "run", "test": "pp", "n": 128, "depth": 0, "sparsity": 0}     pp: a prompt at once
    {"do": "run", "test": "tg", "n": 64, "depth": 0, "sparsity": 0.5}    tg: one token at a time
    {"do": "logits", "path": "last.npy"}
    {"do": "memory"}

A run starts behind the first `depth` tokens, which are evaluated, dense and unmeasured, when they
are not in the cache yet. Token ids are those of `wina bench`, so its logits hashes are too.

Runs in the interpreters of both programs: numpy is all it needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FILL_BATCH = 512


class Engine(Protocol):
    """A loaded model and one sequence of tokens."""

    n_vocab: int
    about: dict[str, Any]  # of the first answer

    def set_threads(self, n: int) -> None: ...
    def set_sparsity(self, sparsity: float) -> None: ...
    def truncate(self, n_past: int) -> None: ...
    def prefill(self, tokens: list[int]) -> None: ...
    def decode(self, token: int) -> None: ...
    def logits(self) -> np.ndarray: ...
    def counters(self) -> dict[str, float]: ...


def bench_tokens(n: int, n_vocab: int) -> list[int]:
    """The n pseudo-random token ids of `wina bench`."""
    state, ids = 1, []
    for _ in range(n):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        ids.append((state >> 8) % n_vocab)
    return ids


def logits_hash(logits: np.ndarray) -> str:
    """FNV-1a of the float32 bytes, as `wina bench` prints it."""
    value = 0xCBF29CE484222325
    for byte in logits.astype(np.float32, copy=False).tobytes():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def memory() -> dict[str, int]:
    """Bytes of this process: peak, and now by kind: its own, and mapped pages of files."""
    names = {"VmHWM": "peak_bytes", "RssAnon": "anon_bytes", "RssFile": "file_bytes"}
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in names:
            found[names[key]] = int(rest.split()[0]) * 1024
    return found


class Runner:
    """Runs commands on an engine. Invariant: the first `filled` tokens are in its cache."""

    def __init__(self, engine: Engine, n_ctx: int) -> None:
        self.engine = engine
        self.ids = bench_tokens(n_ctx, engine.n_vocab)
        self.filled = 0

    def _fill(self, depth: int) -> None:
        self.engine.truncate(min(self.filled, depth))
        self.engine.set_sparsity(0.0)
        for first in range(self.filled, depth, FILL_BATCH):
            self.engine.prefill(self.ids[first : min(first + FILL_BATCH, depth)])
        self.filled = depth

    def run(self, test: str, n: int, depth: int, sparsity: float) -> dict[str, Any]:
        """One timed run; what was counted in it, and the hash of its last logits."""
        if depth + n > len(self.ids):
            raise ValueError(
                f"{n} tokens after {depth} do not fit: there is room for {len(self.ids)}"
            )
        self._fill(depth)
        self.engine.set_sparsity(sparsity)
        ids, engine = self.ids[depth : depth + n], self.engine
        start = time.perf_counter()
        if test == "pp":
            engine.prefill(ids)
        else:
            for token in ids:
                engine.decode(token)
        seconds = time.perf_counter() - start
        logits = engine.logits()
        if not np.isfinite(logits).all():
            raise RuntimeError(f"logits are not finite after {test}{n}")
        return {"seconds": seconds, "logits_hash": logits_hash(logits)} | engine.counters()

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Does what a command says and gives the answer."""
        do = command.pop("do")
        if do == "run":
            return self.run(**command)
        if do == "threads":
            self.engine.set_threads(command["n"])
            self.filled = 0
        elif do == "logits":
            np.save(command["path"], self.engine.logits())
        elif do != "memory":
            raise ValueError(f"unknown command {do!r}")
        return memory()


def serve(make_engine: Any, n_ctx: int) -> None:
    """Loads with make_engine() and obeys stdin until it ends."""
    # Answers keep the real stdout for themselves; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    before = memory()["peak_bytes"]
    start = time.perf_counter()
    engine = make_engine()
    load_s = time.perf_counter() - start
    runner = Runner(engine, n_ctx)
    answer(engine.about | {"load_s": load_s, "interpreter_bytes": before})
    for line in sys.stdin:
        answer(runner.obey(json.loads(line)))

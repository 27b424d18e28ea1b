"""The driver's end of a benchmark: worker processes, other programs' load, a file's page cache."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that obeys commands (bench_serve.py). Raises RuntimeError when it ends."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (env or {}),
        )
        try:
            self.hello = self._read()
        except RuntimeError:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self._process.args[1]} ended with exit code {code}")
        return json.loads(line)

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Sends a command and waits for the answer."""
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def run(self, test: str, n: int, depth: int = 0, sparsity: float = 0.0) -> dict[str, Any]:
        """A timed run."""
        return self.ask("run", test=test, n=n, depth=depth, sparsity=sparsity)

    def cpu_seconds(self) -> float:
        """Processor time of all threads of the process so far."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()  # the name before may hold anything
        return (int(fields[11]) + int(fields[12])) / TICKS

    def close(self) -> None:
        """Ends the process and waits for it."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class OthersLoad:
    """How much of the machine other programs (or other guests of its host) take meanwhile."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers = list(workers)
        self._start = self._read()

    def _read(self) -> tuple[float, float, float]:
        """Seconds: of the clock, all processors busy, our own."""
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
        busy = (user + nice + system + irq + softirq + steal) / TICKS
        own = sum(os.times()[:4]) + sum(worker.cpu_seconds() for worker in self._workers)
        return time.monotonic(), busy, own

    def share(self) -> float:
        """Of the time of all processors since the start; 0 on a quiet machine."""
        clock, busy, own = (new - old for new, old in zip(self._read(), self._start, strict=True))
        return max(0.0, busy - own) / (clock * (os.cpu_count() or 1))


def resident_share(path: Path) -> float:
    """Share of a file's pages that are in the page cache."""
    size = path.stat().st_size
    if size == 0:
        return 0.0
    n_pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * n_pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
        # The address of a read-only mapping: numpy gives it without a writable buffer.
        data = np.frombuffer(view, dtype=np.uint8)
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        status = mincore(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(size), flags)
        del data  # the mapping cannot be closed while an array looks into it
    if status != 0:
        raise OSError(ctypes.get_errno(), f"mincore of {path}")
    return float((np.frombuffer(flags, dtype=np.uint8) & 1).mean())


def drop_from_page_cache(path: Path) -> float:
    """Drops a file's clean, unmapped pages from the page cache; the share that is still there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_share(path)

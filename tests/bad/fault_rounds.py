"""Faults in a whole process: the n-th call of a kind fails, for n = 1, 2, 3 ... until a command of
pywina gets through without one. Runs under LD_PRELOAD of faults.c (make test-faults).

    LD_PRELOAD=libfaults.so python fault_rounds.py COMMAND FOLDER [STEP]

COMMAND is convert, calibrate, load (load, tokenise, 8 tokens, the state) or pack. After each fault:
no exception but the documented ones, a message, the target old or complete, no temporary file, no
descriptor more than before, and the same command works. STEP > 1 tries every STEP-th n only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from make_bad import good
from tinymodel import TinySpec, write_tiny

import pywina
from pywina.cli import main

KINDS = ("memory", "thread", "open", "read", "write", "sync", "rename", "map", "short")
ERRORS = {
    "memory": (errno.ENOMEM,),
    "thread": (errno.EAGAIN,),
    "open": (errno.EMFILE, errno.EACCES, errno.EINTR),
    "read": (errno.EIO, errno.EINTR),
    "write": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "sync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EACCES,),
    "map": (errno.ENOMEM,),
}
OLD = b"what was there before"
shim = ctypes.CDLL(None)


class Command:
    """What is run: run() returns the program's status; is_valid() judges the target."""

    def __init__(self, name: str, folder: Path) -> None:
        self.source, self.target = folder / "in.gguf", folder / "out" / "out.gguf"
        self.target.parent.mkdir(exist_ok=True)
        self.name = name
        if name == "calibrate":
            write_tiny(self.source, TinySpec(n_layer=1))
            (folder / "text").write_text("abc ab a b c " * 400)
        else:
            self.source.write_bytes(good().encode())
        self.arguments: dict[str, list[object]] = {
            "convert": ["convert", self.source, self.target, "-t", 2],
            "calibrate": ["calibrate", self.source, "-f", folder / "text", "-o", self.target,
                          "-t", 2, "--allocate", "global", "--windows", 1, "--size", 64],
        }  # fmt: skip
        with pywina.load(self.source, n_threads=1, backend="cpu") as model:
            self.logits = model.logits([1, 2])

    def run(self) -> int:
        if self.name in self.arguments:
            return main([str(word) for word in self.arguments[self.name]])
        try:
            with pywina.load(self.source, n_threads=2, n_ctx=16, backend="cpu") as model:
                if self.name == "pack":
                    model.write_packed(self.target)
                else:
                    model.tokenize("abc a b")
                    model.generate("abc a b", max_tokens=8, seed=7, ignore_eog=True)
        except pywina.WinaError as error:
            print(error, file=sys.stderr)
            return 2
        return 0

    def is_valid(self) -> bool:
        if self.name == "load":
            return self.target.read_bytes() == OLD
        with pywina.load(self.target, n_threads=1, backend="cpu") as model:
            if self.name == "calibrate":
                return "calibrated" in model.describe_rule(0.5)
            return bool(np.array_equal(model.logits([1, 2]), self.logits))


def quietly(run: Callable[[], int]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = run()
    return status, said.getvalue()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def check_round(command: Command, kind: str, n: int, number: int) -> bool:
    """Whether the fault came."""
    where = f"{command.name}: {kind} {n} ({os.strerror(number)})"
    command.target.write_bytes(OLD)
    before = descriptors()
    shim.fault_arm(KINDS.index(kind), ctypes.c_long(n), number)
    try:
        status, said = quietly(command.run)
    finally:
        fired = shim.fault_disarm()
    assert descriptors() == before, f"{where}: descriptors leak"
    if status == 0:
        assert command.is_valid(), f"{where}: passes with another result"
    else:
        assert fired and said.strip() and "Traceback" not in said, f"{where}: {status} {said!r}"
        whole = kind == "sync" and command.target.read_bytes() != OLD  # its folder was not flushed
        assert command.is_valid() if whole else command.target.read_bytes() == OLD, where
    left = [p.name for p in command.target.parent.iterdir() if p.name.endswith(".tmp")]
    assert not left, f"{where}: {left}"
    return bool(fired)


def main_rounds() -> None:
    name, folder, step = sys.argv[1], Path(sys.argv[2]), int((sys.argv[3:] or ["1"])[0])
    command = Command(name, folder)
    for _ in range(2):  # what is imported or opened once is not part of the command
        assert quietly(command.run)[0] == 0
    for kind, numbers in ERRORS.items():
        for number in numbers:
            n = done = 0
            while n == 0 or check_round(command, kind, n, number):
                n += step if n else 1
                done += 1
                assert n < 100_000
            command.target.write_bytes(OLD)
            assert quietly(command.run)[0] == 0 and command.is_valid(), f"{name}: broken by {kind}"
            print(f"{name}: {kind}, {os.strerror(number)}: {done - 1} rounds", flush=True)
    check_round(command, "short", 0, 0)
    print(f"{name}: short reads and writes")


if __name__ == "__main__":
    main_rounds()

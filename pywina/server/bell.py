"""Wakes an event loop from another thread that has something to compute.

``call_soon_threadsafe`` writes to a socket and lets go of the interpreter's lock meanwhile: the
loop takes it at once, and the thread that has computed one token waits for it before it can begin
the next. Here the lock is kept over the write. The loop gets it when the thread enters the library,
and hands out the parts of an answer while the next token is computed.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

# Functions of a PyDLL are called with the lock held. This write never blocks.
_write = ctypes.PyDLL(None, use_errno=True).write
_write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_write.restype = ctypes.c_ssize_t
_ONE = (1).to_bytes(8, sys.byteorder)


class Bell:
    """Calls on one loop, in the order they were asked for. Made and closed on its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._rung = False  # the loop will look at the calls, or is about to be told
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._fd, self._answer)

    def call(self, function: Callable[[Any], object], value: Any) -> None:
        """function(value) on the loop, soon; from any thread. Nothing happens on a closed loop."""
        self._calls.append((function, value))
        if not self._rung and self._fd >= 0:
            self._rung = True
            _write(self._fd, _ONE, len(_ONE))

    def _answer(self) -> None:
        os.eventfd_read(self._fd)
        self._rung = False  # before the calls: what comes after the last one rings again
        self._make_calls()

    def _make_calls(self) -> None:
        while self._calls:
            function, value = self._calls.popleft()
            function(value)

    def close(self) -> None:
        """When nobody calls any more. What was asked for is done, unless the loop is closed."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if not self.loop.is_closed():
                self.loop.remove_reader(fd)
                self._make_calls()
            os.close(fd)

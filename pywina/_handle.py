"""The native objects of one model, and who may use them when.

A handle owns a model, its session and at most one running stream, and frees them in that reverse
order. Invariants: a freed pointer is never handed out; the session is used by one caller at a
time; while a task (a stream, an embedding) is unfinished nothing else evaluates; a process that was
forked never touches the parent's objects, because their threads do not exist there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._native import ffi, lib
from .errors import StateError


class Weights:
    """A native model that several handles use; the last one to let go of it frees it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._users = 1
        self._lock = threading.Lock()

    def share(self) -> Weights:
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                lib.wina_model_free(self.model)


class Handle:
    """Owns the native objects. All methods may be called from any thread."""

    def __init__(self, name: str, weights: Weights, session: Any) -> None:
        self._name = name
        self._weights = weights
        self._model = weights.model
        self._session = session
        self._owner: object = None  # the key of the task that is unfinished
        self._stream: Any = None  # its native stream
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.RLock()  # held while the session is in use
        self._runner: int | None = None  # the thread inside run()
        self._users = 0  # callers of borrow() that are inside
        self._idle = threading.Condition()

    @property
    def closed(self) -> bool:
        return self._closed

    def check_open(self) -> None:
        """StateError if closed or forked. Also for use between the native calls of one run(): a
        close() of another thread ends only the call that is under way."""
        if self._closed:
            raise StateError(f"the model {self._name} is closed; load it again")
        if self._pid != os.getpid():
            raise StateError(
                f"the model {self._name} was loaded before this process was forked; load it in "
                "the child process"
            )

    @contextmanager
    def borrow(self) -> Iterator[Any]:
        """The model, for functions that only read it. Callers do not wait for one another."""
        self.check_open()  # first: after a fork nobody may ever release the lock
        with self._idle:
            self.check_open()
            self._users += 1
        try:
            yield self._model
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def share(self) -> Weights:
        """The model for a further handle, which may outlive this one."""
        with self.borrow():
            return self._weights.share()

    @contextmanager
    def run(self, owner: object = None) -> Iterator[Any]:
        """The session, for one caller at a time; others wait. owner: the key of the caller's own
        task, or None. Fails if another one's task is unfinished."""
        self.check_open()
        with self._lock:
            self.check_open()
            if self._owner is not None and self._owner is not owner:
                raise StateError(
                    f"a stream or embedding of the model {self._name} is unfinished: read it to "
                    "its end or close() it first, or load the model a second time"
                )
            before, self._runner = self._runner, threading.get_ident()
            try:
                yield self._session
            finally:
                self._runner = before

    @property
    def runs_here(self) -> bool:
        """True on the thread that is inside run()."""
        return self._runner == threading.get_ident()

    @property
    def owner(self) -> object:
        """The key of the unfinished task; None if there is none."""
        return self._owner

    def take(self, owner: object) -> None:
        """The session is this task's until it is released; inside run(owner)."""
        self._owner = owner

    def own_stream(self, stream: Any) -> None:
        """Takes the owner's stream, just created on the session; inside run(owner)."""
        self._stream = stream

    def release(self, owner: object) -> None:
        """Ends a task and frees its stream, at once or never: it may have gone with the model."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._owner is owner:
                stream, self._owner, self._stream = self._stream, None, None
                lib.wina_stream_free(stream if stream is not None else ffi.NULL)

    def cancel(self, owner: object) -> None:
        """Ends the evaluation that is under way for this task, if there is one."""
        if self._pid != os.getpid():
            return
        with self._idle:  # nothing is freed meanwhile
            if not self._closed and self._owner is owner:
                lib.wina_session_cancel(self._session)

    def close(self) -> None:
        """Frees everything. A computation of another thread is stopped first."""
        if self._pid != os.getpid():
            self._closed = True
            return
        if self.runs_here:
            raise StateError(
                f"the model {self._name} cannot be closed from inside its own computation"
            )
        with self._idle:
            if self._closed:
                return
            self._closed = True
            lib.wina_session_cancel(self._session)
        with self._lock:
            with self._idle:
                self._idle.wait_for(lambda: self._users == 0)
            lib.wina_stream_free(self._stream if self._stream is not None else ffi.NULL)
            lib.wina_session_free(self._session)
            self._weights.release()
            self._owner = self._stream = self._session = self._model = None

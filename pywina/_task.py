"""Work that has a model's session for several calls: a :class:`Stream`, an :class:`Embedding`.

A task owns the session from its first step to its last. It is advanced one native call at a time
(one token, or one batch of a prompt), so Python runs between the calls: Ctrl-C, ``cancel`` and
``close`` take effect there, and ``cancel`` ends a call that is under way, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .errors import CancelledError, StateError

if TYPE_CHECKING:
    from .model import Model

T = TypeVar("T")


class Task:
    """While one is unfinished, other evaluations on the same model raise ``StateError``; ``close``
    (or dropping the last reference) makes the model free again. Use it in a ``with``."""

    def __init__(self, model: Model) -> None:
        self._model: Model | None = model  # None once it has ended
        self._key = object()  # what the handle knows this task by, without keeping it alive
        self._finalizer: weakref.finalize[..., Task] | None = None
        self._inside = False  # a thread is in _advance and holds the session
        self._cancelled = False

    def _begin(self, model: Model, session: Any) -> None:
        """Prepares the session for the first step."""
        raise NotImplementedError

    def _ended(self) -> BaseException:
        """What a step of a task that has ended raises."""
        return StateError("this has ended; ask the model for a new one")

    def _finish(self, model: Model) -> None:
        """Called once, before the session is given back."""

    def _advance(self, step: Callable[[Model, Any], T]) -> T:
        """step(model, session) of the task; an error ends it."""
        model = self._model
        if model is None:
            raise self._ended()
        self._refuse_inside(model, "advanced")
        try:
            with model._handle.run(self._key) as session:
                if self._model is None:  # closed by another thread while this one waited
                    raise self._ended()
                self._inside = True
                try:
                    self._check_cancelled()
                    if self._finalizer is None:
                        self._take(model)
                        self._begin(model, session)
                    return step(model, session)
                finally:
                    self._inside = False
        except BaseException:
            self.close()
            raise

    def _take(self, model: Model) -> None:
        handle = model._handle
        handle.take(self._key)
        self._finalizer = weakref.finalize(self, handle.release, self._key)
        self._finalizer.atexit = False
        if self._model is None:  # closed meanwhile, by one who saw nothing to give back
            self._finalizer()
            raise self._ended()

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("the evaluation was cancelled")

    def _refuse_inside(self, model: Model, what: str) -> None:
        if self._inside and model._handle.runs_here:
            name = type(self).__name__.lower()
            raise StateError(f"this {name} cannot be {what} from inside its own computation")

    def prefill(self, max_tokens: int) -> int:
        """Evaluates at most so many further tokens, and says how many are left. For those who have
        something else to do in between."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ends the evaluation, from any thread and at any moment: the one who waits for it gets
        ``CancelledError``."""
        self._cancelled = True
        model = self._model
        if model is not None:
            model._handle.cancel(self._key)

    def close(self) -> None:
        """Ends the task; the model can then be used again. May be called any number of times, but
        not from inside its own computation (a logits processor): StateError."""
        model = self._model
        if model is None:
            return
        self._refuse_inside(model, "closed")
        self._model = None
        if self._finalizer is not None:
            self._finish(model)
            self._finalizer()

    def __enter__(self) -> Self:
        if self._model is None:
            raise StateError("this has ended; ask the model for a new one")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

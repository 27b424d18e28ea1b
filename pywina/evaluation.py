"""What is evaluated for its own sake, not for an answer: logits, hidden states, embeddings.

:class:`Evaluations` is the part of :class:`pywina.Model` that does this. An :class:`Embedding` is
the same piece by piece: it can be cancelled, and something else done in between. Hidden states do
not depend on how the tokens are cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _values
from ._native import check, ffi, lib
from ._task import Task
from .errors import ContextError
from .sparsity import Mask, Method, Sparsity

if TYPE_CHECKING:
    from .model import Model


class _Evaluation(Task):
    """Evaluates tokens, dense, and adds up what their hidden states are good for."""

    def __init__(self, model: Model, tokens: Sequence[int]) -> None:
        super().__init__(model)
        model._check_room(len(tokens))
        #: token ids
        self.tokens = list(tokens)
        self._n_done, self._n_batch = 0, model._n_batch

    def _begin(self, model: Model, session: Any) -> None:
        model._begin(session, Sparsity())

    def _add(self, rows: NDArray[np.float32]) -> None:
        """The hidden states of the next tokens, (n, n_embd)."""
        raise NotImplementedError

    def prefill(self, max_tokens: int) -> int:
        """Evaluates at most so many further tokens, and says how many are left."""
        _values.integer("max_tokens", max_tokens, 1)
        if self._n_done == len(self.tokens):
            return 0

        def step(model: Model, session: Any) -> int:
            part = self.tokens[self._n_done :][: min(max_tokens, self._n_batch)]
            rows = np.empty((len(part), model.info.n_embd), dtype=np.float32)
            call, native = ffi.new("wina_eval *"), ffi.new("int32_t[]", part)
            call.tokens, call.n_tokens, call.n_dense = native, len(part), -1
            call.hidden = ffi.from_buffer("float[]", rows)
            model._handle.check_open()
            check(lib.wina_session_eval(session, call))
            self._add(rows)
            self._n_done += len(part)
            return len(self.tokens) - self._n_done

        left = self._advance(step)
        if left == 0:
            self.close()
        return left

    def _evaluate(self) -> None:
        # One native call per batch, so that Ctrl-C and close() take effect between them.
        while self.prefill(self._n_batch):
            pass


class Embedding(_Evaluation):
    """One vector for a text, evaluated piece by piece; made by :meth:`Model.begin_embedding`.

    While it is unfinished, other evaluations on the same model raise ``StateError``; ``close`` (or
    dropping the last reference) makes the model free again. ``cancel`` may be called from any
    thread.
    """

    def __init__(self, model: Model, tokens: Sequence[int], normalize: bool) -> None:
        super().__init__(model, tokens)
        self._sum = np.zeros(model.info.n_embd, dtype=np.float64)
        self._normalize = normalize

    def _add(self, rows: NDArray[np.float32]) -> None:
        for row in rows:  # one after the other: the sum does not depend on the pieces
            self._sum += row

    def result(self) -> NDArray[np.float32]:
        """The vector, (n_embd,); evaluates what is left. Raises CancelledError."""
        self._evaluate()
        mean = self._sum / len(self.tokens)
        length = float(np.linalg.norm(mean)) if self._normalize else 1.0
        return np.asarray(mean / (length or 1.0), dtype=np.float32)


class _Hidden(_Evaluation):
    def __init__(self, model: Model, tokens: Sequence[int]) -> None:
        super().__init__(model, tokens)
        self._rows = np.empty((len(tokens), model.info.n_embd), dtype=np.float32)

    def _add(self, rows: NDArray[np.float32]) -> None:
        self._rows[self._n_done : self._n_done + len(rows)] = rows

    def result(self) -> NDArray[np.float32]:
        """(n_tokens, n_embd)"""
        self._evaluate()
        return self._rows


class Evaluations:
    """Mixed into :class:`pywina.Model`."""

    def _check_room(self: Model, n_tokens: int) -> None:
        n_ctx = self.info.n_ctx
        if n_tokens > n_ctx:
            raise ContextError(
                f"{n_tokens} tokens do not fit into n_ctx = {n_ctx}; load the model with a "
                "larger n_ctx"
            )

    def logits(
        self: Model,
        tokens: str | Sequence[int],
        *,
        start: int = 0,
        dense_prefix: int = 0,
        sparsity: float | Sparsity | None = None,
        method: Method | None = None,
        mask: Mask | None = None,
    ) -> NDArray[np.float32]:
        """Logits after each of the tokens, shape (n_tokens - start, n_vocab), float32.

        tokens: ids, or text that is treated like a prompt.
        start: first token whose logits are wanted; earlier ones are only evaluated.
        dense_prefix: so many first tokens run dense, all others at the sparsity in force.
        """
        ids = self._prompt_tokens(tokens)
        _values.integer("start", start, 0, len(ids) - 1)
        _values.integer("dense_prefix", dense_prefix, 0)
        wanted = self.sparsity.replace(sparsity=sparsity, method=method, mask=mask)
        with self._handle.run() as session:
            self._check_room(len(ids))
            out = np.empty((len(ids) - start, self.info.n_vocab), dtype=np.float32)
            self._begin(session, wanted)
            # One native call per batch, so that Ctrl-C takes effect between them.
            for first in range(0, len(ids), self._n_batch):
                part = ids[first : first + self._n_batch]
                self._eval(session, part, first, start, dense_prefix, out)
            return out

    def _eval(
        self: Model,
        session: Any,
        part: list[int],
        first: int,
        start: int,
        dense_prefix: int,
        out: NDArray[np.float32],
    ) -> None:
        """Evaluates tokens [first, first + len(part)) and stores their rows of out."""
        self._handle.check_open()
        call = ffi.new("wina_eval *")
        tokens = ffi.new("int32_t[]", part)
        call.tokens, call.n_tokens = tokens, len(part)
        call.n_dense = min(max(dense_prefix - first, 0), len(part))
        if first + len(part) > start:
            call.logits_from = max(start - first, 0)
            rows = out[first + call.logits_from - start :]
            call.logits = ffi.from_buffer("float[]", rows)
        check(lib.wina_session_eval(session, call))

    def hidden(self: Model, tokens: str | Sequence[int]) -> NDArray[np.float32]:
        """The last layer's normed output after each token, shape (n_tokens, n_embd), evaluated
        dense. tokens: ids, or text that is treated like a prompt."""
        ids = self._prompt_tokens(tokens)
        with self._handle.run(), _Hidden(self, ids) as evaluation:
            return evaluation.result()

    def embed(
        self: Model, text: str | Sequence[int], *, normalize: bool = True
    ) -> NDArray[np.float32]:
        """One vector for a text, shape (n_embd,): the mean of :meth:`hidden` over its tokens; of
        length 1 with normalize."""
        with self._handle.run(), self.begin_embedding(text, normalize=normalize) as embedding:
            return embedding.result()

    def begin_embedding(
        self: Model, text: str | Sequence[int], *, normalize: bool = True
    ) -> Embedding:
        """:meth:`embed` for those who may want to cancel it, or do something else in between:
        nothing is computed before ``prefill`` or ``result`` of what this returns is called."""
        return Embedding(self, self._prompt_tokens(text), normalize)

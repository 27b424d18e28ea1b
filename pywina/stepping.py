"""Token by token: for programs that write their own loop of evaluating and choosing.

:class:`Steps` keeps the tokens that were evaluated and the logits after the last one. The model's
one session may be used by other calls in between; the tokens are then evaluated again, so results
never depend on what happened elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _values
from ._native import check, ffi, lib
from .errors import ContextError, StateError
from .params import Params

if TYPE_CHECKING:
    from .model import Model


class Sampler:
    """Chooses tokens from logits, with the penalties' memory of what was used.

    history: the tokens so far. Raises what :class:`Params` raises.
    """

    def __init__(self, model: Model, params: Params, history: Sequence[int] = ()) -> None:
        native, out = ffi.new("wina_sampler_params *"), ffi.new("wina_sampler **")
        lib.wina_sampler_params_init(native)
        alive = params._fill(model, native)
        check(lib.wina_sampler_create(native, out))
        del alive
        self._pointer = ffi.gc(out[0], lib.wina_sampler_free)
        self._processors = params.processors
        self._tokens = list(history)
        for token in self._tokens:
            check(lib.wina_sampler_accept(self._pointer, token))

    def sample(self, logits: NDArray[np.float32]) -> int:
        """A token; logits: (n_vocab,). It is not remembered before :meth:`accept`."""
        row = np.array(logits, dtype=np.float32)
        for processor in self._processors:
            row = np.array(processor(np.array(self._tokens, np.int32), row), dtype=np.float32)
        token = ffi.new("int32_t *")
        data = ffi.from_buffer("float[]", row)
        check(lib.wina_sampler_sample(self._pointer, data, len(row), token))
        return int(token[0])

    def accept(self, token: int) -> None:
        """Tells the penalties, and the logits processors, that a token was used."""
        self._tokens.append(token)
        check(lib.wina_sampler_accept(self._pointer, token))


class Steps:
    """The evaluated tokens of one model. keep_logits: those after every token, not only the last.

    Several tokens at a time are a prompt and run dense; single ones that follow others run at the
    model's sparsity.
    """

    def __init__(self, model: Model, *, keep_logits: bool = False) -> None:
        self._model, self._keep = model, keep_logits
        self._mark: list[int] = []  # the model's list while nobody else has used its session
        self._sparse: list[bool] = []
        self._rows = np.empty((0, model.info.n_vocab), np.float32)
        self._last: NDArray[np.float32] | None = None
        #: the tokens so far
        self.tokens: list[int] = []

    @property
    def logits(self) -> NDArray[np.float32]:
        """(n_vocab,) after the last token. Raises StateError before the first."""
        if self._last is None:
            raise StateError("nothing was evaluated yet")
        return self._last

    @property
    def all_logits(self) -> NDArray[np.float32]:
        """(n_tokens, n_vocab), if they are kept; NaN for tokens that a loaded state brought."""
        return self._room(len(self.tokens)) if self._keep else self._room(0)

    def truncate(self, n: int) -> None:
        """Forgets all but the first n tokens."""
        _values.integer("n", n, 0, len(self.tokens))
        if n < len(self.tokens):
            self._last = self._rows[n - 1].copy() if self._keep and n else None
        del self.tokens[n:], self._sparse[n:]

    def eval(self, tokens: Sequence[int]) -> None:
        """Appends tokens. Raises ContextError if they do not fit."""
        ids = _values.token_ids("tokens", tokens, self._model.info.n_vocab)
        n_ctx, n_old = self._model.info.n_ctx, len(self.tokens)
        if n_old + len(ids) > n_ctx:
            raise ContextError(f"{n_old + len(ids)} tokens do not fit into n_ctx = {n_ctx}")
        if not ids:
            return
        model = self._model
        with model._handle.run() as session:
            self._sync(session)
            step = len(ids) == 1 and n_old > 0 and model.sparsity.sparsity > 0
            for first in range(0, len(ids), model._n_batch):
                self._append(session, ids[first : first + model._n_batch], step)
            self._hold()

    def _append(self, session: Any, part: list[int], step: bool) -> None:
        self._model._handle.check_open()
        call, data = ffi.new("wina_eval *"), ffi.new("int32_t[]", part)
        call.tokens, call.n_tokens = data, len(part)
        call.n_dense = 0 if step or self._model.sparsity.prefill else -1
        start = len(self.tokens)
        if self._keep:
            call.logits = ffi.from_buffer("float[]", self._room(start + len(part))[start:])
        check(lib.wina_session_eval(session, call))
        self.tokens += part
        self._sparse += [call.n_dense == 0] * len(part)
        n_vocab = self._model.info.n_vocab
        self._last = np.frombuffer(
            ffi.buffer(lib.wina_session_logits(session), 4 * n_vocab), np.float32
        ).copy()

    def _room(self, n: int) -> NDArray[np.float32]:
        """The first n rows of the kept logits."""
        if len(self._rows) < n:
            rows = np.full((max(n, 2 * len(self._rows)), self._rows.shape[1]), np.nan, np.float32)
            rows[: len(self._rows)] = self._rows
            self._rows = rows
        return self._rows[:n]

    def _sync(self, session: Any) -> None:
        """Makes the session hold our tokens."""
        model = self._model
        n = len(self.tokens)
        held = self._mark is model._held and n <= lib.wina_session_n_past(session)
        if held and lib.wina_session_n_keepable(session, n) == n:
            check(lib.wina_session_truncate(session, n))
            model._set_sparsity(session, model.sparsity)
            return
        wanted, sparse = self.tokens, self._sparse
        model._begin(session, model.sparsity)
        self.tokens, self._sparse = [], []
        for step, run in groupby(zip(wanted, sparse, strict=True), lambda pair: pair[1]):
            ids = [token for token, _ in run]
            for first in range(0, len(ids), model._n_batch):
                self._append(session, ids[first : first + model._n_batch], step)

    def _hold(self) -> None:
        """Tells the model what its context is good for."""
        model = self._model
        self._mark = model._held = [] if any(self._sparse) else list(self.tokens)
        model._batches = (0, 0)

    def save_state(self) -> bytes:
        """See :meth:`Model.save_state`."""
        if any(self._sparse):
            raise StateError("tokens that were evaluated sparsely cannot be saved")
        with self._model._handle.run() as session:
            self._sync(session)
            self._hold()
            return self._model.save_state()

    def load_state(self, state: bytes, logits: NDArray[np.float32] | None = None) -> None:
        """See :meth:`Model.load_state`. logits: those after the last token, if they are known."""
        self.truncate(0)
        self.tokens = self._model.load_state(state)
        self._sparse = [False] * len(self.tokens)
        self._mark, self._last = self._model._held, logits
        self._rows = self._rows[:0]

    def generate(
        self, tokens: Sequence[int], params: Params
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens after these, without an end; what is sent into the iterator follows them."""
        sampler = Sampler(self._model, params, [*self.tokens, *tokens])
        pending = list(tokens)
        while True:
            self.eval(pending)
            token = sampler.sample(self.logits)
            sampler.accept(token)
            more = yield token
            for extra in more or ():
                sampler.accept(extra)
            pending = [token, *(more or ())]

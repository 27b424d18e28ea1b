"""Log likelihoods of continuations. What several continuations begin with is evaluated once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._native import check, lib
from ..errors import ArgumentError, ContextError
from ..model import Model
from ..sparsity import Sparsity
from .windows import log_softmax


@dataclass(frozen=True)
class Likelihood:
    """log_p: summed over the continuation's tokens. greedy: each of them is the likeliest."""

    log_p: float
    greedy: bool


def split_tokens(model: Model, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of both, as lm-eval has them: spaces at the context's end belong to the continuation,
    and the border lies where the tokens of the context alone end. BOS where the model wants it; a
    context without any token becomes BOS, or EOS if there is none."""
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    whole = model.tokenize(context + continuation, add_special=True)
    first = model.tokenize(context, add_special=True) if context else whole[: model.info.add_bos]
    n = len(first)
    if n == 0:
        info = model.info
        token = info.bos_token if info.bos_token is not None else info.eos_token
        if token is None:
            raise ArgumentError("an empty context needs a model with a BOS or EOS token")
        return [token], whole
    return whole[:n], whole[n:]


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all sequences begin with."""
    least = min(map(len, sequences))
    for i in range(least):
        if any(s[i] != sequences[0][i] for s in sequences):
            return i
    return least


def likelihoods(
    model: Model,
    pairs: Sequence[tuple[list[int], list[int]]],
    sparsity: Sparsity,
    dense_prefix: int = 5,
) -> list[Likelihood]:
    """Of the second of each pair after the first. The first dense_prefix tokens of a sequence are
    dense, all others sparse; results do not depend on what the pairs share."""
    sequences = [context + continuation for context, continuation in pairs]
    longest = max(map(len, sequences)) - 1
    if longest > model.info.n_ctx:
        raise ContextError(f"{longest} tokens do not fit into n_ctx = {model.info.n_ctx}")
    starts = [len(context) - 1 for context, _ in pairs]  # first row that predicts
    shared = min(common_prefix(sequences), *starts)
    results = []
    with model._handle.run() as session:
        model._begin(session, sparsity)
        none = np.empty((0, model.info.n_vocab), dtype=np.float32)
        _evaluate(model, session, sequences[0][:shared], 0, shared, dense_prefix, none)
        for sequence, start in zip(sequences, starts, strict=True):
            check(lib.wina_session_truncate(session, shared))
            rest = sequence[shared:-1]
            out = np.empty((len(sequence) - 1 - start, model.info.n_vocab), dtype=np.float32)
            _evaluate(model, session, rest, shared, start, dense_prefix, out)
            results.append(_likelihood(out, sequence[start + 1 :]))
    return results


def _evaluate(
    model: Model,
    session: object,
    tokens: list[int],
    at: int,
    start: int,
    dense_prefix: int,
    out: NDArray[np.float32],
) -> None:
    """Tokens at positions [at, at + n) of a sequence; logits from position `start` on go to out."""
    step = model._n_batch
    for i in range(0, len(tokens), step):
        part = tokens[i : i + step]
        model._eval(session, part, at + i, start, dense_prefix, out)


def _likelihood(logits: NDArray[np.float32], targets: list[int]) -> Likelihood:
    logs = log_softmax(logits)
    rows = np.arange(len(targets))
    return Likelihood(
        float(logs[rows, targets].sum(dtype=np.float64)),
        bool((logs.argmax(axis=1) == targets).all()),
    )

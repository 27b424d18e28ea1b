"""A model that EleutherAI's lm_eval can evaluate; importing this module needs lm_eval.

    import lm_eval
    from pywina.eval.lm_eval_adapter import WinaLM

    lm = WinaLM("model.gguf", sparsity=0.5)
    lm_eval.simple_evaluate(model=lm, tasks=["hellaswag"])

Prompts of likelihoods are sparse like everything else, but for the first ``dense_prefix`` tokens;
prompts of generations are dense, as they are in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from ..api import load
from ..errors import ArgumentError
from ..model import Model
from ..sparsity import Sparsity
from .scoring import Likelihood, likelihoods, split_tokens


@register_model("pywina")
class WinaLM(LM):
    """model: a Model, or what :func:`pywina.load` takes. sparsity: a number or a Sparsity."""

    def __init__(
        self,
        model: str | PathLike[str] | Model,
        sparsity: float | Sparsity = 0.0,
        *,
        dense_prefix: int = 5,
        max_gen_toks: int = 256,
        n_threads: int | None = None,
        n_ctx: int | None = None,
    ) -> None:
        super().__init__()
        self._owned = not isinstance(model, Model)
        if isinstance(model, Model):
            self.model = model
        else:
            self.model = load(model, n_threads=n_threads, n_ctx=n_ctx)
        self.sparsity = Sparsity().replace(sparsity=sparsity)
        self.dense_prefix, self.max_gen_toks = dense_prefix, max_gen_toks

    def close(self) -> None:
        """Closes the model if it was loaded here."""
        if self._owned:
            self.model.close()

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The context without the beginning that does not fit, as lm_eval's own models cut it."""
        room = self.model.info.n_ctx + 1 - len(continuation)
        if room < 1:
            raise ArgumentError(
                f"a continuation of {len(continuation)} tokens does not fit into n_ctx = "
                f"{self.model.info.n_ctx}"
            )
        return context[-room:], continuation

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log p, whether it is the greedy one) of each request's continuation. Requests with the
        same context that follow one another share its evaluation."""
        results: list[tuple[float, bool]] = []
        groups: list[list[tuple[str, str]]] = []
        for request in requests:
            context, continuation = request.args
            if groups and groups[-1][0][0] == context:
                groups[-1].append((context, continuation))
            else:
                groups.append([(context, continuation)])
        for group in tqdm(groups, disable=disable_tqdm or None, desc="likelihoods"):
            pairs = [self._fit(*split_tokens(self.model, *texts)) for texts in group]
            found = likelihoods(self.model, pairs, self.sparsity, self.dense_prefix)
            results += [(one.log_p, one.greedy) for one in found]
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts, in pieces that fit the context; each piece after the first begins
        with the last token of the one before."""
        return [
            sum(one.log_p for one in self._pieces(request.args[0]))
            for request in tqdm(requests, disable=disable_tqdm or None, desc="texts")
        ]

    def _pieces(self, text: str) -> Iterable[Likelihood]:
        first, rest = split_tokens(self.model, "", text)
        tokens, step = first + rest, self.model.info.n_ctx
        for i in range(0, len(tokens) - 1, step):
            piece = ([tokens[i]], tokens[i + 1 : i + 1 + step])
            yield likelihoods(self.model, [piece], self.sparsity, self.dense_prefix)[0]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the stop texts of each request; greedy unless it says otherwise."""
        answers = []
        for request in tqdm(requests, disable=disable_tqdm or None, desc="generations"):
            context, options = request.args
            stop = options.get("until") or []
            sampled = options.get("do_sample", False)
            answers.append(
                self.model.generate(
                    context,
                    sparsity=self.sparsity,
                    stop=[stop] if isinstance(stop, str) else [text for text in stop if text],
                    max_tokens=options.get("max_gen_toks", self.max_gen_toks),
                    temperature=options.get("temperature", 0.0) if sampled else 0.0,
                )
            )
        return answers

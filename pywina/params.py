"""How text is generated: the sampler's settings, limits, and what may change the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from . import _values
from ._native import ffi, lib
from .errors import ArgumentError
from .sparsity import Mask, Method, Sparsity

if TYPE_CHECKING:
    from .model import Model

#: gets the tokens so far, prompt included, (n,) int32, and their logits, (n_vocab,) float32, which
#: it may change; returns the logits to choose from
LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32]]

#: what transformers and llama-cpp-python call some options
_ALIASES = {
    "max_new_tokens": "max_tokens",
    "repetition_penalty": "repeat_penalty",
    "stop_strings": "stop",
    "mirostat_mode": "mirostat",
    "logits_processor": "logits_processors",
}


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of every call that generates text. :class:`Params` gives the defaults;
    the sparsity arguments default to what the model was loaded with. The last ones are
    transformers' names: ``do_sample=False`` is ``temperature=0``."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    repeat_last_n: int
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float] | None
    logits_processors: Sequence[LogitsProcessor] | LogitsProcessor
    logprobs: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eog: bool
    special: bool
    sparsity: float | Sparsity | None
    method: Method | None
    mask: Mask | None
    sparse_prefill: bool | None
    max_new_tokens: int | None
    do_sample: bool
    repetition_penalty: float
    stop_strings: str | Sequence[str] | None


@dataclass(frozen=True)
class Params:
    """How text is generated. Names, order and defaults of the samplers are those of llama.cpp:
    logit bias, penalties, dry, top_n_sigma, top_k, typical_p, top_p, min_p, xtc, temperature.

    max_tokens: stop after this many tokens; None: go on until the context is full.
    temperature: 0 always takes the likeliest token.
    top_k: sample from the k likeliest tokens; 0: off.
    top_p: sample from the likeliest tokens that together have this probability; 1: off.
    min_p: leave out tokens less likely than this share of the likeliest; 0: off.
    typical_p: sample from the tokens whose surprise is nearest to the expected one, up to this
        probability; 1: off.
    top_n_sigma: leave out logits this many standard deviations below the best; 0 or less: off.
    xtc_probability, xtc_threshold: how often all but the least likely of the tokens above the
        threshold are left out; 0: off.
    dynatemp_range, dynatemp_exponent: the temperature follows the entropy within +- range; 0: off.
    repeat_last_n: how many tokens the penalties look back at; 0: off, -1: all.
    repeat_penalty: divides the logits of tokens that occurred; 1: off.
    presence_penalty, frequency_penalty: subtracted once, and once per occurrence; 0: off.
    dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n: tokens that would go on with a
        repetition of length n are lowered by multiplier * base ** (n - allowed_length); 0: off.
    dry_sequence_breakers: no repetition reaches across a token that holds one of these strings.
    mirostat, mirostat_tau, mirostat_eta: 1 or 2 keeps the surprise near tau (bits) in place of
        everything but logit bias and temperature; 0: off.
    logit_bias: added to the logits of these tokens; ``float("-inf")`` forbids one.
    logits_processors: functions ``f(tokens, logits) -> logits``, called for every token.
    logprobs: each chunk carries the log probability of its token, and of this many of the
        likeliest; None: off.
    seed: the same seed gives the same text; None: a random one.
    stop: one or more strings that end the text and are not part of it.
    ignore_eog: go on when the model says that its answer has ended (for measurements).
    special: control tokens appear in the text.
    """

    max_tokens: int | None = 256
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] | None = None
    logits_processors: Sequence[LogitsProcessor] | LogitsProcessor = field(default=())
    logprobs: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    ignore_eog: bool = False
    special: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _values.integer("max_tokens", self.max_tokens, 1)
        for name in ("temperature", "dynatemp_range", "dynatemp_exponent", "dry_multiplier",
                     "dry_base", "mirostat_tau", "mirostat_eta"):  # fmt: skip
            _values.real(name, getattr(self, name), 0)
        for name in ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"):
            _values.real(name, getattr(self, name), 0, 1)
        for name in ("presence_penalty", "frequency_penalty", "top_n_sigma"):
            _values.real(name, getattr(self, name), -1e6, 1e6)
        _values.integer("top_k", self.top_k, 0)
        _values.integer("repeat_last_n", self.repeat_last_n, -1)
        _values.integer("dry_allowed_length", self.dry_allowed_length, 1)
        _values.integer("dry_penalty_last_n", self.dry_penalty_last_n, -1)
        _values.integer("mirostat", self.mirostat, 0, 2)
        if _values.real("repeat_penalty", self.repeat_penalty, 0) == 0:
            _values.real("repeat_penalty", self.repeat_penalty, 1e-3)
        if self.seed is not None:
            _values.integer("seed", self.seed, 0, _values.INT64_MAX)
        if self.logprobs is not None:
            _values.integer("logprobs", self.logprobs, 0, 1 << 20)
        _values.stop_strings(self.stop)
        self._check_functions()

    def _check_functions(self) -> None:
        for token, bias in (self.logit_bias or {}).items():
            _values.integer("a token of logit_bias", token, 0)
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not bias < 1e30:
                raise ArgumentError(f"logit_bias of token {token} is {bias!r}; give a number")
        if not all(map(callable, self.processors)):
            raise ArgumentError("logits_processors must be functions f(tokens, logits) -> logits")

    @property
    def processors(self) -> tuple[LogitsProcessor, ...]:
        """The logits processors, as given or in a sequence."""
        given = self.logits_processors
        return (given,) if callable(given) else tuple(given or ())

    def _create(self, model: Model, tokens: Sequence[int]) -> tuple[Any, list[Any]]:
        """A filled wina_stream_params, and what must stay alive while it is used."""
        params = ffi.new("wina_stream_params *")
        lib.wina_stream_params_init(params)
        prompt = ffi.new("int32_t[]", tokens)
        stops = [ffi.new("char[]", text) for text in _values.stop_strings(self.stop)]
        stop_array = ffi.new("char *[]", stops)
        params.tokens, params.n_tokens = prompt, len(tokens)
        params.max_tokens = -1 if self.max_tokens is None else self.max_tokens
        params.stop, params.n_stop = stop_array, len(stops)
        params.special, params.ignore_eog = int(self.special), int(self.ignore_eog)
        return params, [prompt, stops, stop_array, *self._fill(model, params.sampler)]

    def _fill(self, model: Model, sampler: Any) -> list[Any]:
        """The sampler's fields; returns what must stay alive while they are read."""
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma",
                     "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent",
                     "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty",
                     "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
                     "mirostat", "mirostat_tau", "mirostat_eta"):  # fmt: skip
            setattr(sampler, name, getattr(self, name))
        sampler.seed = -1 if self.seed is None else self.seed
        alive: list[Any] = []
        if self.dry_multiplier > 0:
            breakers = model.tokens_with(self.dry_sequence_breakers)
            alive.append(ffi.new("int32_t[]", breakers))
            sampler.dry_breakers, sampler.n_dry_breakers = alive[-1], len(breakers)
        if self.logit_bias:
            alive.append(ffi.new("wina_logit_bias[]", list(self.logit_bias.items())))
            sampler.logit_bias, sampler.n_logit_bias = alive[-1], len(self.logit_bias)
        return alive


def split_options(options: GenerateOptions, base: Sparsity) -> tuple[Params, Sparsity]:
    """Keyword arguments as parameters and as the sparsity to use; base fills what is not given."""
    rest: dict[str, Any] = dict(options)
    for alias, name in _ALIASES.items():
        if alias in rest:
            if name in rest:
                raise ArgumentError(f"{alias} and {name} are the same option; give one of them")
            rest[name] = rest.pop(alias)
    if rest.pop("do_sample", True) is False:
        rest["temperature"] = 0.0
    sparsity = base.replace(
        sparsity=rest.pop("sparsity", None),
        method=rest.pop("method", None),
        mask=rest.pop("mask", None),
        prefill=rest.pop("sparse_prefill", None),
    )
    return Params(**rest), sparsity

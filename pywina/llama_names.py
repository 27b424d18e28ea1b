"""What :class:`pywina.Llama` needs of llama-cpp-python's other names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._open import CacheType, trained_context
from .errors import UnsupportedError
from .grammar import Grammar
from .params import LogitsProcessor

LLAMA_DEFAULT_SEED = 0xFFFFFFFF  # a random one
LLAMA_POOLING_TYPE_UNSPECIFIED, LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_MEAN = -1, 0, 1
LLAMA_POOLING_TYPE_CLS, LLAMA_POOLING_TYPE_LAST = 2, 3
LLAMA_SPLIT_MODE_NONE, LLAMA_SPLIT_MODE_LAYER, LLAMA_SPLIT_MODE_ROW = 0, 1, 2
GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0 = 0, 1, 8

#: llama.cpp's numbers of types that keys and values may have
CACHE_TYPES: dict[int | None, CacheType] = {
    None: "f16", GGML_TYPE_F32: "f32", GGML_TYPE_F16: "f16", GGML_TYPE_Q8_0: "q8_0",
}  # fmt: skip

StoppingCriteria = Callable[[NDArray[np.int32], NDArray[np.float32]], bool]

#: arguments that say how to compute: accepted, without effect
IGNORED = frozenset(
    "split_mode main_gpu tensor_split use_mmap use_mlock n_ubatch n_threads_batch offload_kqv "
    "flash_attn op_offload swa_full no_perf numa verbose".split()
)

#: arguments that would change results and that are not supported: only these values pass
_REFUSED: dict[str, tuple[Any, ...]] = {
    "vocab_only": (False,), "kv_overrides": (None,), "rope_scaling_type": (None, -1),
    "attention_type": (-1, 0), "rope_freq_base": (0,), "rope_freq_scale": (0,),
    "yarn_ext_factor": (-1,), "yarn_attn_factor": (1,), "yarn_beta_fast": (32,),
    "yarn_beta_slow": (1,), "yarn_orig_ctx": (0,), "lora_base": (None,), "lora_scale": (1,),
    "lora_path": (None,), "chat_handler": (None,), "draft_model": (None,), "tokenizer": (None,),
    "spm_infill": (False,),
}  # fmt: skip

#: templates by llama-cpp-python's names; None: the file's own
CHAT_FORMATS: dict[str, str | None] = {
    "chat_template.default": None,
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
        " + message['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}


class LogitsProcessorList(list[LogitsProcessor]):
    """Logits processors, one after the other."""

    def __call__(
        self, input_ids: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """True as soon as one of them is."""

    def __call__(self, input_ids: NDArray[np.int32], logits: NDArray[np.float32]) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


class MinTokensLogitsProcessor:
    """Forbids the end of the answer for so many tokens."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens, self.token_eos = min_tokens, token_eos
        self.prompt_tokens: int | None = None

    def __call__(
        self, input_ids: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


class LlamaGrammar:
    """A grammar for ``grammar=``; needs the extra ``pywina[grammar]``."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """grammar: in GBNF, llama.cpp's notation."""
        return cls(Grammar.from_gbnf(grammar))

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        return cls.from_string(Path(file).read_text(encoding="utf-8"), verbose)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        return cls(Grammar.from_json_schema(json_schema))


class LlamaCache:
    """Accepted by :meth:`Llama.set_cache`. What the context holds of a prompt is used again with or
    without it; it stores nothing further."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes


LlamaRAMCache = LlamaCache


class LlamaState:
    """What :meth:`Llama.save_state` gives. scores: logits, (n_tokens, n_vocab) with
    ``logits_all``, else (1, n_vocab) after the last token, or (0, n_vocab)."""

    def __init__(
        self,
        input_ids: NDArray[np.int32],
        scores: NDArray[np.float32],
        n_tokens: int,
        llama_state: bytes,
        llama_state_size: int,
        seed: int,
    ) -> None:
        self.input_ids, self.scores, self.n_tokens = input_ids, scores, n_tokens
        self.llama_state, self.llama_state_size, self.seed = llama_state, llama_state_size, seed


def context_length(path: str, wanted: int) -> int:
    trained = trained_context(path)
    if wanted > trained:
        warnings.warn(
            f"n_ctx is {wanted}, but {path} was trained for {trained} tokens: using {trained}",
            RuntimeWarning,
            stacklevel=3,
        )
    return min(wanted, trained) if wanted else trained


def cache_type(name: str, number: int | None) -> CacheType:
    if number not in CACHE_TYPES:
        raise UnsupportedError(
            f"{name}={number!r} is not supported; leave it out, or give "
            + ", ".join(f"{n} ({kind})" for n, kind in CACHE_TYPES.items() if n is not None)
        )
    return CACHE_TYPES[number]


def check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in IGNORED:
            continue
        if name not in _REFUSED:
            raise TypeError(f"Llama() got an unexpected keyword argument {name!r}")
        if value not in _REFUSED[name]:
            raise UnsupportedError(f"{name}={value!r} is not supported; leave it out")

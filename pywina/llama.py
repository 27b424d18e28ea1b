"""The class :class:`Llama` of llama-cpp-python over a pywina model: change the import line only.

    from pywina.llama import Llama  # this module has the other names, too
    llm = Llama(model_path="model.gguf")

An argument that decides what is computed is honoured or refused. Those that only decide how
(``n_ubatch``, ``use_mmap``, ``flash_attn`` and the like: :data:`IGNORED`) are accepted and change
nothing. Differences: ``logprobs`` needs no ``logits_all``; a context longer than the model's own is
cut to that, with a warning; ``sparsity`` may be given to the class and to every call.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chat import Message
from .errors import ArgumentError, ContextError, StateError, UnsupportedError
from .hub.fetch import resolve
from .llama_names import (
    CHAT_FORMATS,
    GGML_TYPE_F16,
    GGML_TYPE_F32,
    GGML_TYPE_Q8_0,
    IGNORED,
    LLAMA_DEFAULT_SEED,
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_UNSPECIFIED,
    LLAMA_SPLIT_MODE_LAYER,
    LLAMA_SPLIT_MODE_NONE,
    LLAMA_SPLIT_MODE_ROW,
    LlamaCache,
    LlamaGrammar,
    LlamaRAMCache,
    LlamaState,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    cache_type,
    check_options,
    context_length,
)
from .model import Model
from .params import LogitsProcessor, Params
from .sparsity import Sparsity
from .stepping import Sampler, Steps

__all__ = [
    "CHAT_FORMATS",
    "GGML_TYPE_F16",
    "GGML_TYPE_F32",
    "GGML_TYPE_Q8_0",
    "IGNORED",
    "LLAMA_DEFAULT_SEED",
    "LLAMA_POOLING_TYPE_CLS",
    "LLAMA_POOLING_TYPE_LAST",
    "LLAMA_POOLING_TYPE_MEAN",
    "LLAMA_POOLING_TYPE_NONE",
    "LLAMA_POOLING_TYPE_UNSPECIFIED",
    "LLAMA_SPLIT_MODE_LAYER",
    "LLAMA_SPLIT_MODE_NONE",
    "LLAMA_SPLIT_MODE_ROW",
    "Llama",
    "LlamaCache",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteriaList",
]


class Llama:
    """A model with llama-cpp-python's methods; see the module's text for what differs.

    model_path: a GGUF file, or the name of a model that pywina knows.
    n_gpu_layers: -1: all, if there is a GPU; 0: none.
    seed: of calls that give none; :data:`LLAMA_DEFAULT_SEED`: a random one.
    n_ctx: 0: the model's own.
    logits_all: ``scores`` has the logits after every token that ``eval`` saw.
    embedding, pooling_type: for :meth:`embed`.
    chat_format: a key of :data:`CHAT_FORMATS`; default: the file's own template.
    type_k, type_v: of the cache, by llama.cpp's numbers: 0 (f32), 1 (f16, the default), 8 (q8_0).
    sparsity, mem_limit, resident: as in :func:`pywina.load`.
    options: other arguments of llama-cpp-python; see :data:`IGNORED`.
    Raises UnsupportedError for those that would change results.
    """

    def __init__(
        self,
        model_path: str,
        *,
        n_gpu_layers: int = 0,
        seed: int = LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_threads: int | None = None,
        pooling_type: int = LLAMA_POOLING_TYPE_UNSPECIFIED,
        logits_all: bool = False,
        embedding: bool = False,
        last_n_tokens_size: int = 64,
        chat_format: str | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        sparsity: float | Sparsity = 0.0,
        mem_limit: int | str | None = None,
        resident: int | str | None = None,
        **options: Any,
    ) -> None:
        self._arguments = {
            name: value for name, value in locals().items() if name not in ("self", "options")
        } | options
        check_options(options)
        if chat_format is not None and chat_format not in CHAT_FORMATS:
            raise UnsupportedError(
                f"chat_format {chat_format!r} is not supported; leave it out to use the file's "
                f"own template, or give one of {', '.join(CHAT_FORMATS)}"
            )
        if pooling_type not in range(LLAMA_POOLING_TYPE_UNSPECIFIED, LLAMA_POOLING_TYPE_LAST + 1):
            raise UnsupportedError(f"pooling_type={pooling_type!r} is not supported")
        #: as given
        self.model_path, self.chat_format, self.verbose = model_path, chat_format, False
        self.last_n_tokens_size, self.n_batch = last_n_tokens_size, n_batch
        self._pooling, self._embedding, self._all = pooling_type, embedding, logits_all
        path = str(resolve(model_path))
        self.model = Model(
            path,
            n_ctx=context_length(path, n_ctx),
            n_batch=min(n_batch, 4096),
            n_threads=n_threads or None,
            n_gpu_layers=None if n_gpu_layers < 0 else n_gpu_layers,
            sparsity=sparsity,
            cache_type_k=cache_type("type_k", type_k),
            cache_type_v=cache_type("type_v", type_v),
            mem_limit=mem_limit,
            resident=resident,
        )
        if chat_format is None and self.model.chat_template is not None:
            self.chat_format = "chat_template.default"
        self._steps = Steps(self.model, keep_logits=logits_all)
        self.set_seed(seed)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        *,
        local_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        **arguments: Any,
    ) -> Llama:
        """A model from the Hugging Face hub; see :meth:`pywina.Model.from_pretrained`. Other
        arguments are the class's own."""
        from .hub.pretrained import fetch_pretrained

        for name in ("additional_files", "local_dir_use_symlinks"):
            if arguments.pop(name, None) not in (None, "auto", False):
                raise UnsupportedError(f"{name} is not supported; leave it out")
        path = fetch_pretrained(repo_id, filename, local_dir=local_dir, cache_dir=cache_dir)
        return cls(str(path), **arguments)

    # ---- facts -------------------------------------------------------------------------------

    def n_ctx(self) -> int:
        return self.model.info.n_ctx

    def n_embd(self) -> int:
        return self.model.info.n_embd

    def n_vocab(self) -> int:
        return self.model.info.n_vocab

    def token_bos(self) -> int:
        """-1 if there is none."""
        token = self.model.info.bos_token
        return -1 if token is None else token

    def token_eos(self) -> int:
        """-1 if there is none."""
        token = self.model.info.eos_token
        return -1 if token is None else token

    def token_nl(self) -> int:
        return self.model.tokenize("\n")[-1]

    def pooling_type(self) -> int:
        """Unspecified is none: a vector per token."""
        return max(self._pooling, LLAMA_POOLING_TYPE_NONE)

    @property
    def metadata(self) -> dict[str, str]:
        return self.model.metadata

    @property
    def n_tokens(self) -> int:
        """How many tokens were evaluated by :meth:`eval` and :meth:`generate`."""
        return len(self._steps.tokens)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        self._steps.truncate(n)

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """(n_tokens,)"""
        return np.array(self._steps.tokens, dtype=np.int32)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Logits after the evaluated tokens, (n_tokens, n_vocab); only with ``logits_all``."""
        if not self._all:
            raise StateError("scores needs logits_all=True")
        return self._steps.all_logits

    _input_ids, _scores = input_ids, scores

    @property
    def eval_tokens(self) -> list[int]:
        return list(self._steps.tokens)

    @property
    def eval_logits(self) -> list[list[float]]:
        if self._all:
            return [[float(x) for x in row] for row in self._steps.all_logits]
        return [self._steps.logits.tolist()]

    # ---- text and tokens ---------------------------------------------------------------------

    def tokenizer(self) -> Llama:
        """Something with ``tokenize`` and ``detokenize``: this."""
        return self

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """add_bos: where the model asks for it. special: control tokens are recognised."""
        return self.model.tokenize(text, add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """prev_tokens: tokens before these, whose text is left out."""
        return self.model.detokenize_bytes(tokens, special=special)

    # ---- completions -------------------------------------------------------------------------

    def set_seed(self, seed: int) -> None:
        """The seed of calls that give none: these follow one another, each with another one."""
        self._seed = seed
        self._random = random.Random() if seed in (-1, LLAMA_DEFAULT_SEED) else random.Random(seed)

    def set_cache(self, cache: LlamaCache | None) -> None:
        """Accepted; see :class:`LlamaCache`."""

    def _call_seed(self, seed: int | None) -> int:
        if seed is None or seed in (-1, LLAMA_DEFAULT_SEED):
            return self._random.getrandbits(32)
        return seed

    def _ended(self, criteria: StoppingCriteria) -> LogitsProcessor:
        """A logits processor that ends the answer as soon as the criteria say so."""
        end = self.model.end_token()

        def process(tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            if criteria(tokens, logits):
                logits[:] = -np.inf
                logits[end] = 0
            return logits

        return process

    def _prompt(self, prompt: str | Sequence[int]) -> str | Sequence[int]:
        if len(prompt) == 0:
            if self.model.info.bos_token is None:
                raise ArgumentError("the prompt is empty, and the model has no BOS token")
            return [self.model.info.bos_token]
        return prompt

    def _shared(
        self,
        options: dict[str, Any],
        tfs_z: float,
        criteria: StoppingCriteria | None,
        processor: Sequence[LogitsProcessor] | LogitsProcessor | None,
        grammar: object,
    ) -> dict[str, Any]:
        """Arguments of both kinds of completion in the form of the model's methods."""
        if tfs_z != 1.0:
            raise UnsupportedError("tfs_z: tail-free sampling is not supported; leave it at 1")
        processors = [processor] if callable(processor) else list(processor or ())
        if isinstance(criteria, Sequence):
            criteria = StoppingCriteriaList(criteria)
        if criteria is not None:
            processors.append(self._ended(criteria))
        options["logits_processor"] = processors
        options["grammar"] = grammar.grammar if isinstance(grammar, LlamaGrammar) else grammar
        options.setdefault("repeat_last_n", self.last_n_tokens_size)
        options["seed"] = self._call_seed(options["seed"])
        options["model"] = options["model"] or self.model_path
        return options

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteria | None = None,
        logits_processor: Sequence[LogitsProcessor] | LogitsProcessor | None = None,
        grammar: object = None,
        logit_bias: Mapping[Any, float] | None = None,
        **options: Any,
    ) -> Any:
        """See :meth:`pywina.Model.create_completion`.

        stopping_criteria: the answer ends when ``f(tokens, logits)`` is true before a token.
        """
        options |= {
            "suffix": suffix, "max_tokens": max_tokens, "temperature": temperature,
            "top_p": top_p, "min_p": min_p, "typical_p": typical_p, "logprobs": logprobs,
            "echo": echo, "stop": stop, "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty, "repeat_penalty": repeat_penalty,
            "top_k": top_k, "stream": stream, "seed": seed, "mirostat_mode": mirostat_mode,
            "mirostat_tau": mirostat_tau, "mirostat_eta": mirostat_eta, "model": model,
            "logit_bias": logit_bias,
        }  # fmt: skip
        options = self._shared(options, tfs_z, stopping_criteria, logits_processor, grammar)
        return self.model.create_completion(self._prompt(prompt), **options)

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Message],
        functions: object = None,
        function_call: object = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: object = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Sequence[LogitsProcessor] | LogitsProcessor | None = None,
        grammar: object = None,
        logit_bias: Mapping[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        **options: Any,
    ) -> Any:
        """See :meth:`pywina.Model.create_chat_completion`."""
        if functions or function_call not in (None, "none", "auto"):
            raise UnsupportedError("functions and function_call are not supported; use tools")
        options |= {
            "tools": tools, "tool_choice": tool_choice, "temperature": temperature,
            "top_p": top_p, "top_k": top_k, "min_p": min_p, "typical_p": typical_p,
            "stream": stream, "stop": stop, "seed": seed, "response_format": response_format,
            "max_tokens": max_tokens, "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty, "repeat_penalty": repeat_penalty,
            "mirostat_mode": mirostat_mode, "mirostat_tau": mirostat_tau,
            "mirostat_eta": mirostat_eta, "model": model, "logit_bias": logit_bias,
            "logprobs": logprobs, "top_logprobs": top_logprobs,
        }  # fmt: skip
        options = self._shared(options, tfs_z, None, logits_processor, grammar)
        if self.chat_format is not None and CHAT_FORMATS[self.chat_format] is not None:
            options.setdefault("template", CHAT_FORMATS[self.chat_format])
        return self.model.create_chat_completion(messages, **options)

    def create_chat_completion_openai_v1(self, *arguments: Any, **options: Any) -> Any:
        """The same as objects of the package ``openai``."""
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

        result = self.create_chat_completion(*arguments, **options)
        if options.get("stream"):
            return (ChatCompletionChunk(**chunk) for chunk in result)
        return ChatCompletion(**result)

    # ---- token by token ----------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets what was evaluated."""
        self._steps.truncate(0)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens after those of earlier calls."""
        self._steps.eval(tokens)

    def _params(self, options: dict[str, Any]) -> Params:
        """llama-cpp-python's names of :meth:`sample` and :meth:`generate` as parameters."""
        if options.pop("tfs_z", 1.0) != 1.0:
            raise UnsupportedError("tfs_z: tail-free sampling is not supported; leave it at 1")
        options.pop("penalize_nl", None)  # no longer has an effect in llama.cpp either
        for old, new in (("temp", "temperature"), ("mirostat_mode", "mirostat")):
            if old in options:
                options[new] = options.pop(old)
        processor = options.pop("logits_processor", None)
        processors = [processor] if callable(processor) else list(processor or ())
        grammar = options.pop("grammar", None)
        if grammar is not None:
            source = grammar.grammar if isinstance(grammar, LlamaGrammar) else grammar
            processors.append(source.processor(self.model, options.pop("_n_prompt", self.n_tokens)))
        options.pop("_n_prompt", None)
        return Params(
            **{"repeat_last_n": self.last_n_tokens_size, **options},
            logits_processors=processors,
            seed=None if self._seed in (-1, LLAMA_DEFAULT_SEED) else self._seed,
        )

    def sample(self, *, idx: int | None = None, **options: Any) -> int:
        """A token from the logits after the last token evaluated, or after token idx - 1 with
        ``logits_all``. options: top_k, top_p, min_p, typical_p, temp, repeat_penalty,
        frequency_penalty, presence_penalty, mirostat_mode, mirostat_tau, mirostat_eta,
        logits_processor, grammar, as in :class:`pywina.Params`. It is not evaluated."""
        tokens, logits = self._steps.tokens, self._steps.logits
        if idx is not None:
            logits, tokens = self.scores[idx], tokens[: idx + 1]
        return Sampler(self.model, self._params(options), tokens).sample(logits)

    def generate(
        self,
        tokens: Sequence[int],
        *,
        reset: bool = True,
        stopping_criteria: StoppingCriteria | None = None,
        **options: Any,
    ) -> Iterator[int]:
        """Tokens after these, without an end; options as in :meth:`sample`.

        reset: begin anew, but for what earlier calls evaluated of the same beginning.
        """
        if reset:
            same = self.longest_token_prefix(self._steps.tokens, tokens[:-1])
            self._steps.truncate(same)
            tokens = tokens[same:]
        params = self._params({**options, "_n_prompt": self.n_tokens + len(tokens)})
        generated = self._steps.generate(tokens, params)
        if stopping_criteria is None:
            yield from generated
            return
        for token in generated:
            if stopping_criteria(self.input_ids, self._steps.logits):
                return
            yield token

    def save_state(self) -> LlamaState:
        """What :meth:`eval` and :meth:`generate` evaluated, for :meth:`load_state`."""
        state = self._steps.save_state()
        if self._all:
            scores = self._steps.all_logits.copy()
        else:
            known = self.n_tokens > 0
            scores = (
                self._steps.logits[None] if known else np.empty((0, self.n_vocab()), np.float32)
            )
        return LlamaState(self.input_ids, scores, self.n_tokens, state, len(state), self._seed)

    def load_state(self, state: LlamaState) -> None:
        """FormatError if it is damaged or of another model."""
        last = state.scores[-1] if len(state.scores) else None
        self._steps.load_state(state.llama_state, last)
        self.set_seed(state.seed)

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens a and b begin with alike."""
        n = 0
        for x, y in zip(a, b, strict=False):
            if x != y:
                break
            n += 1
        return n

    @staticmethod
    def logits_to_logprobs(logits: Any, axis: int = -1) -> NDArray[np.float32]:
        """Logarithms of the probabilities, of the same shape."""
        values = np.asarray(logits, dtype=np.float64)
        shifted = values - values.max(axis=axis, keepdims=True)
        return np.asarray(
            shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)), np.float32
        )

    # ---- embeddings --------------------------------------------------------------------------

    def _pooled(self, tokens: Sequence[int], normalize: bool) -> list[Any]:
        rows = self.model.hidden(tokens).astype(np.float64)
        if self._pooling == LLAMA_POOLING_TYPE_MEAN:
            rows = rows.mean(axis=0, keepdims=True)
        elif self._pooling in (LLAMA_POOLING_TYPE_CLS, LLAMA_POOLING_TYPE_LAST):
            rows = rows[:1] if self._pooling == LLAMA_POOLING_TYPE_CLS else rows[-1:]
        if normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        result: list[Any] = rows.astype(np.float32).tolist()
        return result if self.pooling_type() == LLAMA_POOLING_TYPE_NONE else result[0]

    def embed(
        self,
        input: str | Sequence[str],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """A vector of n_embd floats for every text, or with ``pooling_type`` none (the default of
        models that are made for text) one for every token of it: the last layer's normed output.

        truncate: only the first n_batch tokens of a text. return_count: also how many tokens.
        """
        if not self._embedding:
            raise StateError("embeddings need Llama(..., embedding=True)")
        result, count = [], 0
        for text in [input] if isinstance(input, str) else input:
            tokens = self.tokenize(text.encode("utf-8"))
            tokens = tokens[: self.n_batch] if truncate else tokens
            if len(tokens) > min(self.n_batch, self.n_ctx()):
                raise ContextError(f"{len(tokens)} tokens exceed n_batch = {self.n_batch}")
            count += len(tokens)
            result.append(self._pooled(tokens, normalize))
        output = result[0] if isinstance(input, str) else result
        return (output, count) if return_count else output

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Any:
        """:meth:`embed` in the form of OpenAI's /v1/embeddings."""
        texts = [input] if isinstance(input, str) else list(input)
        vectors, count = self.embed(texts, return_count=True)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": vector, "index": i}
                for i, vector in enumerate(vectors)
            ],
            "model": model or self.model_path,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    # ---- life --------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees the model."""
        self.model.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

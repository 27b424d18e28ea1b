"""The two functions that most programs need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Unpack

from ._open import Backend, CacheType
from .errors import ArgumentError
from .model import Model
from .params import GenerateOptions, Params, split_options
from .sparsity import Mask, Method, Sparsity


def load(
    path_or_alias: str | PathLike[str],
    *,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_batch: int | None = None,
    sparsity: float | Sparsity = 0.0,
    method: Method | None = None,
    mask: Mask | None = None,
    sparse_prefill: bool | None = None,
    progress: Callable[[float], object] | None = None,
    backend: Backend = "auto",
    n_gpu_layers: int | None = None,
    cache_type_k: CacheType = "f16",
    cache_type_v: CacheType = "f16",
    mem_limit: int | str | None = None,
    resident: int | str | None = None,
) -> Model:
    """Loads a model.

    path_or_alias: a GGUF file, or the name of a known model, which is fetched on first use.
    n_ctx: tokens that prompt and answer may have together; default: the model's own limit, at
        most 4096.
    n_threads: default: the physical cores this process may use. Results do not depend on it.
    n_batch: prompt tokens evaluated together; default 128.
    sparsity, method, mask, sparse_prefill: what is skipped unless a call says otherwise; see
        :class:`pywina.Sparsity`.
    progress: called with 0.0 to 1.0 during the load; an exception in it stops the load.
    backend: "auto" (on the GPU if there is one and the model fits), "cpu" or "cuda" (or an error).
    n_gpu_layers: how many of the last layers are on GPUs; default: as many as fit, with
        backend="cuda" all. 0: none.
    cache_type_k, cache_type_v: how keys and values of the context are kept: "f16", "q8_0" (a little
        over half the memory) or "f32", which GPUs do not have.
    mem_limit: bytes, or a text such as "1.5G": if the memory plan (:meth:`Model.plan_memory`) has a
        higher peak, the load fails at once with OutOfMemoryError, which holds the plan.
    resident: of a packed file that is larger than the memory: how many bytes of its layers stay
        there; what else a token needs is read from the file (on the CPU). The results are the same.
    """
    return Model(
        path_or_alias,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_batch=n_batch,
        sparsity=sparsity,
        method=method,
        mask=mask,
        sparse_prefill=sparse_prefill,
        progress=progress,
        backend=backend,
        n_gpu_layers=n_gpu_layers,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        mem_limit=mem_limit,
        resident=resident,
    )


def generate_batch(
    model: str | PathLike[str] | Model,
    prompts: Sequence[str | Sequence[int]],
    *,
    batch_size: int = 16,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    **options: Unpack[GenerateOptions],
) -> list[str]:
    """Texts that continue each of the prompts, made side by side; see :meth:`Model.generate_batch`.

    model, n_ctx, n_threads: as in :func:`generate`. options: as in :meth:`Model.generate`.
    """
    if isinstance(model, Model):
        if n_ctx is not None or n_threads is not None:
            raise ArgumentError(
                "n_ctx and n_threads belong to load(); this model is loaded already"
            )
        return model.generate_batch(prompts, batch_size=batch_size, **options)
    split_options(options, Sparsity())  # a bad value fails before the load, not after it
    with load(model, n_ctx=n_ctx, n_threads=n_threads) as loaded:
        return loaded.generate_batch(prompts, batch_size=batch_size, **options)


def generate(
    model: str | PathLike[str] | Model,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = Params.max_tokens,
    temperature: float = Params.temperature,
    top_k: int = Params.top_k,
    top_p: float = Params.top_p,
    min_p: float = Params.min_p,
    repeat_last_n: int = Params.repeat_last_n,
    repeat_penalty: float = Params.repeat_penalty,
    presence_penalty: float = Params.presence_penalty,
    frequency_penalty: float = Params.frequency_penalty,
    sparsity: float | Sparsity | None = None,
    method: Method | None = None,
    mask: Mask | None = None,
    sparse_prefill: bool | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
) -> str:
    """Text that continues prompt.

    model: a path, a known model's name, or a loaded Model. From a path the model is loaded for
        this one call; load it yourself to use it again.
    prompt: text or token ids; see :meth:`Model.generate`.
    max_tokens, temperature, ... seed: see :class:`Params`.
    sparsity, method, mask, sparse_prefill: what is skipped, see :class:`Sparsity`. Default: as a
        Model was loaded; for a path 0.0, "wina", "group" and False, that is, nothing.
    n_ctx, n_threads: as in :func:`load`; only for a path.
    """
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_last_n=repeat_last_n,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        sparsity=sparsity,
        method=method,
        mask=mask,
        sparse_prefill=sparse_prefill,
        stop=stop,
        seed=seed,
    )
    if isinstance(model, Model):
        if n_ctx is not None or n_threads is not None:
            raise ArgumentError(
                "n_ctx and n_threads belong to load(); this model is loaded already"
            )
        return model.generate(prompt, **options)
    split_options(options, Sparsity())  # a bad value fails before the load, not after it
    with load(model, n_ctx=n_ctx, n_threads=n_threads) as loaded:
        return loaded.generate(prompt, **options)

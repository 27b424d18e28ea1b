"""Mixtures of experts in checkpoints: which tensors make one of the GGUF file.

Checkpoints have a tensor for every matrix of every expert, or one for all of a layer in which gate
and up lie behind each other. A GGUF file has three stacks per layer, (n_expert, outputs, inputs).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError, UnsupportedError
from .safetensors import Checkpoint

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Experts:
    """each: GGUF names by the name of one expert's matrix, "{}" for its number. split: the names of
    both halves of a tensor's outputs. normed: weights of the chosen experts add up to 1. asked:
    config.json says whether they do, in norm_topk_prob."""

    each: dict[str, str] = field(default_factory=dict)
    split: dict[str, tuple[str, str]] = field(default_factory=dict)
    normed: bool = True
    asked: bool = False


@dataclass(frozen=True)
class Source:
    """One tensor of the file: the checkpoint's tensors that are stacked in it, and which half of
    their outputs (None: all)."""

    target: str
    names: list[str]
    shape: tuple[int, ...]
    half: int | None = None


def count(config: dict[str, Any]) -> int:
    """Experts of a layer."""
    return int(config.get("num_local_experts") or config["num_experts"])


def facts(config: dict[str, Any], family: Experts) -> dict[str, Any]:
    """Metadata of the mixture; raises UnsupportedError for a router or a pattern of layers that
    GGUF files of the family cannot have."""
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise UnsupportedError("layers without experts beside such with them are not supported")
    if family.asked and bool(config.get("norm_topk_prob")) != family.normed:
        raise UnsupportedError(f"norm_topk_prob {config.get('norm_topk_prob')} is not supported")
    if config.get("clip_qkv"):
        raise UnsupportedError(f"clip_qkv {config['clip_qkv']} is not supported")
    found = {"expert_count": count(config), "expert_used_count": int(config["num_experts_per_tok"])}
    if config.get("moe_intermediate_size"):
        found["expert_feed_forward_length"] = int(config["moe_intermediate_size"])
    shared = config.get("shared_expert_intermediate_size") or config.get("shared_intermediate_size")
    if shared:
        found["expert_shared_feed_forward_length"] = int(shared)
    return found


def _stacks(checkpoint: Checkpoint, family: Experts, n_expert: int, name: str) -> Iterator[Source]:
    """The stack that an expert's matrix belongs to, given with its first one."""
    layer, role = _LAYER.fullmatch(name).groups()  # type: ignore[union-attr]
    for each, target in family.each.items():
        found = re.fullmatch(re.escape(each).replace(r"\{\}", r"(\d+)"), role)
        if not found:
            continue
        if int(found[1]) >= n_expert:
            raise FormatError(f"tensor {name!r} belongs to none of {n_expert} experts")
        if int(found[1]) == 0:
            names = [f"model.layers.{layer}.{each.format(i)}" for i in range(n_expert)]
            missing = [other for other in names if other not in checkpoint.entries]
            if missing:
                raise FormatError(f"tensor {missing[0]!r} is missing")
            shapes = {checkpoint.entries[other].shape for other in names}
            if len(shapes) > 1:
                raise FormatError(f"the experts of {name!r} have several shapes: {shapes}")
            yield Source(f"blk.{layer}.{target}", names, (n_expert, *shapes.pop()))
        return
    for whole, targets in family.split.items():
        if whole == role:
            *before, rows, cols = checkpoint.entries[name].shape
            if rows % 2:
                raise FormatError(f"tensor {name!r} has {rows} outputs, which are no two halves")
            for half, target in enumerate(targets):
                yield Source(f"blk.{layer}.{target}", [name], (*before, rows // 2, cols), half)


def _belongs(family: Experts | None, name: str) -> bool:
    found = _LAYER.fullmatch(name)
    if family is None or found is None:
        return False
    role = re.sub(r"\.\d+\.", ".{}.", found[2])
    return role in family.each or role in family.split


def sources(
    checkpoint: Checkpoint,
    family: Experts | None,
    n_expert: int,
    target_of: Callable[[str], str | None],
) -> Iterator[Source]:
    """What makes every tensor of the file. target_of: the name of a tensor that is none of an
    expert's, None if it is not needed."""
    for name, entry in checkpoint.entries.items():
        if family is not None and _belongs(family, name):
            yield from _stacks(checkpoint, family, n_expert, name)
            continue
        target = target_of(name)
        if target is not None:
            yield Source(target, [name], entry.shape)

"""pywina inspect: what a file holds, the rule that its sparsity amounts to, and its memory."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter

from ..model import Model
from .common import load_model, placement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--tensors", action="store_true", help="every tensor, too")
    parser.add_argument("--metadata", action="store_true", help="the keys of the file, too")


def _rule(model: Model) -> tuple[float, str]:
    """A sparsity, the one asked for or else 0.5, and the rule that it amounts to in this file."""
    amount = model.sparsity.sparsity or 0.5
    return amount, model.describe_rule(model.sparsity.replace(sparsity=amount))


def _memory(model: Model) -> dict[str, int]:
    """Bytes by purpose."""
    info, plan = model.info, model.plan_memory()
    return {
        "file": info.file_bytes,
        "weights": info.weight_bytes,
        "sparsified": info.sparse_bytes,
        "kv_cache": plan.cache_bytes,
        "session": model.stats.session_bytes,
        "gpu": info.gpu_bytes,
        "gpu_kv_cache": plan.gpu_cache_bytes,
        "gpu_buffers": plan.gpu_buffer_bytes,
        "buffers": plan.buffer_bytes,
        "other": plan.other_bytes,
        "peak": plan.peak_bytes,
    }


def _gpu_memory(memory: dict[str, int]) -> list[tuple[str, str]]:
    if not memory["gpu"]:
        return []
    text = (
        f"weights {memory['gpu'] / 1e6:.1f} MB, keys and values "
        f"{memory['gpu_kv_cache'] / 1e6:.1f} MB, buffers {memory['gpu_buffers'] / 1e6:.1f} MB"
    )
    return [("on GPUs", text)]


def _print(model: Model) -> None:
    info, memory = model.info, _memory(model)
    types = Counter(tensor.type for tensor in model.tensors.values())
    packed = ", packed" if info.packed else ""
    rows = [
        ("file", f"{model.path} ({memory['file'] / 1e6:.1f} MB{packed})"),
        ("model", f"{info.name or 'no name'} ({info.architecture}, {info.n_params / 1e6:.1f}M)"),
        ("layers", f"{info.n_layer}, width {info.n_embd}, {info.n_head} heads of {info.head_dim} "
         f"({info.n_head_kv} for keys and values), ffn {info.n_ff}"),
        ("tokens", f"{info.n_vocab} in the vocabulary, trained with a context of "
         f"{info.n_ctx_train}, {'a' if model.chat_template else 'no'} chat template"),
        ("tensors", ", ".join(f"{n} {name}" for name, n in types.most_common())),
        ("runs on", placement(model) + (f"; {info.backend_note}" if info.backend_note else "")),
        ("memory", f"weights {memory['weights'] / 1e6:.1f} MB, of them sparsified "
         f"{memory['sparsified'] / 1e6:.1f} MB; keys and values "
         f"{memory['kv_cache'] / 1e6:.1f} MB for {info.n_ctx} tokens ({info.cache_type_k}, "
         f"{info.cache_type_v}), buffers {memory['buffers'] / 1e6:.1f} MB, the rest "
         f"{memory['other'] / 1e6:.1f} MB; at its peak {memory['peak'] / 1e6:.1f} MB"),
        *_gpu_memory(memory),
        ("sparsity", f"{model.sparsity.sparsity:g}"),
        ("rule", "at sparsity {:g}: {}".format(*_rule(model))),
    ]  # fmt: skip
    for name, text in rows:
        print(f"{name:9} {text}")


def main(args: argparse.Namespace) -> int:
    with load_model(args) as model:
        if args.json:
            report = {
                "path": model.path,
                "info": dataclasses.asdict(model.info),
                "sparsity": dataclasses.asdict(model.sparsity),
                "rule": _rule(model)[1],
                "memory": _memory(model),
            }
            if args.tensors:
                report["tensors"] = [dataclasses.asdict(t) for t in model.tensors.values()]
            if args.metadata:
                report["metadata"] = model.metadata
            print(json.dumps(report, ensure_ascii=False))
            return 0
        _print(model)
        if args.metadata:
            print()
            for key, value in model.metadata.items():
                print(f"{key} = {value}")
        if args.tensors:
            print()
            for tensor in model.tensors.values():
                shape = " x ".join(map(str, tensor.shape))
                print(f"{tensor.name:40} {tensor.type:6} {shape:>16} {tensor.n_bytes:>12}")
    return 0

"""Tiny random checkpoints of every family as Hugging Face folders, from numpy alone.

The same family gives the same bytes, so that only the logits which transformers computes from such
a folder have to be kept (tests/golden/arch.npz, written by tools/make_arch_golden.py).
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tinymodel import IM_END, MERGES, TOOL, vocabulary

#: tokens of the golden logits: longer than the windows and the short contexts below
TOKENS = [int(t) for t in np.random.default_rng(11).integers(0, 250, 48)]

_BASE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "float32", "pad_token_id": None,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    "head_dim": 24, "tie_word_embeddings": True, "sliding_window": 12,
    "query_pre_attn_scalar": 20, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
_GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.15,
    "logits_scaling": 2.5,
}  # fmt: skip
_LONG = [1.0, 1.5, 2.0, 4.0, 7.0, 9.0]
#: what each family's config.json has beyond the common part
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {
        "model_type": "llama", "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"head_dim": 24, "sliding_window": 12},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 24},
    "smollm3": {"num_hidden_layers": 5, "tie_word_embeddings": True},
    "granite": _GRANITE,
    "olmo2": {},
    "phi3": {
        "partial_rotary_factor": 0.75, "original_max_position_embeddings": 40,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": _LONG,
        },
    },
    "phi3-window": {"model_type": "phi3", "sliding_window": 12},
    "gemma2": {
        **_GEMMA, "num_hidden_layers": 4, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        **_GEMMA, "model_type": "gemma3_text", "num_hidden_layers": 7, "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {
        "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 72, "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "head_dim": 24, "num_experts": 7, "num_experts_per_tok": 2, "moe_intermediate_size": 72,
        "norm_topk_prob": True, "tie_word_embeddings": True,
    },
    "olmoe": {
        "num_key_value_heads": 4, "num_experts": 5, "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "granitemoe": {**_GRANITE, "num_local_experts": 5, "num_experts_per_tok": 3},
    "granitemoeshared": {
        **_GRANITE, "num_local_experts": 5, "num_experts_per_tok": 2,
        "shared_intermediate_size": 56,
    },
}  # fmt: skip


def config_of(family: str) -> dict[str, Any]:
    """config.json of a family."""
    return {"model_type": family, "vocab_size": len(vocabulary()[0]), **_BASE, **CONFIGS[family]}


def _block(name: str, d: int, ff: int) -> dict[str, tuple[int, ...]]:
    """A gated feed-forward block's matrices."""
    sizes = {"gate": (ff, d), "up": (ff, d), "down": (d, ff)}
    return {f"{name}.{x}_proj": size for x, size in sizes.items()}


def _experts(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's mixture; none without experts."""
    kind, d, ff = config["model_type"], config["hidden_size"], config["intermediate_size"]
    n = config.get("num_local_experts") or config.get("num_experts") or 0
    if kind == "mixtral":
        block = {"block_sparse_moe.gate": (n, d)}
        for i in range(n):
            name = f"block_sparse_moe.experts.{i}"
            block |= {f"{name}.w1": (ff, d), f"{name}.w2": (d, ff), f"{name}.w3": (ff, d)}
        return block
    if kind.startswith("granitemoe"):
        name, shared = "block_sparse_moe", config.get("shared_intermediate_size")
        block = {
            f"{name}.router.layer": (n, d), f"{name}.input_linear": (n, 2 * ff, d),
            f"{name}.output_linear": (n, d, ff),
        }  # fmt: skip
        if shared:
            block |= {"shared_mlp.input_linear": (2 * shared, d)}
            block |= {"shared_mlp.output_linear": (d, shared)}
        return block
    block = {"mlp.gate": (n, d)} if n else {}
    for i in range(n):
        block |= _block(f"mlp.experts.{i}", d, config.get("moe_intermediate_size", ff))
    if kind == "qwen2_moe":
        block |= {"mlp.shared_expert_gate": (1, d)}
        block |= _block("mlp.shared_expert", d, config["shared_expert_intermediate_size"])
    return block


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, by name."""
    kind, d, ff = config["model_type"], config["hidden_size"], config["intermediate_size"]
    n, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or d // n
    q, kv = n * width, n_kv * width
    block: dict[str, tuple[int, ...]] = {
        "self_attn.o_proj": (d, q), "post_attention_layernorm": (d,),
    }  # fmt: skip
    if kind == "phi3":
        block |= {"self_attn.qkv_proj": (q + 2 * kv, d), "mlp.gate_up_proj": (2 * ff, d)}
        block |= {"mlp.down_proj": (d, ff)}
    else:
        block |= {f"self_attn.{x}_proj": (kv, d) for x in "kv"}
        block |= {"self_attn.q_proj": (q, d)}
        if "num_experts_per_tok" not in config:
            block |= _block("mlp", d, ff)
    block |= _experts(config)
    if kind != "olmo2":
        block["input_layernorm"] = (d,)
    if kind in ("gemma2", "gemma3_text"):
        block["pre_feedforward_layernorm"] = (d,)
    if kind in ("gemma2", "gemma3_text", "olmo2"):
        block["post_feedforward_layernorm"] = (d,)
    if kind in ("qwen3", "gemma3_text", "olmo2", "qwen3_moe", "olmoe"):
        whole = kind in ("olmo2", "olmoe")
        block |= {"self_attn.q_norm": (q if whole else width,),
                  "self_attn.k_norm": (kv if whole else width,)}  # fmt: skip
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{k}.weight": shape for k, shape in block.items()}
        if kind in ("qwen2", "qwen2_moe"):
            for x, size in (("q", q), ("k", kv), ("v", kv)):
                shapes[f"model.layers.{layer}.self_attn.{x}_proj.bias"] = (size,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    return shapes


def _values(name: str, shape: tuple[int, ...], config: dict[str, Any]) -> np.ndarray:
    """Random weights of about unit gain, from a seed that the name gives."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return values / np.float32(np.sqrt(shape[-1]))
    mean = 0.0 if name.endswith("bias") or config["model_type"].startswith("gemma") else 1.0
    return (np.float32(mean) + np.float32(0.2) * values).astype(np.float32)


def _write_tokenizer(folder: Path) -> None:
    texts, kinds = vocabulary()
    n_plain = kinds.index(3)
    tokenizer = {
        "model": {
            "type": "BPE", "vocab": {t: i for i, t in enumerate(texts[:n_plain])},
            "merges": MERGES,
        },
        "added_tokens": [
            {"id": i, "content": texts[i], "special": texts[i] != TOOL}
            for i in range(n_plain, len(texts))
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    side = {"eos_token": {"content": IM_END}}
    (folder / "tokenizer_config.json").write_text(json.dumps(side), encoding="utf-8")


def write_checkpoint(folder: Path, family: str, n_vocab: int | None = None) -> Path:
    """The folder of a family, with float32 weights; n_vocab: for another vocabulary."""
    config = config_of(family)
    if n_vocab is not None:
        config["vocab_size"] = n_vocab
    folder.mkdir(parents=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in _shapes(config).items():
        raw = _values(name, shape, config).astype("<f4").tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_tokenizer(folder)
    return folder

"""From a Hugging Face checkpoint folder to a GGUF file.

Needs config.json, the safetensors and tokenizer.json (byte-level BPE). Architectures are those of
which every weight and every trait of the configuration is understood; anything else is refused by
name, because a model that runs and is slightly wrong is worse than none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ..errors import FileError, FormatError, UnsupportedError
from . import gguffile
from .convert import TYPES, Plan, type_for
from .gguffile import GgufFile, Tensor
from .safetensors import Checkpoint

Array = NDArray[np.float32]

#: model_type -> general.architecture, and whether files of it have q and k rows in pairs
_ARCHITECTURES = {"llama": ("llama", True), "qwen2": ("qwen2", False)}
_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
#: parts of the pre-tokenizers' expressions that tell them apart
_DIGITS = {r"\p{N}{1,3}": "llama-bpe", r"|\p{N}|": "qwen2"}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise FormatError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds no table")
    return content


def _strings(values: list[str]) -> bytes:
    """An array of strings as a metadata value."""
    parts = [np.array([9, 8], "<u4").tobytes(), np.array([len(values)], "<u8").tobytes()]
    for value in values:
        data = value.encode("utf-8")
        parts += [np.array([len(data)], "<u8").tobytes(), data]
    return b"".join(parts)


def _integers(values: list[int]) -> bytes:
    """An array of i32 as a metadata value."""
    head = np.array([9, 5], "<u4").tobytes() + np.array([len(values)], "<u8").tobytes()
    return head + np.array(values, "<i4").tobytes()


# ---- tokenizer -------------------------------------------------------------------------------


def _pre_tokenizer(content: dict[str, Any], path: Path) -> str:
    """llama.cpp's name of the pre-tokenizer."""
    pre = content.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        expression = str((parts[0].get("pattern") or {}).get("Regex", ""))
        for mark, name in _DIGITS.items():
            if mark in expression:
                return name
    raise UnsupportedError(f"{path}: its pre-tokenizer {kinds} is not known")


def _tokenizer(folder: Path, n_vocab: int, values: dict[str, bytes]) -> None:
    path = folder / "tokenizer.json"
    content = _json(path)
    model = content.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UnsupportedError(f"{path}: only byte-level BPE tokenizers can be converted")
    try:
        texts = {int(i): str(text) for text, i in model["vocab"].items()}
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        added = [(int(t["id"]), str(t["content"]), bool(t["special"]))
                 for t in content.get("added_tokens", [])]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is not understood: {error!r}") from error
    kinds = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for i, text, special in added:
        texts[i] = text
        kinds[i] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    if texts and max(texts) >= n_vocab:
        raise FormatError(f"{path} has token {max(texts)}, the model {n_vocab} embeddings")
    names = [texts.get(i, f"[PAD{i}]") for i in range(n_vocab)]
    types = [int(kinds.get(i, gguf.TokenType.UNUSED)) for i in range(n_vocab)]
    values["tokenizer.ggml.model"] = gguffile.encode("gpt2")
    values["tokenizer.ggml.pre"] = gguffile.encode(_pre_tokenizer(content, path))
    values["tokenizer.ggml.tokens"] = _strings(names)
    values["tokenizer.ggml.token_type"] = _integers(types)
    values["tokenizer.ggml.merges"] = _strings(merges)
    ids = {text: i for i, text in texts.items()}
    side = folder / "tokenizer_config.json"
    extra = _json(side) if side.is_file() else {}
    for key, name in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        token = extra.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            values[f"tokenizer.ggml.{name}_token_id"] = gguffile.encode(ids[text])
    values["tokenizer.ggml.add_bos_token"] = gguffile.encode(bool(extra.get("add_bos_token")))
    template = extra.get("chat_template")
    if not isinstance(template, str) and (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, str):
        values["tokenizer.chat_template"] = gguffile.encode(template)


# ---- configuration ---------------------------------------------------------------------------


def _refuse_traits(config: dict[str, Any], path: Path) -> None:
    """Settings under which the weights would mean something else."""
    scaling = config.get("rope_scaling") or (config.get("rope_parameters") or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    wrong = {
        "rope scaling": kind not in ("default", "linear") and kind,
        "hidden_act": config.get("hidden_act", "silu") != "silu" and config["hidden_act"],
        "mlp_bias": config.get("mlp_bias"),
        "use_sliding_window": config.get("use_sliding_window"),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0) != 1.0,
    }
    if config.get("model_type") == "llama":
        wrong["attention_bias"] = config.get("attention_bias")
    for name, value in wrong.items():
        if value:
            raise UnsupportedError(f"{path}: {name} {value!r} is not supported")


def _metadata(config: dict[str, Any], name: str, kind: str, path: Path) -> dict[str, bytes]:
    arch, _ = _ARCHITECTURES[config["model_type"]]
    rope = config.get("rope_parameters") or {}
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        head_dim = int(config.get("head_dim") or width // heads)
        facts: dict[str, Any] = {
            "general.architecture": arch,
            "general.name": name,
            "general.file_type": TYPES[kind],
            f"{arch}.context_length": int(config["max_position_embeddings"]),
            f"{arch}.embedding_length": width,
            f"{arch}.block_count": int(config["num_hidden_layers"]),
            f"{arch}.feed_forward_length": int(config["intermediate_size"]),
            f"{arch}.attention.head_count": heads,
            f"{arch}.attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
            f"{arch}.attention.key_length": head_dim,
            f"{arch}.attention.value_length": head_dim,
            f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            f"{arch}.rope.dimension_count": head_dim,
            f"{arch}.rope.freq_base": float(
                config.get("rope_theta") or rope.get("rope_theta") or 10000.0
            ),
        }
        scaling = config.get("rope_scaling") or rope
        if scaling.get("rope_type", scaling.get("type")) == "linear":
            facts[f"{arch}.rope.scaling.type"] = "linear"
            facts[f"{arch}.rope.scaling.factor"] = float(scaling["factor"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is not understood: {error!r}") from error
    return {key: gguffile.encode(value) for key, value in facts.items()}


def _paired(weight: Array, n_head: int) -> Array:
    """Rows of every head from halves (i, i + n/2) to pairs (2i, 2i + 1), as in llama files."""
    rows = weight.shape[0] // n_head
    return weight.reshape(n_head, 2, rows // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _target(name: str) -> str | None:
    """The GGUF name of a tensor; None: not needed."""
    if name in _TOP:
        return _TOP[name]
    if name.endswith("rotary_emb.inv_freq"):
        return None
    parts = name.split(".", 3)
    if parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in _NAMES:
        return f"blk.{int(parts[2])}.{_NAMES[parts[3]]}"
    raise UnsupportedError(f"tensor {name!r} is not known")


def plan_checkpoint(folder: Path, kind: str) -> Plan:
    """The GGUF file of a checkpoint folder: matrices in one type, vectors in F32."""
    config = _json(folder / "config.json")
    if config.get("model_type") not in _ARCHITECTURES:
        raise UnsupportedError(
            f"{folder}: model_type {config.get('model_type')!r} cannot be converted "
            f"(supported: {', '.join(_ARCHITECTURES)})"
        )
    _refuse_traits(config, folder / "config.json")
    checkpoint = Checkpoint(folder)
    content = GgufFile(_metadata(config, folder.resolve().name, kind, folder / "config.json"))
    embedding = checkpoint.entries.get("model.embed_tokens.weight")
    if embedding is None:
        raise FormatError(f"{folder}: model.embed_tokens.weight is missing")
    _tokenizer(folder, embedding.shape[0], content.values)
    heads = {"q_proj": int(config["num_attention_heads"])}
    heads["k_proj"] = int(config.get("num_key_value_heads") or heads["q_proj"])
    _, pairs = _ARCHITECTURES[config["model_type"]]

    def pieces(name: str, own: int) -> Iterator[bytes]:
        values = checkpoint.read(name)
        role = name.split(".")[-2]
        if pairs and role in heads:
            values = _paired(values, heads[role])
        yield gguf.quants.quantize(values, gguf.GGMLQuantizationType(own)).tobytes()

    tied = bool(config.get("tie_word_embeddings"))
    for name, entry in checkpoint.entries.items():
        target = _target(name)
        if target is None or (tied and target == "output.weight"):
            continue
        own = type_for(entry.shape, kind)
        size = gguffile.tensor_bytes(entry.shape, own)
        content.tensors.append(Tensor(target, entry.shape, own, size, partial(pieces, name, own)))
    n_bytes = sum(tensor.n_bytes for tensor in content.tensors)
    lines = [
        f"checkpoint: {config['model_type']}, {len(content.tensors)} tensors, matrices as {kind}",
        f"tensors: {n_bytes / 1e6:.1f} MB",
    ]
    return Plan(lines, content)

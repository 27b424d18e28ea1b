"""From a Hugging Face checkpoint folder to a GGUF file.

Needs config.json, the safetensors and tokenizer.json or tokenizer.model (byte-level BPE, or that of
SentencePiece). Only architectures are written of which every weight and every trait of the
configuration is understood; anything else is refused by name, because a model that runs and is
slightly wrong is worse than none.
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
from . import experts, gguffile, pretokenizers, sentencepiece
from .convert import TYPES, Plan, type_for
from .families import FAMILIES, Family, rope_scaling, rope_tensors, rotated_width
from .gguffile import GgufFile, Tensor
from .safetensors import Checkpoint

Array = NDArray[np.float32]
_Tokens = tuple[dict[int, str], dict[int, int]]  # texts and types by number

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


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


def _integers(values: list[int]) -> bytes:
    """An array of i32 as a metadata value."""
    head = np.array([9, 5], "<u4").tobytes() + np.array([len(values)], "<u8").tobytes()
    return head + np.array(values, "<i4").tobytes()


# ---- tokenizer -------------------------------------------------------------------------------


def _byte_level(content: dict[str, Any], path: Path, values: dict[str, bytes]) -> _Tokens:
    """Tokens of a byte-level BPE vocabulary, and the metadata that only these have."""
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        raise UnsupportedError(
            f"{path}: only byte-level BPE and BPE with byte fallback can be converted"
        )
    try:
        texts = {int(i): str(text) for text, i in model["vocab"].items()}
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        added = [(int(t["id"]), str(t["content"]), bool(t["special"]))
                 for t in content.get("added_tokens", [])]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is not understood: {error!r}") from error
    kinds = dict.fromkeys(texts, int(gguf.TokenType.NORMAL))
    for i, text, special in added:
        texts[i] = text
        kinds[i] = int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    values["tokenizer.ggml.model"] = gguffile.encode("gpt2")
    try:
        values["tokenizer.ggml.pre"] = gguffile.encode(pretokenizers.name_of(content))
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from error
    values["tokenizer.ggml.merges"] = gguffile.encode_strings(merges)
    return texts, kinds


def _tokenizer(folder: Path, n_vocab: int, values: dict[str, bytes]) -> None:
    path, side, more = (
        folder / name for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
    )
    extra = _json(side) if side.is_file() else {}
    only_model = not path.is_file() and (folder / "tokenizer.model").is_file()
    content = {} if only_model else _json(path)
    adds_bos = bool(extra.get("add_bos_token"))
    if sentencepiece.applies(folder, content):
        added = _json(more) if more.is_file() else {}
        vocabulary = sentencepiece.read(folder, content, extra, added)
        texts, kinds = vocabulary.texts, vocabulary.kinds
        sentencepiece.store(vocabulary, n_vocab, values)
        adds_bos = bool(extra.get("add_bos_token", True))  # these classes' default
    else:
        texts, kinds = _byte_level(content, path, values)
    if texts and max(texts) >= n_vocab:
        raise FormatError(f"{path} has token {max(texts)}, the model {n_vocab} embeddings")
    names = [texts.get(i, f"[PAD{i}]") for i in range(n_vocab)]
    types = [int(kinds.get(i, gguf.TokenType.UNUSED)) for i in range(n_vocab)]
    values["tokenizer.ggml.tokens"] = gguffile.encode_strings(names)
    values["tokenizer.ggml.token_type"] = _integers(types)
    ids = {text: i for i, text in texts.items()}
    for key, name in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        token = extra.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            values[f"tokenizer.ggml.{name}_token_id"] = gguffile.encode(ids[text])
    values["tokenizer.ggml.add_bos_token"] = gguffile.encode(adds_bos)
    template = extra.get("chat_template")
    if not isinstance(template, str) and (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, str):
        values["tokenizer.chat_template"] = gguffile.encode(template)


# ---- configuration ---------------------------------------------------------------------------


def _refuse_traits(config: dict[str, Any], family: Family, path: Path) -> None:
    """Settings under which the weights would mean something else."""
    kind = rope_scaling(config)["rope_type"]
    known = ("default", "linear", "llama3", "longrope" if family.arch == "phi3" else "default")
    activation = config.get("hidden_activation") or config.get("hidden_act", "silu")
    wrong = {
        "rope scaling": kind not in known and kind,
        "hidden_act": activation != family.activation and activation,
        "mlp_bias": config.get("mlp_bias"),
        "use_sliding_window": config.get("use_sliding_window"),
        "partial_rotary_factor": family.arch != "phi3"
        and config.get("partial_rotary_factor", 1.0) != 1.0
        and config["partial_rotary_factor"],
    }
    if family.arch not in ("qwen2", "qwen2moe"):
        wrong["attention_bias"] = config.get("attention_bias")
    for name, value in wrong.items():
        if value:
            raise UnsupportedError(f"{path}: {name} {value!r} is not supported")


def _metadata(config: dict[str, Any], name: str, kind: str, path: Path) -> dict[str, bytes]:
    family = FAMILIES[config["model_type"]]
    arch = family.arch
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        head_dim = int(config.get("head_dim") or family.head_dim or width // heads)
        scaling = rope_scaling(config)
        facts: dict[str, Any] = {
            "context_length": int(config["max_position_embeddings"]),
            "embedding_length": width,
            "block_count": int(config["num_hidden_layers"]),
            "feed_forward_length": int(config["intermediate_size"]),
            "attention.head_count": heads,
            "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "rope.dimension_count": rotated_width(config, head_dim),
            "rope.freq_base": float(scaling["rope_theta"] or 10000.0),
        }
        if scaling["rope_type"] == "linear":
            facts["rope.scaling.type"] = "linear"
            facts["rope.scaling.factor"] = float(scaling["factor"])
        facts.update(family.facts(config))
        if family.experts:
            facts.update(experts.facts(config, family.experts))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is not understood: {error!r}") from error
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from error
    named = {f"{arch}.{key}": value for key, value in facts.items()}
    general = {"architecture": arch, "name": name, "file_type": TYPES[kind]}
    named.update({f"general.{key}": value for key, value in general.items()})
    return {key: gguffile.encode(value) for key, value in named.items()}


def _paired(weight: Array, n_head: int) -> Array:
    """Rows of every head from halves (i, i + n/2) to pairs (2i, 2i + 1), as in llama files."""
    rows = weight.shape[0] // n_head
    return weight.reshape(n_head, 2, rows // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _target(name: str, family: Family) -> str | None:
    """The GGUF name of a tensor; None: not needed."""
    if name in _TOP:
        return _TOP[name]
    if name.endswith("rotary_emb.inv_freq"):
        return None
    parts = name.split(".", 3)
    if parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in family.names:
        return f"blk.{int(parts[2])}.{family.names[parts[3]]}"
    raise UnsupportedError(f"tensor {name!r} is not known")


def plan_checkpoint(folder: Path, kind: str) -> Plan:
    """The GGUF file of a checkpoint folder: matrices in one type, vectors in F32."""
    config = _json(folder / "config.json")
    if config.get("model_type") not in FAMILIES:
        raise UnsupportedError(
            f"{folder}: model_type {config.get('model_type')!r} cannot be converted "
            f"(supported: {', '.join(FAMILIES)})"
        )
    family = FAMILIES[config["model_type"]]
    _refuse_traits(config, family, folder / "config.json")
    checkpoint = Checkpoint(folder)
    content = GgufFile(_metadata(config, folder.resolve().name, kind, folder / "config.json"))
    embedding = checkpoint.entries.get("model.embed_tokens.weight")
    if embedding is None:
        raise FormatError(f"{folder}: model.embed_tokens.weight is missing")
    _tokenizer(folder, embedding.shape[0], content.values)
    heads = {"q_proj": int(config["num_attention_heads"])}
    heads["k_proj"] = int(config.get("num_key_value_heads") or heads["q_proj"])

    def pieces(source: experts.Source, own: int) -> Iterator[bytes]:
        for name in source.names:
            values = checkpoint.read(name)
            role = name.split(".")[-2]
            if family.paired and role in heads:
                values = _paired(values, heads[role])
            if role.endswith("norm"):
                values = values + np.float32(family.norm_offset)
            if source.half is not None:
                values = np.split(values, 2, axis=-2)[source.half]
            yield gguf.quants.quantize(values, gguf.GGMLQuantizationType(own)).tobytes()

    tied = bool(config.get("tie_word_embeddings"))
    n_expert = experts.count(config) if family.experts else 0
    found = experts.sources(checkpoint, family.experts, n_expert, partial(_target, family=family))
    for source in found:
        if tied and source.target == "output.weight":
            continue
        shape = source.shape
        own = type_for(shape, "F32" if "ffn_gate_inp" in source.target else kind)
        size = gguffile.tensor_bytes(shape, own)
        read = partial(pieces, source, own)
        content.tensors.append(Tensor(source.target, shape, own, size, read))
    width = int(np.frombuffer(content.values[f"{family.arch}.rope.dimension_count"], "<u4")[-1])
    for name, values in rope_tensors(config, width).items():
        raw = values.tobytes()
        content.tensors.append(Tensor(name, values.shape, 0, len(raw), lambda raw=raw: iter([raw])))
    n_bytes = sum(tensor.n_bytes for tensor in content.tensors)
    lines = [
        f"checkpoint: {config['model_type']}, {len(content.tensors)} tensors, matrices as {kind}",
        f"tensors: {n_bytes / 1e6:.1f} MB",
    ]
    return Plan(lines, content)

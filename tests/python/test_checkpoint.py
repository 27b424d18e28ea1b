"""Hugging Face checkpoint folders: the GGUF file computes what the folder's model does."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tinymodel import CHAT_TEMPLATE, IM_END, MERGES, TOOL, vocabulary

import pywina
from pywina.cli import main
from pywina.convert.checkpoint import plan_checkpoint
from pywina.convert.safetensors import Checkpoint

IDS = [int(t) for t in np.random.default_rng(9).integers(0, 250, 32)]
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LAYER = {
    "attn_norm.weight": "input_layernorm.weight", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    _, layer, rest = name.split(".", 2)
    role, _, kind = rest.rpartition(".")
    return f"model.layers.{layer}." + (LAYER.get(rest) or f"{LAYER[role]}.{kind}")


def save_tensors(path: Path, tensors: dict[str, np.ndarray], kind: str = "F32") -> None:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in tensors.items():
        if kind == "BF16":
            raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            raw = values.astype({"F32": "<f4", "F16": "<f2"}[kind]).tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def make_folder(model: pywina.Model, folder: Path, kind: str = "F32", parts: int = 1) -> Path:
    """A checkpoint of a tiny model's weights; llama's q and k rows by halves of each head."""
    info, tensors = model.info, {}
    for name in model.tensors:
        values = model.read_tensor(name)
        heads = {"attn_q": info.n_head, "attn_k": info.n_head_kv}.get(name.split(".")[-2])
        if info.architecture == "llama" and heads and name.endswith(".weight"):
            n, out = info.head_dim, np.empty_like(values)
            for head in range(heads):
                for i in range(n // 2):
                    out[head * n + i] = values[head * n + 2 * i]
                    out[head * n + i + n // 2] = values[head * n + 2 * i + 1]
            values = out
        tensors[hf_name(name)] = values
    folder.mkdir()
    names = list(tensors)
    for part in range(parts if parts > 1 else 0):
        file = f"model-{part}.safetensors"
        save_tensors(folder / file, {n: tensors[n] for n in names[part::parts]}, kind)
    if parts > 1:
        where = {n: f"model-{i % parts}.safetensors" for i, n in enumerate(names)}
        index = json.dumps({"weight_map": where})
        (folder / "model.safetensors.index.json").write_text(index)
    else:
        save_tensors(folder / "model.safetensors", tensors, kind)
    config = {
        "model_type": info.architecture, "hidden_size": info.n_embd,
        "architectures": [f"{info.architecture.capitalize()}ForCausalLM"],
        "num_hidden_layers": info.n_layer, "num_attention_heads": info.n_head,
        "num_key_value_heads": info.n_head_kv, "intermediate_size": info.n_ff,
        "max_position_embeddings": info.n_ctx_train, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": info.tied_output, "hidden_act": "silu",
        "vocab_size": info.n_vocab,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    texts, kinds = vocabulary()
    n_plain = kinds.index(3)
    added = [
        {"id": i, "content": texts[i], "special": texts[i] != TOOL}
        for i in range(n_plain, len(texts))
    ]
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated"}
    pre = {"type": "ByteLevel", "add_prefix_space": False}
    if info.architecture == "qwen2":
        pre = {"type": "Sequence", "pretokenizers": [split, pre | {"use_regex": False}]}
    tokenizer = {
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(texts[:n_plain])}},
        "added_tokens": added,
        "pre_tokenizer": pre,
    }
    tokenizer["model"]["merges"] = MERGES if parts == 1 else [m.split(" ") for m in MERGES]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    side = {"eos_token": {"content": IM_END}, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(side))
    return folder


@pytest.mark.parametrize(
    ("architecture", "tied", "parts"), [("llama", True, 1), ("qwen2", False, 3)]
)
def test_a_checkpoint(
    write_model: Callable[..., Path], tmp_path: Path, architecture: str, tied: bool, parts: int
) -> None:
    with pywina.load(write_model(architecture=architecture, tied=tied)) as model:
        folder = make_folder(model, tmp_path / "checkpoint", parts=parts)
        wanted = model.logits(IDS)
        target = tmp_path / "out.gguf"
        assert main(["convert", str(folder), str(target), "--type", "F32"]) == 0
        with pywina.load(target) as made:
            np.testing.assert_array_equal(made.logits(IDS), wanted)
            text = "The woman at sea, and <|im_end|> in <tool> 123!"
            for special in (False, True):
                assert made.tokenize(text, parse_special=special) == model.tokenize(
                    text, parse_special=special
                )
            assert made.chat_template == CHAT_TEMPLATE
            assert made.info.eos_token == model.info.eos_token
            assert made.info.tied_output == tied
        for kind, limit in (("F16", 2e-3), ("BF16", 0.03), ("Q8_0", 0.05), ("Q4_0", 0.6)):
            target = tmp_path / f"{kind}.gguf"
            assert main(["convert", str(folder), str(target), "--type", kind]) == 0
            with pywina.load(target) as made:
                off = np.linalg.norm(made.logits(IDS) - wanted) / np.linalg.norm(wanted)
                assert 0 < off < limit
                assert made.tensors["blk.1.ffn_down.weight"].type == kind


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_against_transformers(
    write_model: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with pywina.load(write_model(architecture=architecture)) as model:
        folder = make_folder(model, tmp_path / "checkpoint")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        wanted = reference(torch.tensor([IDS])).logits[0].numpy()
    target = tmp_path / "out.gguf"
    assert main(["convert", str(folder), str(target), "--type", "F32"]) == 0
    with pywina.load(target) as made:
        off = np.linalg.norm(made.logits(IDS) - wanted) / np.linalg.norm(wanted)
        assert off < 1e-3


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_safetensors(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    save_tensors(tmp_path / "model.safetensors", {"a": values, "b": values[0]}, kind)
    found = Checkpoint(tmp_path)
    tolerance = {"F32": 0, "F16": 1e-3, "BF16": 1e-2}[kind]
    np.testing.assert_allclose(found.read("a"), values, rtol=tolerance)
    assert found.read("b").shape == (5,)


def _tensor(**changes: object) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
    text = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 8, struct.pack("<Q", 5) + b"[1,2]", struct.pack("<Q", 4) + b"{{{{",
     _tensor(data_offsets=[0, 20]), _tensor(data_offsets=[8, 24]), _tensor(data_offsets=[-16, 0]),
     _tensor(shape=[2, -2]), _tensor(shape=[1 << 40, 1 << 40]), _tensor(shape="x"),
     _tensor(dtype="I64"), _tensor(data_offsets=None)],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises((pywina.FormatError, pywina.UnsupportedError)):
        Checkpoint(tmp_path)


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(pywina.FormatError, match="no file of this folder"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "model_type", "mamba", "mamba"),
        ("config.json", "rope_scaling", {"rope_type": "yarn"}, "yarn"),
        ("config.json", "hidden_act", "gelu", "gelu"),
        ("config.json", "mlp_bias", True, "mlp_bias"),
        ("config.json", "num_attention_heads", "x", "not understood"),
        ("tokenizer.json", "pre_tokenizer", {"type": "Metaspace"}, "Metaspace"),
        ("tokenizer.json", "model", {"type": "Unigram"}, "only byte-level BPE"),
    ],
)
def test_what_is_not_understood_is_refused(
    tiny: pywina.Model, tmp_path: Path, file: str, key: str, value: object, message: str
) -> None:
    folder = make_folder(tiny, tmp_path / "checkpoint")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {key: value}))
    with pytest.raises(pywina.WinaError, match=message):
        plan_checkpoint(folder, "F16")

"""Small valid files to start fuzzing from: every architecture, tokenizer and traits of both.

    python tests/fuzz/make_seeds.py DIR [WINA]    writes DIR/NAME.gguf; with the program wina,
                                                  packed ones too

The files in tests/fuzz/corpus are these, what a fuzzer found from them, and findings by name.
"""

from __future__ import annotations

import math
import random
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bad"))
from make_bad import (
    ARR,
    BOOL,
    F32,
    F64,
    I32,
    STR,
    TOKENS,
    U32,
    U64,
    File,
    Tensor,
    array,
    good,
    value,
    weights,
)  # fmt: skip

PRES = ("gpt-2", "starcoder", "llama-bpe", "dbrx", "qwen2", "qwen35", "seed-coder", "minicpm5",
        "gpt-4o", "tekken", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon", "bloom",
        "viking")  # fmt: skip
# One of every class that pre-tokenizers tell apart.
TEXT = "I'm HéLLo\r\n\t  x1234567 Été-世界ひカ \u0e01\u0301 \u00b2!?¡€ a's 'LL \u3000\U0001f600 _z"


def model(arch: str, **keys: bytes) -> File:
    """A model of one layer, 4 wide, of an architecture."""
    f = good()
    f.keys = [(k.replace("llama.", f"{arch}.", 1), raw) for k, raw in f.keys]
    f.set("general.architecture", value(STR, arch))
    for key, raw in keys.items():
        f.set(f"{arch}.{key.replace('__', '.')}", raw)

    def add(*roles: tuple[str, Tensor]) -> None:
        f.tensors += [(f"blk.0.{role}", tensor) for role, tensor in roles]

    def drop(*roles: str) -> None:
        f.tensors = [(n, t) for n, t in f.tensors if n not in {f"blk.0.{r}" for r in roles}]

    if arch == "qwen2":
        add(("attn_q.bias", weights(4)), ("attn_k.bias", weights(2)), ("attn_v.bias", weights(2)))
    if arch in ("qwen3", "gemma3", "olmo2"):
        width = (4, 2) if arch == "olmo2" else (2, 2)
        add(("attn_q_norm.weight", weights(width[0])), ("attn_k_norm.weight", weights(width[1])))
    if arch in ("gemma2", "gemma3", "olmo2"):
        add(("post_attention_norm.weight", weights(4)), ("post_ffw_norm.weight", weights(4)))
    if arch == "olmo2":
        drop("attn_norm.weight", "ffn_norm.weight")
    if arch == "phi3":
        drop("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight")
        add(("attn_qkv.weight", weights(4, 8)))
        f.tensors = [(n, weights(4, 8) if n == "blk.0.ffn_up.weight" else t) for n, t in f.tensors]
    return f


def spm(f: File, prefix: bool = True) -> File:
    """The same with a vocabulary of SentencePiece."""
    texts = ["<unk>", "<s>", "</s>", "<0x0A>", "<0x61>", "a", "b", "\u2581", "\u2581a", "ab"]
    f.set("tokenizer.ggml.model", value(STR, "llama"))
    f.set("tokenizer.ggml.tokens", array(STR, texts))
    f.set("tokenizer.ggml.token_type", array(I32, [2, 3, 3, 6, 6, 1, 1, 1, 1, 1]))
    f.set("tokenizer.ggml.scores", array(F32, [0.0, 0, 0, 0, 0, -1, -2, -3, -4, -5]))
    f.set("tokenizer.ggml.add_space_prefix", value(BOOL, int(prefix)))
    for key, token in (("bos", 1), ("eos", 2), ("unknown", 0)):
        f.set(f"tokenizer.ggml.{key}_token_id", value(U32, token))
    for key in ("pre", "merges"):
        f.drop(f"tokenizer.ggml.{key}")
    return f


def quantized(block: int, kinds: dict[int, int]) -> File:
    """One matrix of each type in turn; kinds: bytes of a block by type."""
    rng, f = random.Random(1), good()
    for key in ("embedding_length", "feed_forward_length"):
        f.set(f"llama.{key}", value(U32, block))
    types = list(kinds)
    shapes = {"embd": (block, 10), "attn_k": (block, block // 2), "attn_v": (block, block // 2)}
    for i, (name, t) in enumerate(f.tensors):
        if "norm" in name:
            t.ne, t.data = [block], weights(block).data
            continue
        role = name.split(".")[2 if name.startswith("blk") else 0].replace("token_", "")
        t.ne, t.kind = list(shapes.get(role, (block, block))), types[i % len(types)]
        n_blocks = math.prod(t.ne) // block
        # Zeros where float16 scales may lie: any finite bits do.
        t.data = bytes(rng.randrange(48) for _ in range(n_blocks * kinds[t.kind]))
    return f


def everything() -> File:
    """Every type of value, and traits of configurations."""
    f = good()
    for kind, content in enumerate((200, -1, 65535, -256, 4 << 29, -2, 1.5, 1)):
        f.set(f"t.{kind}", value(kind, content))
    f.set("t.u64", value(U64, 1 << 63))
    f.set("t.f64", value(F64, math.pi))
    f.set("t.text", value(STR, TEXT))
    f.set("t.bools", array(BOOL, [0, 1]))
    f.set("t.none", struct.pack("<IIQ", ARR, STR, 0))
    for kind in (0, 1, 2, 3, 4, 5, 6, 10, 11, 12):
        f.set(f"t.a{kind}", array(kind, [1, 2, 3]))
    f.set("t.strings", array(STR, ["one", "", "tab\t", b"\xff\xc3"]))
    return f


def tuned() -> File:
    """Everything that a calibration writes."""
    f = good()
    f.set("wina.targets", array(F32, [0.25, 0.5]))
    f.set("wina.kept", array(F32, [0.5] * 8))
    f.set("wina.kept_projections", array(F32, [0.5] * 14))
    f.set("wina.thresholds", array(F32, [0.1] * 8))
    f.set("wina.exponents", array(F32, [1.0, 0.5, 2.0, 0.0]))
    for group in ("qkv", "o", "gate_up", "down", "q", "k", "v", "gate", "up"):
        f.set(f"wina.norms.{group}", array(F32, [1.0, 2.0, 0.5, 0.25]))
    f.tensors += [("blk.0.attn_rot.weight", weights(4, 4)), ("blk.0.ffn_rot.weight", weights(4, 4))]
    return f


def seeds() -> dict[str, File]:
    """All of them by name."""
    files = {"good": good(), "everything": everything(), "tuned": tuned()}
    ones = weights(1)
    for arch in ("llama", "qwen2", "qwen3", "smollm3", "phi3", "gemma2", "gemma3", "olmo2",
                 "granite"):  # fmt: skip
        files[arch] = model(arch)
    files["gemma3-spm"] = spm(model("gemma3", attention__sliding_window=value(U32, 4)), False)
    files["llama-spm"] = spm(model("llama"))
    files["phi3-spm"] = spm(model("phi3"))
    files["gemma2-caps"] = model("gemma2", attn_logit_softcapping=value(F32, 50.0),
                                 final_logit_softcapping=value(F32, 30.0))  # fmt: skip
    files["granite-scales"] = model("granite", embedding_scale=value(F32, 2.0),
                                    residual_scale=value(F32, 0.5), logit_scale=value(F32, 8.0),
                                    attention__scale=value(F32, 0.3))  # fmt: skip
    files["linear"] = model("llama", rope__scaling__type=value(STR, "linear"),
                            rope__scaling__factor=value(F32, 2.0))  # fmt: skip
    files["linear"].tensors.append(("rope_freqs.weight", ones))
    files["longrope"] = model("phi3", rope__scaling__type=value(STR, "longrope"),
                              rope__scaling__attn_factor=value(F32, 1.2),
                              rope__scaling__original_context_length=value(U32, 8))  # fmt: skip
    files["longrope"].tensors += [
        (f"rope_factors_{n}.weight", weights(1)) for n in ("long", "short")
    ]
    files["untied"] = model("llama")
    files["untied"].tensors.append(("output.weight", weights(4, 10)))
    files["blocks-32"] = quantized(32, {0: 128, 1: 64, 2: 18, 3: 20, 6: 22, 7: 24, 8: 34})
    for pre in PRES:
        f = good()
        f.set("tokenizer.ggml.pre", value(STR, pre))
        f.set("tokenizer.ggml.token_type", array(I32, [2, 1, 1, 1, 1, 1, 4, 1, 3, 1]))
        f.set("general.description", value(STR, TEXT))
        f.tail = TEXT.encode()  # fuzz_tokenize reads its text from the end
        files[f"pre-{pre}"] = f
    files["bos-eos"] = good()
    files["bos-eos"].set("tokenizer.ggml.add_bos_token", value(BOOL, 1))
    files["bos-eos"].set("tokenizer.ggml.add_eos_token", value(BOOL, 1))
    files["endings"] = good()
    files["endings"].set("tokenizer.ggml.tokens", array(STR, [*TOKENS[:8], "<|im_end|>", "</s>"]))
    files["version-2"] = good()
    files["version-2"].version = 2
    return files


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, f in seeds().items():
        path = folder / f"{name}.gguf"
        path.write_bytes(f.encode())
        if len(sys.argv) > 2 and name in ("good", "qwen2", "tuned", "untied", "gemma3"):
            command = [sys.argv[2], "pack", "-m", path, "-o", folder / f"packed-{name}.gguf"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

"""Writes tests/golden/quantize.json: what llama.cpp makes of the same weights.

    python tools/make_quantize_golden.py --llama-python PYTHON [--models DIR --wikitext FILE]

PYTHON is an interpreter that has llama-cpp-python. The types that llama_model_quantize gives the
tensors of small models of zeros are recorded by mixture, as letters in the order of the tensors,
and so are the errors of its quantisers on random numbers, and hashes of the simpler ones' results;
quantised.npz holds what it makes of some random numbers in the types that pywina only reads.

With --models (a folder of smollm2-135m.gguf and qwen2.5-coder-0.5b.gguf) the real models are
written in F16 first, both programs quantise that file, and perplexities of the results over the
same windows of the text are recorded, all measured by `wina perplexity`, so that they differ by
the quantisers alone.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from pywina.cli import main as pywina
from pywina.convert import gguffile
from pywina.convert.gguffile import GgufFile, Tensor
from pywina.convert.mixture import MIXTURES

ROOT = Path(__file__).resolve().parents[1]
LETTERS = {
    "F32": "f", "F16": "h", "BF16": "b", "Q8_0": "8", "Q4_0": "a", "Q4_1": "A", "Q5_0": "e",
    "Q5_1": "E", "Q4_K": "4", "Q5_K": "5", "Q6_K": "6",
}  # fmt: skip
MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")
MEASURED = ("Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
SEARCHED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
ONLY_READ = ("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL")
ROUNDED = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
WINDOWS = 8


@dataclass(frozen=True)
class Spec:
    """A model of zeros. fused: attn_qkv, and gate and up in ffn_up."""

    arch: str = "llama"
    n_embd: int = 256
    n_ff: int = 512
    n_layer: int = 2
    tied: bool = False
    fused: bool = False
    n_expert: int = 0


SPECS = {
    "plain": Spec(n_layer=13),
    "deep": Spec("qwen2", n_layer=24),
    "one layer": Spec(n_layer=1),
    "tied": Spec(n_layer=4, tied=True),
    "blocks of 32": Spec(n_embd=96, n_ff=160, n_layer=8),
    "blocks of 32, tied": Spec("gemma3", n_embd=160, n_ff=256, n_layer=9, tied=True),
    "odd rows": Spec(n_embd=80, n_ff=144, n_layer=8, tied=True),
    "fused": Spec("phi3", n_layer=9, fused=True),
    "experts": Spec(n_layer=8, n_expert=8),
}


def content(spec: Spec) -> GgufFile:
    """The file that a spec describes."""
    d, ff, vocab = spec.n_embd, spec.n_ff, 64
    file = GgufFile({})
    file.set("general.architecture", spec.arch)
    facts: dict[str, int | float] = {
        "context_length": 512, "embedding_length": d, "block_count": spec.n_layer,
        "feed_forward_length": ff, "attention.head_count": 2, "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": vocab,
        "rope.dimension_count": d // 2,
    }  # fmt: skip
    if spec.n_expert:
        facts |= {"expert_count": spec.n_expert, "expert_used_count": 2}
    for key, value in facts.items():
        file.set(f"{spec.arch}.{key}", value)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, d)}
    stack = (spec.n_expert,) if spec.n_expert else ()
    suffix = "_exps" if stack else ""
    for i in range(spec.n_layer):
        own: dict[str, tuple[int, ...]] = {"attn_norm": (d,), "ffn_norm": (d,)}
        if spec.fused:
            own |= {"attn_qkv": (3 * d, d), "ffn_up": (2 * ff, d)}
        else:
            own |= {"attn_q": (d, d), "attn_k": (d, d), "attn_v": (d, d)}
            own |= {f"ffn_gate{suffix}": (*stack, ff, d), f"ffn_up{suffix}": (*stack, ff, d)}
        own |= {"attn_output": (d, d), f"ffn_down{suffix}": (*stack, d, ff)}
        if stack:
            own["ffn_gate_inp"] = (spec.n_expert, d)
        shapes |= {f"blk.{i}.{role}.weight": shape for role, shape in own.items()}
    shapes["output_norm.weight"] = (d,)
    if not spec.tied:
        shapes["output.weight"] = (vocab, d)
    for name, shape in shapes.items():
        kind = 0 if len(shape) == 1 else 1
        size = gguffile.tensor_bytes(shape, kind)
        file.tensors.append(Tensor(name, shape, kind, size, partial(_zeros, size)))
    return file


def _zeros(n: int) -> list[bytes]:
    return [bytes(n)]


def dequantised(source: Path) -> GgufFile:
    """A file with all matrices in F16."""
    file = gguffile.read(source)
    file.set("general.file_type", MIXTURES["F16"])
    result = GgufFile(file.values)

    def halves(tensor: Tensor) -> Iterator[bytes]:
        raw = np.frombuffer(b"".join(tensor.read()), np.uint8).reshape(*tensor.shape[:-1], -1)
        yield gguf.quants.dequantize(raw, Type(tensor.kind)).astype(np.float16).tobytes()

    for t in file.tensors:
        if len(t.shape) == 1:
            result.tensors.append(t)
            continue
        size = gguffile.tensor_bytes(t.shape, Type.F16)
        result.tensors.append(Tensor(t.name, t.shape, int(Type.F16), size, partial(halves, t)))
    return result


def peer_quantize(python: str, source: Path, target: Path, kind: str) -> None:
    """What llama.cpp makes of source."""
    worker = Path(__file__).with_name("peer_llama.py")
    command = [python, worker, "quantize", "-m", source, "--out", target, "-t", "2"]
    command += ["--ftype", str(MIXTURES[kind])]
    subprocess.run(list(map(str, command)), check=True)


def make_types(python: str, folder: Path) -> dict[str, Any]:
    """Types by spec and mixture."""
    result: dict[str, Any] = {}
    for name, spec in SPECS.items():
        source = folder / "zeros.gguf"
        gguffile.write(source, content(spec))
        order = [tensor.name for tensor in content(spec).tensors]
        result[name] = {"spec": asdict(spec), "types": {}}
        for kind in MIXTURES:
            target = folder / "zeros-out.gguf"
            peer_quantize(python, source, target, kind)
            types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(target).tensors}
            result[name]["types"][kind] = "".join(LETTERS[types[own]] for own in order)
        print(name, result[name]["types"]["Q4_K_M"], flush=True)
    return result


def weights(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows, 2048) weights and how much their columns count, for errors of quantisers."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((64, 2048), dtype=np.float32)
    tailed = rng.standard_t(5, (64, 2048)).astype(np.float32)
    importance = rng.lognormal(0, 1.5, 2048).astype(np.float32)
    return {"normal": normal, "tailed": tailed}[name], importance


def relative_error(values: np.ndarray, stored: bytes, kind: Type, w: np.ndarray) -> float:
    """Root of the weighted mean squared error over that of the values."""
    shape = gguf.quants.quant_shape_to_byte_shape(values.shape, kind)
    back = gguf.quants.dequantize(np.frombuffer(stored, np.uint8).reshape(shape), kind)
    wide = values.astype(np.float64)
    return float(np.sqrt((w * (back - wide) ** 2).sum() / (w * wide**2).sum()))


def ggml(python: str) -> ctypes.CDLL:
    """llama.cpp's library of tensors."""
    code = "import llama_cpp; print(llama_cpp.__path__[0])"
    done = subprocess.run([python, "-c", code], capture_output=True, check=True, text=True)
    library = ctypes.CDLL(str(Path(done.stdout.strip()) / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    arguments = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    library.ggml_quantize_chunk.argtypes = arguments
    return library


def peer_chunk(
    library: ctypes.CDLL, values: np.ndarray, kind: Type, importance: np.ndarray | None
) -> bytes:
    """What ggml's quantiser makes of values (rows, cols)."""
    out = ctypes.create_string_buffer(gguffile.tensor_bytes(values.shape, kind))
    use = None if importance is None else importance.ctypes.data
    library.ggml_quantize_chunk(int(kind), values.ctypes.data, out, 0, *values.shape, use)
    return out.raw


def make_errors(library: ctypes.CDLL) -> dict[str, float]:
    """Errors of ggml's quantisers, with and without importance."""
    result = {}
    for data in ("normal", "tailed"):
        values, importance = weights(data)
        for name in SEARCHED:
            for how in ("plain", "importance"):
                use = importance if how == "importance" else None
                stored = peer_chunk(library, values, Type[name], use)
                w = np.ones_like(importance) if use is None else use
                error = relative_error(values, stored, Type[name], w)
                result[f"{data} {name} {how}"] = round(error, 6)
    return result


def make_hashes(library: ctypes.CDLL) -> dict[str, str]:
    """Hashes of what ggml makes of the types whose bits leave no choice."""
    result = {}
    for data in ("normal", "tailed"):
        for name in ROUNDED:
            stored = peer_chunk(library, weights(data)[0], Type[name], None)
            result[f"{data} {name}"] = hashlib.sha256(stored).hexdigest()
    return result


def some_weights() -> np.ndarray:
    """(16, 1024) weights, enough for an error to within a percent."""
    return np.ascontiguousarray(weights("normal")[0][:16, :1024])


def make_quantised(library: ctypes.CDLL, path: Path) -> None:
    """What ggml makes of some_weights in the types that are only read, as bytes."""
    values = some_weights()
    made = {name: peer_chunk(library, values, Type[name], None) for name in ONLY_READ}
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in made.items()}
    np.savez_compressed(path, **arrays)


def nll(model: Path, text: Path, n: int) -> list[float]:
    """Losses of windows by `wina perplexity`."""
    wina = os.environ.get("WINA_BIN") or str(ROOT / "build" / "bin" / "wina")
    command = [wina, "perplexity", "-m", str(model), "-f", str(text), "-c", "512", "--json"]
    done = subprocess.run([*command, "--chunks", str(n)], capture_output=True, check=True)
    return [round(x, 6) for x in json.loads(done.stdout)["nll_per_window"]]


def equal_tensors(a: Path, b: Path) -> tuple[int, int]:
    """How many tensors of two files have the same type and bytes, and how many there are."""
    left = {t.name: t for t in gguf.GGUFReader(a).tensors}
    right = {t.name: t for t in gguf.GGUFReader(b).tensors}
    assert left.keys() == right.keys()
    same = sum(
        left[name].tensor_type == right[name].tensor_type
        and np.array_equal(left[name].data, right[name].data)
        for name in left
    )
    return int(same), len(left)


def make_perplexities(
    python: str, models: Path, text: Path, folder: Path, args: argparse.Namespace,
    result: dict[str, Any], save: Callable[[], object],
) -> None:  # fmt: skip
    """Losses by model and mixture, of llama.cpp's file and of pywina's, into result."""
    kinds, only, n = args.kinds.split(","), args.only, args.windows
    for name in MODELS:
        if only not in (None, name):
            continue
        source = folder / f"{name}-F16.gguf"
        gguffile.write(source, dequantised(models / f"{name}.gguf"))
        own = result.setdefault(name, {})
        if "F16" not in own:
            own["F16"] = nll(source, text, n)
        for kind in kinds:
            peer, ours = folder / "peer.gguf", folder / "ours.gguf"
            peer_quantize(python, source, peer, kind)
            if pywina(["convert", str(source), str(ours), "--quantize", kind]) != 0:
                raise SystemExit(f"pywina cannot quantise {source} to {kind}")
            same, count = equal_tensors(peer, ours)
            print(f"{name} {kind}: {same} of {count} tensors are equal to the bit", flush=True)
            losses = nll(peer, text, n)
            mine = losses if same == count else nll(ours, text, n)
            own[kind] = {"equal_tensors": [same, count], "llama_cpp": losses, "pywina": mine}
            apart = np.expm1(np.mean(mine) - np.mean(losses))
            base, theirs = np.exp(np.mean(own["F16"][:n])), np.exp(np.mean(losses))
            print(
                f"{name} {kind}: F16 {base:.4f}, llama.cpp {theirs:.4f}, "
                f"pywina {np.exp(np.mean(mine)):.4f}, {apart:+.3%}",
                flush=True,
            )
            save()
        source.unlink()


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-python", required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--wikitext", type=Path)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--kinds", default=",".join(MEASURED))
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of 512 tokens")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden" / "quantize.json")
    args = parser.parse_args()
    kept = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}

    def save() -> None:
        args.out.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.models is None:
            library = ggml(args.llama_python)
            kept["errors"] = make_errors(library)
            kept["hashes"] = make_hashes(library)
            make_quantised(library, args.out.with_name("quantised.npz"))
            kept["mixtures"] = make_types(args.llama_python, folder)
        else:
            own = kept.setdefault("perplexity", {})
            python, models, text = args.llama_python, args.models, args.wikitext
            make_perplexities(python, models, text, folder, args, own, save)
    save()


if __name__ == "__main__":
    main()

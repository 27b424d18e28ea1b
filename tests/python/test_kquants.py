"""The library's quantisers, the mixtures, and importance matrices.

tests/golden/quantize.json holds what llama.cpp makes of the same weights
(tools/make_quantize_golden.py).
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from test_dequant import opened, read_rows, write_blocks
from tinymodel import ROLES

import pywina
from pywina._native import check, ffi, lib
from pywina.cli import main
from pywina.convert import gguffile, imatrix
from pywina.convert.mixture import MIXTURES, Mixture
from pywina.convert.quantize import plan_quantized, quantize, quantize_rows

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import make_quantize_golden as golden  # noqa: E402

GOLDEN = json.loads((ROOT / "tests" / "golden" / "quantize.json").read_text(encoding="utf-8"))
K_TYPES = (Type.Q4_K, Type.Q5_K, Type.Q6_K)
SEARCHED = (*K_TYPES, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)
STEPS = {Type.Q4_K: 15, Type.Q5_K: 31, Type.Q6_K: 63, Type.Q4_0: 15, Type.Q4_1: 15,
         Type.Q5_0: 31, Type.Q5_1: 31}  # fmt: skip
#: Largest relative RMS error by type on Gaussian weights, from 2.6 to 6.6 bits a weight: what was
#: measured, and 3% more. Of the types that are only read, in llama.cpp's own blocks.
CEILINGS = {
    "Q2_K": 0.304, "Q3_K": 0.1545, "IQ4_XS": 0.0785, "IQ4_NL": 0.0778, "Q4_K": 0.0723,
    "Q5_K": 0.0354, "Q6_K": 0.0176,
}  # fmt: skip
IDS = [int(t) for t in np.random.default_rng(9).integers(0, 250, 32)]
TEXT = "the rain in the morning is on the roof and the road " * 60


def stored(values: np.ndarray, kind: Type, weights: np.ndarray | None = None, n: int = 1) -> bytes:
    """Through the library, whatever convert would do."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    out = bytearray(gguffile.tensor_bytes(values.shape, kind))
    given = ffi.NULL if weights is None else ffi.from_buffer("float[]", weights)
    check(lib.wina_quantize_rows(
        int(kind), ffi.from_buffer("float[]", values), *values.shape, given, n,
        ffi.from_buffer(out),
    ))  # fmt: skip
    return bytes(out)


def decoded(data: bytes, kind: Type, shape: tuple[int, ...]) -> np.ndarray:
    raw = np.frombuffer(data, np.uint8)
    shape = gguf.quants.quant_shape_to_byte_shape(shape, kind)
    return gguf.quants.dequantize(raw.reshape(shape), kind)


@pytest.mark.parametrize("data", ["normal", "tailed"])
@pytest.mark.parametrize("kind", golden.ROUNDED)
def test_simple_types_are_llama_cpps_to_the_bit(kind: str, data: str) -> None:
    values, _ = golden.weights(data)
    raw = values.tobytes()
    tensor = gguffile.Tensor("a.weight", values.shape, 0, len(raw), lambda: iter([raw]))
    (result,) = quantize(gguffile.GgufFile({}, [tensor]), kind).content.tensors
    written = b"".join(result.read())
    assert hashlib.sha256(written).hexdigest() == GOLDEN["hashes"][f"{data} {kind}"]


@pytest.mark.parametrize(
    ("model", "kind"),
    [(model, kind) for model in GOLDEN.get("perplexity", {})
     for kind in GOLDEN["perplexity"][model] if kind != "F16"],
)  # fmt: skip
def test_perplexity_is_not_above_llama_cpps(model: str, kind: str) -> None:
    """Of real models, both quantised from the same F16 file, over the same windows."""
    found = GOLDEN["perplexity"][model][kind]
    assert len(found["pywina"]) == len(found["llama_cpp"]) >= 2
    apart = np.mean(found["pywina"]) - np.mean(found["llama_cpp"])
    assert -0.02 < apart < np.log(1.005)


@pytest.mark.parametrize("data", ["normal", "tailed"])
@pytest.mark.parametrize("how", ["plain", "importance"])
@pytest.mark.parametrize("kind", SEARCHED)
def test_errors_are_not_above_llama_cpps(kind: Type, how: str, data: str) -> None:
    values, importance = golden.weights(data)
    given = importance if how == "importance" else None
    counted = importance if how == "importance" else np.ones_like(importance)
    error = golden.relative_error(values, stored(values, kind, given), kind, counted)
    theirs = GOLDEN["errors"][f"{data} {kind.name} {how}"]
    assert 0.8 * theirs < error < 1.004 * theirs


@pytest.mark.parametrize("kind", CEILINGS)
def test_error_ceilings(kind: str, tmp_path: Path) -> None:
    """As the library decodes; test_quantize.py has the types of fewer parts."""
    values = golden.some_weights()
    if Type[kind] in K_TYPES:
        data = stored(values, Type[kind])
    else:
        with np.load(ROOT / "tests" / "golden" / "quantised.npz") as file:
            data = file[kind].tobytes()
    path = tmp_path / "blocks.gguf"
    write_blocks(path, {Type[kind]: np.frombuffer(data, np.uint8)}, n_rows=len(values))
    with opened(path) as model:
        back = read_rows(model, kind, 0, *values.shape).view(np.float32)
    error = np.sqrt(((back.astype(np.float64) - values) ** 2).mean() / values.var())
    assert 0.9 * CEILINGS[kind] < error < CEILINGS[kind]


@pytest.mark.parametrize("kind", SEARCHED)
def test_bytes_do_not_depend_on_threads(kind: Type) -> None:
    values, importance = golden.weights("tailed")
    for weights in (None, importance):
        wanted = stored(values, kind, weights, 1)
        assert stored(values, kind, weights, 2) == stored(values, kind, weights, 5) == wanted
        assert (
            stored(values[3:4], kind, weights)
            == wanted[3 * len(wanted) // 64 :][: len(wanted) // 64]
        )


@pytest.mark.parametrize("kind", SEARCHED)
def test_extreme_weights(kind: Type) -> None:
    """Zeros stay zeros, no error is above the range's share, and nothing overflows."""
    rng = np.random.default_rng(4)
    plain = rng.standard_normal(512).astype(np.float32)
    spike = plain * 1e-3
    spike[77] = 60000.0
    rows = [
        np.zeros(512), np.full(512, 0.25), np.full(512, -3.0), plain * 1e-12, plain * 1e-30,
        spike, -spike, np.abs(plain) + 5, -np.abs(plain) - 5, np.where(plain > 0, 65504, -65504),
        np.linspace(-1, 1, 512), np.where(np.arange(512) < 256, 0, plain),
    ]  # fmt: skip
    values = np.stack(rows).astype(np.float32)
    for weights in (None, np.zeros(512, np.float32), np.ones(512, np.float32)):
        back = decoded(stored(values, kind, weights), kind, values.shape)
        assert np.isfinite(back).all()
        assert not back[0].any() and not back[11, :256].any()
        if weights is None or weights.any():
            span = np.abs(values).max(axis=1, keepdims=True)
            # A scale below the least half precision number is lost, and weights with it.
            worst = 1.1 * span / (STEPS[kind] // 2) + 2.0**-13
            assert (np.abs(back - values) <= worst).all()


def test_importance_moves_the_error() -> None:
    """Columns that count more have smaller errors than without."""
    values, _ = golden.weights("normal")
    weights = np.where(np.arange(2048) % 4 == 0, 100, 1).astype(np.float32)
    for kind in SEARCHED:
        plain = decoded(stored(values, kind), kind, values.shape) - values
        led = decoded(stored(values, kind, weights), kind, values.shape) - values
        assert (led[:, ::4] ** 2).mean() < 0.8 * (plain[:, ::4] ** 2).mean()


def test_refusals_of_the_library() -> None:
    values = np.ones((2, 256), np.float32)
    with pytest.raises(pywina.UnsupportedError, match="type Q2_K"):
        stored(values, Type.Q2_K)
    with pytest.raises(pywina.ArgumentError, match="rows of 128 columns"):
        stored(values.reshape(4, 128), Type.Q4_K)
    for value in (np.nan, np.inf, 70000.0):
        values[1, 7] = value
        with pytest.raises(pywina.NumericError, match="row 1, column 7"):
            stored(values, Type.Q4_K)
    weights = np.ones(256, np.float32)
    weights[3] = -1
    with pytest.raises(pywina.NumericError, match="importance of column 3"):
        stored(np.ones((2, 256)), Type.Q4_K, weights)


# ---- mixtures --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MIXTURES))
@pytest.mark.parametrize("name", list(golden.SPECS))
def test_mixtures_are_llama_cpps(name: str, kind: str) -> None:
    content = golden.content(golden.SPECS[name])
    mixture = Mixture(kind, content)
    letters = [golden.LETTERS[mixture.type_of(tensor).name] for tensor in content.tensors]
    assert "".join(letters) == GOLDEN["mixtures"][name]["types"][kind]


def test_mixtures_with_importance() -> None:
    """Q4_0 and Q5_0 have a better way down in the first eighth of the layers."""
    content = golden.content(golden.Spec(n_layer=16))
    types = {t.name: Mixture("Q4_0", content, True).type_of(t) for t in content.tensors}
    better = [name for name, kind in types.items() if kind == Type.Q4_1]
    assert better == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]


@pytest.fixture(scope="module")
def wide(write_model: Callable[..., Path]) -> Path:
    """A model whose rows are whole blocks of 256, in F16."""
    return write_model(n_embd=256, n_ff=512, n_layer=4, types=dict.fromkeys(ROLES, "F16"))


@pytest.mark.parametrize("kind", ["Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"])
def test_k_mixtures_run(wide: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out.gguf"
    assert main(["convert", str(wide), str(target), "--quantize", kind]) == 0
    reader = gguf.GGUFReader(target)
    types = {t.name: t.tensor_type for t in reader.tensors}
    assert types["token_embd.weight"] == Type.Q6_K and types["blk.0.attn_q.weight"] in K_TYPES
    assert reader.fields["general.file_type"].contents() == MIXTURES[kind]
    with pywina.load(wide) as a, pywina.load(target) as b:
        plain = a.logits(IDS)
        far = float(np.sqrt(((b.logits(IDS) - plain) ** 2).mean() / plain.var()))
        name = "blk.1.ffn_up.weight"
        error = b.read_tensor(name) - a.read_tensor(name)
        relative = float(np.sqrt((error**2).mean() / a.read_tensor(name).var()))
    bits = {"Q4": (0.073, 0.5), "Q5": (0.036, 0.25), "Q6": (0.018, 0.125)}[kind[:2]]
    assert relative < bits[0] and far < bits[1]


# ---- importance matrices ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The importance matrix of TEXT."""
    folder = tmp_path_factory.mktemp("imatrix")
    (folder / "text.txt").write_text(TEXT)
    command = ["calibrate", str(wide), "-f", str(folder / "text.txt"), "--windows", "2"]
    target = folder / "imatrix.gguf"
    assert main([*command, "--size", "64", "--imatrix", str(target)]) == 0
    return target


def test_measured_mean_squares(wide: Path, measured: Path) -> None:
    """Of the first layer's input, by hand; and the file is what llama.cpp writes."""
    with pywina.load(wide) as model:
        tokens = model.tokenize(TEXT)[:128]
        x = model.read_tensor("token_embd.weight")[tokens].astype(np.float64)
        x /= np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
        x *= model.read_tensor("blk.0.attn_norm.weight").ravel()
    found = imatrix.load(measured)
    assert len(found) == 4 * 7 and found["blk.3.ffn_down.weight"].shape == (1, 512)
    for name in ("q", "k", "v"):
        np.testing.assert_allclose(
            found[f"blk.0.attn_{name}.weight"][0], (x**2).mean(axis=0), rtol=2e-3
        )
    reader = gguf.GGUFReader(measured)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["text.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 64
    counts = {t.name: t for t in reader.tensors}["blk.0.ffn_up.weight.counts"]
    assert counts.data.ravel().tolist() == [128]


def test_quantising_with_an_importance_matrix(wide: Path, measured: Path, tmp_path: Path) -> None:
    """The error that the text sees gets smaller in every matrix of blocks of 32 or 256."""
    importance = imatrix.load(measured)
    for kind in ("Q4_K_S", "Q4_0"):
        a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
        command = ["convert", str(wide), "", "--quantize", kind]
        assert main([*command[:2], str(a), *command[3:]]) == 0
        more = ["--imatrix", str(measured), "-t", "2"]
        assert main([*command[:2], str(b), *command[3:], *more]) == 0
        with pywina.load(wide) as own, pywina.load(a) as plain, pywina.load(b) as led:
            for name, weights in importance.items():
                if plain.tensors[name].type != led.tensors[name].type:
                    continue
                values = own.read_tensor(name)
                before = ((plain.read_tensor(name) - values) ** 2 * weights).mean()
                after = ((led.read_tensor(name) - values) ** 2 * weights).mean()
                assert after < before, name


def write_dat(path: Path, entries: dict[str, np.ndarray], calls: int) -> Path:
    parts = [struct.pack("<i", len(entries))]
    for name, values in entries.items():
        data = name.encode()
        parts.append(struct.pack("<i", len(data)) + data)
        parts.append(struct.pack("<ii", calls, len(values)))
        parts.append((values * calls).astype("<f4").tobytes())
    path.write_bytes(b"".join(parts) + struct.pack("<ii", 7, 3) + b"abc")
    return path


def test_the_older_format(wide: Path, measured: Path, tmp_path: Path) -> None:
    found = imatrix.load(measured)
    old = write_dat(tmp_path / "imatrix.dat", {k: v[0] for k, v in found.items()}, 5)
    again = imatrix.load(old)
    assert list(again) == list(found)
    for name, values in found.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-6)


def test_experts_have_their_own(tmp_path: Path) -> None:
    """A stack of matrices: one row of importance each, in either format."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal((3, 5, 256), dtype=np.float32)
    weights = rng.lognormal(0, 2, (3, 256)).astype(np.float32)
    raw, name = values.tobytes(), "blk.0.ffn_up_exps.weight"

    def written(importance: imatrix.Importance) -> bytes:
        tensor = gguffile.Tensor(name, values.shape, 0, len(raw), lambda: iter([raw]))
        plan = golden_plan(gguffile.GgufFile({}, [tensor]), importance)
        return b"".join(plan.content.tensors[0].read())

    def golden_plan(content: gguffile.GgufFile, importance: imatrix.Importance):
        from pywina.convert.quantize import quantize

        return quantize(content, "Q4_K_S", importance)

    scaled = weights / weights.mean(axis=1, keepdims=True)
    wanted = b"".join(
        quantize_rows(matrix, Type.Q4_K, row) for matrix, row in zip(values, scaled, strict=True)
    )
    assert written({name: weights}) == wanted
    assert written({name: weights.reshape(1, -1)}) == wanted
    with pytest.raises(pywina.FormatError, match=f"importance of {name} has shape"):
        written({name: weights[:2]})


def test_refused_matrices(wide: Path, measured: Path, tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(pywina.WinaError, match=words):
            plan_quantized(wide, "Q4_K_M", imatrix.load(path))

    bad = tmp_path / "bad"
    bad.write_bytes(b"\x02\0\0\0")
    refused(bad, "ends early")
    bad.write_bytes(b"\xff\xff\xff\xff")
    refused(bad, "out of range")
    refused(wide, "holds no importance")
    refused(tmp_path / "none", "cannot read")
    refused(write_dat(bad, {"blk.0.attn_q.weight": np.full(256, np.nan)}, 1), "attn_q.weight")
    refused(write_dat(bad, {"other": np.ones(256)}, 1), "of other tensors")
    refused(write_dat(bad, {"blk.0.attn_q.weight": np.ones(64)}, 1), "has shape")
    cut = measured.read_bytes()
    bad.write_bytes(cut[: len(cut) - 100])
    refused(bad, "bad")


def test_refused_commands(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    out = str(tmp_path / "out.gguf")
    assert main(["convert", str(wide), out, "--imatrix", out]) == 2
    assert "goes with --quantize" in capsys.readouterr().err
    assert main(["calibrate", str(wide), "-f", str(text)]) == 2
    assert "give -o OUT, or --imatrix" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt"]

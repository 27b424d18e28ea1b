"""pywina convert --quantize: types, mixture, how near the result is, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from test_checkpoint import make_folder
from tinymodel import ROLES

import pywina
from pywina.cli import main
from pywina.convert import gguffile
from pywina.convert.convert import TYPES
from pywina.convert.gguffile import GgufFile, Tensor
from pywina.convert.quantize import quantize

IDS = [int(t) for t in np.random.default_rng(9).integers(0, 250, 32)]
SMALL = [kind for kind in TYPES if kind.startswith("Q")]

#: Largest relative RMS error of each type on Gaussian weights: what was measured, and 3% more.
CEILINGS = {
    "F16": 0.000215, "BF16": 0.00172, "Q8_0": 0.0055, "Q5_1": 0.039, "Q5_0": 0.0438,
    "Q4_1": 0.0805, "Q4_0": 0.088, "MXFP4": 0.1175, "TQ2_0": 0.828, "TQ1_0": 0.828,
}  # fmt: skip


def quantised(source: Path, folder: Path, kind: str) -> Path:
    target = folder / f"{kind}.gguf"
    assert main(["convert", str(source), str(target), "--quantize", kind]) == 0
    return target


def types_of(path: Path) -> dict[str, Type]:
    return {t.name: t.tensor_type for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", list(TYPES))
def test_types_and_mixture(
    write_model: Callable[..., Path], tmp_path: Path, kind: str, tied: bool
) -> None:
    source = write_model(architecture="qwen2", tied=tied, types=dict.fromkeys(ROLES, "F16"))
    target = quantised(source, tmp_path, kind)
    head = "token_embd.weight" if tied else "output.weight"
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(target)
    for a, b in zip(old.tensors, new.tensors, strict=True):
        wanted = Type.Q8_0 if a.name == head and kind in SMALL else Type[kind]
        wanted = Type.F32 if len(a.shape) == 1 else wanted
        assert (a.name, tuple(a.shape), wanted) == (b.name, tuple(b.shape), b.tensor_type)
        values = gguf.quants.dequantize(a.data, a.tensor_type)
        np.testing.assert_array_equal(b.data, gguf.quants.quantize(values, wanted))
    changed = {"general.file_type", "general.quantization_version"}
    for key, field in old.fields.items():
        if not key.startswith("GGUF.") and key not in changed:
            assert new.fields[key].contents() == field.contents()
    assert new.fields["general.file_type"].contents() == TYPES[kind]
    assert new.fields["general.quantization_version"].contents() == 2


def test_logits_stay_near(write_model: Callable[..., Path], tmp_path: Path) -> None:
    source = write_model(types=dict.fromkeys(ROLES, "BF16"))
    with pywina.load(source) as model:
        plain = model.logits(IDS)
    far = {}
    for kind in TYPES:
        with pywina.load(quantised(source, tmp_path, kind)) as model:
            error = model.logits(IDS) - plain
            far[kind] = float(np.sqrt((error**2).mean() / plain.var()))
    assert far["F32"] < 1e-6 and far["F16"] < 1e-3 and far["BF16"] == 0, far
    assert far["Q8_0"] < 0.04 < far["Q5_1"] < far["Q4_1"] < 0.4, far
    assert far["Q5_0"] < far["Q4_0"] < 0.4, far


def test_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    with pywina.load(tiny_model) as model:
        folder = make_folder(model, tmp_path / "checkpoint")
    wanted = quantised(tiny_model, tmp_path, "Q4_0")
    target = tmp_path / "out.gguf"
    assert main(["convert", str(folder), str(target), "--quantize", "Q4_0"]) == 0
    assert types_of(target) == types_of(wanted)
    with pywina.load(target) as a, pywina.load(wanted) as b:
        np.testing.assert_array_equal(a.logits(IDS), b.logits(IDS))


def test_a_dry_run_writes_nothing(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quantize", "Q4_0", "--dry-run"]
    assert main(["convert", str(tiny_model), str(tmp_path / "out.gguf"), *options]) == 0
    assert not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    assert "14 x Q4_0" in out and "1 x Q8_0" in out


def test_refusals(
    write_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(source: Path, *options: str) -> str:
        assert main(["convert", str(source), str(tmp_path / "out.gguf"), *options]) != 0
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().err

    small = write_model(types={"up": "Q8_0"})
    message = refused(small, "--quantize", "Q4_0")
    assert "blk.0.ffn_up.weight is Q8_0 already" in message
    message = refused(write_model(), "--quantize", "Q4_0", "--transform", "paper")
    assert "convert twice" in message


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (np.nan, "Q8_0", "no finite numbers"),
        (-np.inf, "BF16", "no finite numbers"),
        (70000, "Q4_0", "too large for Q4_0"),
        (70000, "F16", "too large for F16"),
    ],
)
def test_weights_that_no_type_holds(value: float, kind: str, words: str, tmp_path: Path) -> None:
    weights = np.zeros((3, 64), np.float32)
    weights[2, 5] = value
    raw = weights.tobytes()
    tensor = Tensor("a.weight", (3, 64), 0, len(raw), lambda: iter([raw[:100], raw[100:]]))
    plan = quantize(GgufFile({}, [tensor]), kind)
    with pytest.raises(pywina.FormatError, match=f"a.weight.*{words}"):
        gguffile.write(tmp_path / "out.gguf", plan.content)
    assert not list(tmp_path.iterdir())


def test_large_tensors_go_through_in_pieces() -> None:
    weights = np.random.default_rng(3).standard_normal((1100, 2048), dtype=np.float32)
    raw = weights.tobytes()
    cuts = [0, 5, 4_000_001, 8_000_000, len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(cuts)]
    tensor = Tensor("a.weight", weights.shape, 0, len(raw), lambda: iter(pieces))
    (result,) = quantize(GgufFile({}, [tensor]), "Q8_0").content.tensors
    written = list(result.read())
    assert len(written) == 3
    assert b"".join(written) == gguf.quants.quantize(weights, Type.Q8_0).tobytes()


def test_rows_of_odd_length_and_routers(tmp_path: Path) -> None:
    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        raw = np.ones(shape, np.float32).tobytes()
        return Tensor(name, shape, 0, len(raw), lambda: iter([raw]))

    shapes = {"a.weight": (2, 40), "blk.0.ffn_gate_inp.weight": (4, 64), "e.weight": (2, 3, 64)}
    plan = quantize(GgufFile({}, [tensor(*item) for item in shapes.items()]), "Q4_1")
    gguffile.write(tmp_path / "out.gguf", plan.content)
    assert list(types_of(tmp_path / "out.gguf").values()) == [Type.F16, Type.F32, Type.Q4_1]


@pytest.mark.parametrize("kind", list(CEILINGS))
def test_error_ceilings(kind: str) -> None:
    weights = np.random.default_rng(7).standard_normal((64, 1024), dtype=np.float32)
    stored = gguf.quants.quantize(weights, Type[kind])
    error = gguf.quants.dequantize(stored, Type[kind]) - weights
    relative = float(np.sqrt((error.astype(np.float64) ** 2).mean() / weights.var()))
    assert 0.9 * CEILINGS[kind] < relative < CEILINGS[kind], relative


@pytest.mark.parametrize("kind", list(TYPES)[1:])
def test_error_ceilings_as_the_library_decodes(
    write_model: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    name, source = "blk.0.ffn_up.weight", write_model(n_embd=256, n_ff=256)
    with pywina.load(source) as a, pywina.load(quantised(source, tmp_path, kind)) as b:
        weights, error = a.read_tensor(name), b.read_tensor(name) - a.read_tensor(name)
    assert float(np.sqrt((error**2).mean() / weights.var())) < CEILINGS[kind]

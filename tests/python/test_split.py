"""GGUF files in several parts: the same model as in one, and parts that do not belong together."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from tinymodel import TinySpec, write_tiny

import pywina
from pywina.cli import main
from pywina.convert import gguffile
from pywina.convert.gguffile import GgufFile

IDS = [int(t) for t in np.random.default_rng(9).integers(0, 250, 32)]
N_PARTS = 3


def u16(n: int) -> bytes:
    return np.array([2], "<u4").tobytes() + np.array([n], "<u2").tobytes()


def i32(n: int) -> bytes:
    return np.array([5, n], "<i4").tobytes()


def part_name(no: int, stem: str = "m", count: int = N_PARTS) -> str:
    return f"{stem}-{no + 1:05}-of-{count:05}.gguf"


def split_file(source: Path, folder: Path, stem: str = "m") -> Path:
    """As llama-gguf-split does it: metadata in the first part, tensors in turn."""
    whole = gguffile.read(source)
    keys = {"split.count": u16(N_PARTS), "split.tensors.count": i32(len(whole.tensors))}
    cuts = [0, 2, 3, len(whole.tensors)]
    for no in range(N_PARTS):
        values = (whole.values if no == 0 else {}) | keys | {"split.no": u16(no)}
        part = GgufFile(values, whole.tensors[cuts[no] : cuts[no + 1]])
        gguffile.write(folder / part_name(no, stem), part)
    return folder / part_name(0, stem)


@pytest.fixture
def first(tiny_model: Path, tmp_path: Path) -> Path:
    """The first part of the default tiny model in three."""
    return split_file(tiny_model, tmp_path)


def edit(path: Path, change: Callable[[GgufFile], object]) -> None:
    content = gguffile.read_part(path)
    change(content)
    gguffile.write(path, content)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_the_same_logits(tiny_model: Path, first: Path, sparsity: float) -> None:
    with pywina.load(tiny_model) as whole, pywina.load(first) as parts:
        np.testing.assert_array_equal(
            whole.logits(IDS, sparsity=sparsity), parts.logits(IDS, sparsity=sparsity)
        )
        assert parts.tensors == whole.tensors and parts.info.n_params == whole.info.n_params
        np.testing.assert_array_equal(
            whole.read_tensor("output_norm.weight"), parts.read_tensor("output_norm.weight")
        )
        sizes = [first.with_name(part_name(no)).stat().st_size for no in range(N_PARTS)]
        assert parts.info.file_bytes == sum(sizes)


def test_parts_by_gguf_py(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(gguf.GGUFWriter, split_max_tensors=8)
    monkeypatch.setattr("tinymodel.gguf.GGUFWriter", small)
    write_tiny(tmp_path / "m.gguf")
    with pywina.load(tmp_path / part_name(0)) as parts, pywina.load(tiny_model) as whole:
        np.testing.assert_array_equal(whole.logits(IDS), parts.logits(IDS))


@pytest.mark.parametrize("options", [[], ["--quantize", "Q8_0"], ["--pack"]])
def test_convert_makes_one_file(
    first: Path, tiny_model: Path, tmp_path: Path, options: list[str]
) -> None:
    for source, target in ((first, "a.gguf"), (tiny_model, "b.gguf")):
        assert main(["convert", str(source), str(tmp_path / target), *options]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_wina_packs_parts(first: Path, tiny_model: Path, wina_bin: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed.gguf"
    subprocess.run([wina_bin, "pack", "-m", first, "-o", target], check=True, capture_output=True)
    with pywina.load(tiny_model) as whole, pywina.load(target) as packed:
        np.testing.assert_array_equal(whole.logits(IDS), packed.logits(IDS))


def refused(path: Path, *words: str, kind: type[Exception] = pywina.FormatError) -> None:
    with pytest.raises(kind) as error:
        pywina.load(path)
    for word in words:
        assert word in str(error.value)


def test_a_part_that_is_not_there(first: Path) -> None:
    first.with_name(part_name(2)).unlink()
    refused(first, part_name(2), "No such file", kind=pywina.FileError)


def test_parts_mixed_up(first: Path) -> None:
    shutil.copy(first.with_name(part_name(2)), first.with_name(part_name(1)))
    refused(first, part_name(1), "says that it is part 3 of 3, but part 2 of 3 belongs here")


def test_opening_another_part(first: Path) -> None:
    second = first.with_name(part_name(1))
    refused(second, part_name(1), "part 2 of 3", "open part 1", kind=pywina.ArgumentError)


def test_a_renamed_first_part(first: Path) -> None:
    refused(first.rename(first.with_name("model.gguf")), "must end in -00001-of-00003.gguf")


def test_a_whole_file_in_a_parts_place(first: Path, tiny_model: Path) -> None:
    shutil.copy(tiny_model, first.with_name(part_name(1)))
    refused(first, part_name(1), "no split.count")


def test_a_part_cut_short(first: Path) -> None:
    second = first.with_name(part_name(1))
    second.write_bytes(second.read_bytes()[:-1])
    refused(first, part_name(1), "cut short")


def test_a_part_of_a_larger_model(first: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    large = write_tiny(tmp_path / "large.gguf", replace(TinySpec(), n_layer=3))
    other = split_file(large, tmp_path / "other")
    shutil.copy(other.with_name(part_name(2)), first.with_name(part_name(2)))
    refused(first, part_name(2), "another model", "split.tensors.count is 29, there 20")


@pytest.mark.parametrize("key", ["general.name", "general.architecture"])
def test_a_part_that_names_another_model(first: Path, key: str) -> None:
    edit(first.with_name(part_name(1)), lambda part: part.set(key, "other"))
    refused(first, part_name(1), "another model", key)


def test_a_tensor_too_few_and_one_twice(first: Path) -> None:
    def drop(part: GgufFile) -> None:
        part.tensors.pop()

    def double(part: GgufFile) -> None:
        part.tensors.append(gguffile.read_part(first).tensors[0])

    second = first.with_name(part_name(1))
    edit(second, drop)
    refused(first, "split.tensors.count is 20, but its parts hold 19")
    edit(second, double)
    refused(first, '"token_embd.weight" is in two parts')


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("split.count", "x", "split.count"),
        ("split.count", 4097, "split.count is 4097, the limit is 4096"),
        ("split.count", 0xFFFFFFFF, "the limit is 4096"),
        ("split.no", 0xFFFFFFFF, "this is part 4294967296 of 3"),
        ("split.count", 2, "must end in -00001-of-00002.gguf"),
        ("split.tensors.count", 1, "another model"),
    ],
)
def test_bad_values(first: Path, key: str, value: str | int, words: str) -> None:
    edit(first, lambda part: part.set(key, value))
    refused(first, words, kind=pywina.WinaError)


def test_one_part_of_one(tiny_model: Path, tmp_path: Path) -> None:
    path = shutil.copy(tiny_model, tmp_path / "any.gguf")
    edit(path, lambda part: part.values.update({"split.no": u16(0), "split.count": u16(1)}))
    with pywina.load(path) as model:
        assert model.info.n_layer == 2

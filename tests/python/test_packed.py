"""Packed files: the same results as the file they were made from, mapped, checked, or refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tinymodel import ROLES

import pywina
from pywina._native import check, ffi, lib
from pywina.cli import main

IDS = [int(t) for t in np.random.default_rng(3).integers(0, 250, 40)]
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0, "ignore_eog": True}
MIXED = dict(zip(ROLES, "Q8_0 F16 Q4_0 Q4_1 Q5_0 BF16 Q5_1 Q8_0 Q4_0".split(), strict=True))
MODELS: dict[str, dict[str, object]] = {
    "f32": {},
    "mixed": {"types": MIXED, "tied": False, "architecture": "qwen2"},
    "k": {
        "types": dict(zip(ROLES, "Q6_K Q6_K Q4_K Q4_K Q6_K Q5_K Q4_K Q5_K Q6_K".split(),
                          strict=True)),
        "n_embd": 256, "n_ff": 512,
    },
}  # fmt: skip


def _run(wina_bin: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([wina_bin, *map(str, args)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def packed(tiny_model: Path, tmp_path: Path) -> Path:
    target = tmp_path / "packed.gguf"
    with pywina.load(tiny_model) as model:
        model.write_packed(target)
    return target


def _texts(path: Path, sparsity: float, **options: object) -> str:
    with pywina.load(path, n_ctx=64, n_threads=1, sparsity=sparsity, **options) as model:
        return model.generate(IDS[:4], **GREEDY)


def _data_offset(path: Path) -> int:
    return int(gguf.GGUFReader(path).data_offset)


@pytest.mark.parametrize("kind", list(MODELS))
def test_results_are_the_same_bits(
    kind: str, write_model: Callable[..., Path], tmp_path: Path, wina_bin: Path
) -> None:
    source, target = write_model(**MODELS[kind]), tmp_path / "packed.gguf"
    done = _run(wina_bin, "pack", "-m", source, "-o", target)
    assert done.returncode == 0, done.stderr
    assert _run(wina_bin, "inspect", "-m", target, "--verify").returncode == 0
    with pywina.load(source) as plain, pywina.load(target) as mapped:
        for sparsity in (0.0, 0.5):
            for mask in ("group", "projection"):
                rule = pywina.Sparsity(sparsity, mask=mask, exponent=1.0)
                np.testing.assert_array_equal(
                    plain.logits(IDS, sparsity=rule), mapped.logits(IDS, sparsity=rule)
                )
        assert set(plain.tensors) <= set(mapped.tensors)
        for name, tensor in plain.tensors.items():
            assert mapped.tensors[name].type == tensor.type
            np.testing.assert_array_equal(plain.read_tensor(name), mapped.read_tensor(name))
        assert plain.info.n_params == mapped.info.n_params
        np.testing.assert_array_equal(plain.norms(1, "gate_up"), mapped.norms(1, "gate_up"))
        assert plain.generate("the", max_tokens=8, seed=1) == mapped.generate(
            "the", max_tokens=8, seed=1
        )
        assert {k: v for k, v in mapped.metadata.items() if k in plain.metadata} == plain.metadata


def test_the_real_model_says_the_same(smollm2_path: Path, tmp_path: Path, wina_bin: Path) -> None:
    target = tmp_path / "packed.gguf"
    assert _run(wina_bin, "pack", "-m", smollm2_path, "-o", target, "-t", 1).returncode == 0
    options = "bench -p 5 -n 2 -r 1 -t 1 --sparsity 0.5 --json -m".split()
    hashes = [
        [row.split('"')[0] for row in done.stdout.split('logits_hash":"')[1:]]
        for path in (smollm2_path, target)
        for more in ([], ["--no-mmap"])
        if (done := _run(wina_bin, *options, path, *more)).returncode == 0
    ]
    assert len(hashes) == 4 and hashes[0] and all(row == hashes[0] for row in hashes)


def test_convert_packs_with_the_tuning(tiny_model: Path, tmp_path: Path) -> None:
    plain, target = tmp_path / "plain.gguf", tmp_path / "packed.gguf"
    assert main(["convert", str(tiny_model), str(target), "--pack", "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    assert main(["convert", str(tiny_model), str(plain)]) == 0
    assert main(["convert", str(tiny_model), str(target), "--pack"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed.gguf", "plain.gguf"]
    rule = pywina.Sparsity(0.5, norms="calibrated")
    with pywina.load(plain) as a, pywina.load(target) as b:
        np.testing.assert_array_equal(a.logits(IDS, sparsity=rule), b.logits(IDS, sparsity=rule))
    assert main(["convert", str(target), str(tmp_path / "again.gguf")]) != 0
    assert not (tmp_path / "again.gguf").exists()


def test_a_packed_file_is_not_packed_again(packed: Path, tiny_model: Path, wina_bin: Path) -> None:
    done = _run(wina_bin, "pack", "-m", packed, "-o", packed.with_name("again.gguf"))
    assert done.returncode == 2 and "packed file already" in done.stderr
    done = _run(wina_bin, "pack", "-m", tiny_model, "-o", tiny_model)
    assert done.returncode == 2 and "the input itself" in done.stderr
    done = _run(wina_bin, "inspect", "-m", tiny_model, "--verify")
    assert done.returncode == 2 and "not packed" in done.stderr


def test_writing_is_all_or_nothing(tiny_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed.gguf"
    target.write_bytes(b"old")

    def stop(done: float) -> None:
        raise KeyboardInterrupt

    with pywina.load(tiny_model) as model:
        with pytest.raises(KeyboardInterrupt):
            model.write_packed(target, stop)
        assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
        with pytest.raises(pywina.WinaError, match="no/such"):
            model.write_packed(tmp_path / "no/such/file")


def _patched(path: Path, key: bytes, value: int) -> Path:
    data = bytearray(path.read_bytes())
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(data)
    return path


def test_the_state_of_a_packed_model(packed: Path) -> None:
    """Saving it once read the tensors that a packed file has no data of."""
    with pywina.load(packed, n_threads=1, backend="cpu") as model:
        first = model.generate("abc", max_tokens=4, temperature=0)
        state = model.save_state()
        model.load_state(state)
        assert model.save_state() == state
        assert model.generate("abc", max_tokens=4, temperature=0) == first


def test_other_versions_are_named(packed: Path) -> None:
    other = Path(shutil.copy(packed, packed.with_name("other.gguf")))
    with pytest.raises(pywina.UnsupportedError, match=r"panel layout 7.*pack the original again"):
        pywina.load(_patched(other, b"wina.pack.layout", 7))
    with pytest.raises(pywina.UnsupportedError, match="packed in format 9"):
        pywina.load(_patched(packed, b"wina.pack.version", 9))


def test_damage_is_found(packed: Path, wina_bin: Path) -> None:
    whole = packed.read_bytes()
    at = _data_offset(packed)
    first = struct.unpack_from("<f", whole, at)  # the panels are where the data begins
    assert first
    for offset, section in ((at + 8, "output panel"), (len(whole) - 400, "unpacked tensors")):
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        packed.write_bytes(damaged)
        done = _run(wina_bin, "inspect", "-m", packed, "--verify")
        assert done.returncode == 2 and "checksum" in done.stderr and section in done.stderr
    damaged = bytearray(whole)
    damaged[whole.index("Ġthe".encode()) + 2] ^= 1
    packed.write_bytes(damaged)
    with pytest.raises(pywina.FormatError, match="header"):
        pywina.load(packed)


def test_a_file_that_is_cut_short_is_refused(packed: Path) -> None:
    whole = packed.read_bytes()
    for n in (len(whole) - 8, _data_offset(packed) + 64, _data_offset(packed), 100):
        packed.write_bytes(whole[:n])
        with pytest.raises(pywina.FormatError, match=r"cut short|more bytes than the file"):
            pywina.load(packed)


def _rewrite(path: Path, at: int, data: bytes) -> None:
    """Some bytes in place, a little later than what was written before."""
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_file_that_is_written_to_while_it_is_mapped(
    is_packed: bool, packed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Never tokens of other weights: an error, for all that share the model, until it is loaded
    anew; what the file has now is what counts then."""
    path = packed if is_packed else Path(shutil.copy(tiny_model, tmp_path / "plain.gguf"))
    before, at = path.stat(), _data_offset(path)
    whole = path.read_bytes()
    with pywina.load(path, n_ctx=64, n_threads=1) as model, model.share() as other:
        wanted = model.generate(IDS[:4], **GREEDY)
        stream = other.stream(IDS[:4], **GREEDY)
        next(stream)
        _rewrite(path, at + 64, np.full(256, 0.25, "<f4").tobytes())
        for work in (
            lambda: model.generate(IDS[:4], **GREEDY),
            lambda: model.logits(IDS),
            lambda: next(stream),
            lambda: model.generate_batch([IDS[:4], IDS[:5]], **GREEDY),
            lambda: model.write_packed(tmp_path / "again.gguf"),
        ):
            with pytest.raises(pywina.WinaError, match=r"was changed after|packed file already"):
                work()
        assert not (tmp_path / "again.gguf").exists()
        with pywina.load(path, n_ctx=64, n_threads=1) as changed:
            assert not np.array_equal(changed.logits(IDS), 0)
        path.write_bytes(whole)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert model.generate(IDS[:4], **GREEDY) == wanted
        os.truncate(path, at + 64)
        with pytest.raises(pywina.FileError, match="was cut short"):
            model.generate(IDS[:4], **GREEDY)
        stream.close()


def test_a_file_that_is_replaced_or_deleted_stays_as_it_was(packed: Path) -> None:
    with pywina.load(packed, n_ctx=64, n_threads=1) as model:
        wanted = model.generate(IDS[:4], **GREEDY)
        packed.with_name("new").write_bytes(bytes(1000))
        packed.with_name("new").replace(packed)
        assert model.generate(IDS[:4], **GREEDY) == wanted
        packed.unlink()
        assert model.generate(IDS[:4], **GREEDY) == wanted


CUT = """
import sys, pywina
with pywina.load(sys.argv[1], n_ctx=900, n_threads=1) as model:
    for chunk in model.stream([65, 66], max_tokens=800, temperature=0.0, ignore_eog=True):
        print(chunk.token, flush=True)
"""


def test_a_file_that_is_cut_short_in_mid_generation(
    write_model: Callable[..., Path], tmp_path: Path
) -> None:
    """An error, or the signal that the system gives; never a token of other weights."""
    target = tmp_path / "packed.gguf"
    with pywina.load(write_model(n_ctx=1024)) as model:
        model.write_packed(target)
    wanted = subprocess.run(
        [sys.executable, "-c", CUT, str(target)], capture_output=True, text=True, check=True
    ).stdout
    assert wanted.count("\n") >= 800
    for n_lines in (1, 50):
        copy = Path(shutil.copy(target, tmp_path / "cut.gguf"))
        command = [sys.executable, "-c", CUT, str(copy)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:
            assert process.stdout is not None
            start = "".join(process.stdout.readline() for _ in range(n_lines))
            os.truncate(copy, 4096)
            rest, error = process.communicate(timeout=60)
        assert wanted.startswith(start + rest)
        if process.returncode != -signal.SIGBUS:
            assert process.returncode == 1 and "was cut short" in error


def _hash(data: bytes) -> int:
    """The checksum, written a second time."""
    mask = (1 << 64) - 1

    def mix(h: int, word: int) -> int:
        h = (h ^ word) * 0x9E3779B97F4A7C15 & mask
        return h ^ h >> 32

    lanes = [1, 2, 3, 4]
    whole = len(data) & ~31
    words = struct.unpack(f"<{whole // 8}Q", data[:whole])
    for i, word in enumerate(words):
        lanes[i % 4] = mix(lanes[i % 4], word)
    h = mix(len(data), lanes[0])
    for lane in lanes[1:]:
        h = mix(h, lane)
    for byte in data[whole:]:
        h = mix(h, byte)
    return h


def test_wrong_headers_with_right_checksums(packed: Path) -> None:
    """A file made to look whole: whatever it says, it loads or is refused."""
    whole, start = packed.read_bytes(), _data_offset(packed)
    sums = next(t for t in gguf.GGUFReader(packed).tensors if t.name == "wina.pack.sums")
    at = int(sums.data_offset)
    assert struct.unpack_from("<Q", whole, at)[0] == _hash(whole[:start])
    random = np.random.default_rng(5)
    first = whole.index(b"wina.pack.names")
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(int(random.integers(1, 3))):
            data[int(random.integers(first, start))] = int(random.integers(0, 256))
        struct.pack_into("<Q", data, at, _hash(bytes(data[:start])))
        packed.write_bytes(data)
        try:
            with pywina.load(packed) as model:
                model.logits(IDS[:4])
            outcomes.add("loaded")
        except pywina.WinaError:
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}


@pytest.mark.parametrize("kind", list(MODELS))
def test_columns_read_from_the_file_give_the_same_bits(
    kind: str, write_model: Callable[..., Path], tmp_path: Path, wina_bin: Path
) -> None:
    """However many of them stay in memory."""
    target = tmp_path / "packed.gguf"
    assert _run(wina_bin, "pack", "-m", write_model(**MODELS[kind]), "-o", target).returncode == 0
    for mask in ("group", "projection"):
        options = f"bench -p 3 -n 6 -r 2 -t 2 --sparsity 0,0.5 --mask {mask} --json -m".split()
        want = [row["logits_hash"] for row in json.loads(_run(wina_bin, *options, target).stdout)]
        assert len(want) == 3
        n_bytes = target.stat().st_size
        for resident in (n_bytes // 4, n_bytes // 2, 10 * n_bytes):
            done = _run(wina_bin, *options, target, "--resident", resident)
            assert done.returncode == 0, done.stderr
            assert [row["logits_hash"] for row in json.loads(done.stdout)] == want
    done = _run(wina_bin, *options, target, "--resident", 1)
    if kind == "f32":  # which has no scales
        assert done.returncode == 0
    else:
        assert done.returncode == 1 and "too few: the scales alone have" in done.stderr


def test_columns_longer_than_a_read(
    write_model: Callable[..., Path], tmp_path: Path, wina_bin: Path
) -> None:
    """Those of 160 KB once overflowed a buffer for 128 KB."""
    target = tmp_path / "packed.gguf"
    source = write_model(n_layer=1, n_ff=20_000)
    assert _run(wina_bin, "pack", "-m", source, "-o", target).returncode == 0
    want = _texts(target, 0.5)
    assert _texts(target, 0.5, resident=target.stat().st_size // 3) == want


def test_resident_columns_from_python(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """load(), shared models, states, commands; from another folder, too."""
    want = {s: _texts(packed, s) for s in (0.0, 0.5)}
    size = packed.stat().st_size // 2
    for resident in (size, f"{size // 1024}K", "1G"):
        for sparsity, text in want.items():
            assert _texts(packed, sparsity, resident=resident) == text
    monkeypatch.chdir(packed.parent)
    with pywina.load(packed.name, n_ctx=64, n_threads=1, resident=size) as model:
        monkeypatch.chdir("/")
        with model.share() as other:
            state = model.save_state()
            other.load_state(state)
            assert other.generate(IDS[:4], **GREEDY) == want[0.0]
        moved = tmp_path / "moved"
        packed.rename(moved)
        with pytest.raises(pywina.FileError, match=f"{packed.name}.*No such file"):
            model.share()
        packed.write_bytes(moved.read_bytes())
        with pytest.raises(pywina.FileError, match=f"{packed.name}.*not the file that was loaded"):
            model.share()
        assert model.generate(IDS[:4], **GREEDY) == want[0.0]
    command = ["run", "-m", str(packed), "-p", "a b", "-n", "4", "--temp", "0", "-t", "1"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert main([*command, "--resident", str(size)]) == 0
    assert capsys.readouterr().out == text
    monkeypatch.setenv("PYWINA_RESIDENT", "x")
    assert main(command) == 2
    assert "resident is 'x'" in capsys.readouterr().err
    for wrong in ("", "x", 0, -1, 1.5):
        with pytest.raises(pywina.ArgumentError, match="resident"):
            pywina.load(packed, resident=wrong)


def test_the_plan_of_resident_columns(packed: Path, wina_bin: Path) -> None:
    """Less than the whole by what stays on the disk, beside what reading takes; `wina inspect` and
    limits know it."""
    with pywina.load(packed, n_ctx=64, n_threads=1) as model:
        whole = model.plan_memory()
    plans = []
    for resident in (packed.stat().st_size // 2, packed.stat().st_size // 4):
        options = {"n_ctx": 64, "n_threads": 1, "resident": resident}
        with pywina.load(packed, **options) as model:
            plans.append(model.plan_memory())
        shown = _run(wina_bin, "inspect", "-m", packed, "--json", "-c", 64, "-t", 1,
                     "--resident", resident)  # fmt: skip
        assert json.loads(shown.stdout)["plan"] == dataclasses.asdict(plans[-1])
        pywina.load(packed, **options, mem_limit=plans[-1].peak_bytes).close()
        with pytest.raises(pywina.OutOfMemoryError, match="the plan needs"):
            pywina.load(packed, **options, mem_limit=plans[-1].peak_bytes - 1)
    first, second = plans
    assert first.weight_bytes - second.weight_bytes == (
        packed.stat().st_size // 2 - packed.stat().st_size // 4
    )
    assert first.cache_bytes == whole.cache_bytes and first.other_bytes == whole.other_bytes
    done = _run(wina_bin, "inspect", "-m", packed, "--resident", "x")
    assert done.returncode == 2 and "--resident" in done.stderr


def test_a_mixture_with_resident_columns(
    write_model: Callable[..., Path], tmp_path: Path, wina_bin: Path
) -> None:
    """Its experts are read through the mapping."""
    target = tmp_path / "packed.gguf"
    mixture = Path(__file__).parents[1] / "fuzz" / "corpus" / "mixture.gguf"
    assert _run(wina_bin, "pack", "-m", mixture, "-o", target).returncode == 0
    options = "bench -p 3 -n 4 -r 1 -t 1 --sparsity 0,0.5 --json -m".split()
    want = [row["logits_hash"] for row in json.loads(_run(wina_bin, *options, target).stdout)]
    for resident in ("1M", target.stat().st_size // 4):
        done = _run(wina_bin, *options, target, "--resident", resident)
        assert done.returncode == 0, done.stderr
        assert [row["logits_hash"] for row in json.loads(done.stdout)] == want


def test_resident_columns_want_a_packed_file(
    packed: Path, tiny_model: Path, wina_bin: Path
) -> None:
    options = "run -p a -n 1 -t 1".split()
    for path, more, message in (
        (tiny_model, ["--resident", "1M"], "packed files that are mapped"),
        (packed, ["--resident", "1M", "--no-mmap"], "packed files that are mapped"),
        (packed, ["--resident", "0"], "--resident"),
        (packed, ["--resident", "-1"], "--resident"),
    ):
        done = _run(wina_bin, *options, "-m", path, *more)
        assert done.returncode == 2 and message in done.stderr


def _locked() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmLck:"))


def test_locked_weights_are_locked_until_the_end(packed: Path) -> None:
    for no_mmap in (0, 1):
        params, model = ffi.new("wina_model_params *"), ffi.new("wina_model **")
        lib.wina_model_params_init(params)
        params.mlock, params.no_mmap, params.n_threads = 1, no_mmap, 1
        before = _locked()
        check(lib.wina_model_load(str(packed).encode(), params, model))
        info = ffi.new("wina_model_info *")
        lib.wina_model_get_info(model[0], info)
        assert _locked() - before >= info.weight_bytes * 0.9
        lib.wina_model_free(model[0])
        assert _locked() == before

"""Bad files are refused by loader and converter: the right error, quickly, in little memory."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from make_bad import Case, cases, good

import pywina
from pywina.cli import main

CASES = cases()
IDS = [case.name for case in CASES]


def _status(name: str) -> int:
    """kB of this process, from the kernel's books."""
    return int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def check_cheap(call: Callable[[], object]) -> None:
    """A call takes under 64 MB at its peak and under 100 ms of processor time: the best of three,
    since this process also has the garbage of other tests to collect."""
    seconds = []
    for _ in range(3):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = _status("VmRSS"), time.process_time()
        call()
        seconds.append(time.process_time() - start)
        assert _status("VmHWM") - before < 64e3
        if seconds[-1] < 0.1:
            return
    pytest.fail(f"took {seconds} s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad")
    for case in CASES:
        (path / f"{case.name}.gguf").write_bytes(case.data)
    (path / "good.gguf").write_bytes(good().encode())
    return path


def test_there_are_many_and_all_differ() -> None:
    assert len(CASES) >= 120
    assert len(set(IDS)) == len(IDS) and len({case.data for case in CASES}) == len(CASES)


def test_the_model_they_are_made_from_runs(folder: Path) -> None:
    path = folder / "good.gguf"
    with pywina.load(path, n_threads=1) as model:
        assert len(model.generate("abc", max_tokens=4, temperature=0, ignore_eog=True)) > 0
    assert main(["convert", str(path), str(folder / "converted.gguf")]) == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["token_embd", "blk.0.ffn_gate", "blk.0.attn_q", "output_norm"])
def test_weights_that_are_no_numbers(tensor: str, number: float, tmp_path: Path) -> None:
    """exp of a NaN once shifted a negative number."""
    content = good()
    weights = content.tensor(f"{tensor}.weight")
    n = len(weights.data) // 4
    weights.data = struct.pack(f"<{n}f", *[number] * n)
    path = tmp_path / "x.gguf"
    path.write_bytes(content.encode())
    with pywina.load(path, n_threads=1) as model, pytest.raises(pywina.NumericError):
        model.generate("abc", max_tokens=4)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_refused(case: Case, folder: Path) -> None:
    path = folder / f"{case.name}.gguf"

    def load() -> None:
        with pytest.raises(getattr(pywina, case.error)) as caught:
            pywina.load(path, n_threads=1, backend="cpu")
        assert type(caught.value).__name__ == case.error and case.words in str(caught.value)

    check_cheap(load)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_not_converted(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = folder / f"{case.name}.gguf", folder / "out" / "target.gguf"
    target.parent.mkdir(exist_ok=True)

    def convert() -> None:
        assert main(["convert", str(source), str(target)]) == 2
        assert case.words in capsys.readouterr().err
        assert not list(target.parent.iterdir())

    check_cheap(convert)

"""Whole commands whose n-th call fails: see fault_rounds.py. PYWINA_FAULT_STEP=1 tries every n."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pywina

HERE = Path(__file__).parent
STEP = os.environ.get("PYWINA_FAULT_STEP", "9")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("faults are injected by a C library on Linux")
    if "libasan" in os.environ.get("LD_PRELOAD", "") or "libtsan" in os.environ.get(
        "LD_PRELOAD", ""
    ):
        pytest.skip("a sanitizer has replaced the calls already")
    path = tmp_path_factory.mktemp("shim") / "libfaults.so"
    command = [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-builtin", "-fPIC",
               "-shared", HERE / "faults.c", "-o", path, "-ldl"]  # fmt: skip
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("command", ["convert", "calibrate", "load", "pack"])
def test_the_nth_call_fails(command: str, shim: Path, tmp_path: Path) -> None:
    paths = [HERE, HERE.parent / "python", Path(pywina.__file__).parents[1]]
    environment = os.environ | {
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, HERE / "fault_rounds.py", command, tmp_path, STEP],
        env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{command}: short reads and writes" in result.stdout
    memory = next(line for line in result.stdout.splitlines() if ": memory" in line)
    assert int(memory.split()[-2]) * int(STEP) > 20  # of the library's own allocations

"""Where a model runs: options, messages, and the way back to the CPU. Works without a GPU: the
library that would use one is named by WINA_CUDA_LIBRARY and is missing or not ours."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import pywina

Wina = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def wina(wina_bin: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Wina:
    """wina(*arguments): a short run of the tiny model; no CUDA library is there."""
    monkeypatch.setenv("WINA_CUDA_LIBRARY", "/nowhere/libwina_cuda.so")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(wina_bin), "run", "-m", str(tiny_model), "-p", "the", "-n", "4", "-s", "1"]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, errors="replace", check=False
        )

    return run


def test_without_a_library_the_cpu_is_used_and_says_why(wina: Wina) -> None:
    on_cpu, auto = wina("--backend", "cpu"), wina("-v")
    assert on_cpu.returncode == auto.returncode == 0
    assert auto.stdout == on_cpu.stdout
    assert "on the CPU: CUDA: cannot open the library" in auto.stderr
    assert "CUDA" not in wina("--backend", "cpu", "-v").stderr


@pytest.mark.parametrize("arguments", [("--backend", "cuda"), ("-ngl", "all")])
def test_a_forced_gpu_that_is_not_there_fails(wina: Wina, arguments: tuple[str, ...]) -> None:
    done = wina(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("CUDA: cannot open the library") == 1
    assert "/nowhere/libwina_cuda.so" in done.stderr


def test_a_library_of_something_else_is_refused(
    wina: Wina, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.c").write_text("int other(void) { return 0; }\n")
    library = tmp_path / "libother.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", str(tmp_path / "other.c"), "-o", str(library)], check=True
    )
    monkeypatch.setenv("WINA_CUDA_LIBRARY", str(library))
    done = wina("--backend", "cuda")
    assert done.returncode == 2
    assert f"{library} belongs to another version" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "tpu"), '--backend: "tpu" is not known (auto, cpu or cuda'),
        (("-ngl", "some"), '--gpu-layers: "some" is not a whole number'),
        (("-ngl", "-2"), "--gpu-layers: -2 is outside"),
        (("-ngl", "1"), "CUDA: cannot open the library"),  # asked for, so it is an error
    ],
)
def test_wrong_options(wina: Wina, arguments: tuple[str, ...], message: str) -> None:
    done = wina(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_no_layers_on_the_gpu_is_the_cpu(wina: Wina) -> None:
    done = wina("-ngl", "0", "--backend", "cuda", "-v")
    assert done.returncode == 0
    assert "CUDA" not in done.stderr


def test_python(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINA_CUDA_LIBRARY", "/nowhere/libwina_cuda.so")
    with pywina.load(tiny_model) as model:
        assert (model.info.backend, model.info.device, model.info.gpu_bytes) == ("cpu", "", 0)
        assert "cannot open the library" in model.info.backend_note
    with pywina.load(tiny_model, backend="cpu") as model:
        assert model.info.backend_note == ""
    with pytest.raises(pywina.UnsupportedError, match="CUDA: cannot open the library"):
        pywina.load(tiny_model, backend="cuda")
    with pytest.raises(pywina.ArgumentError, match="backend is 'tpu'"):
        pywina.load(tiny_model, backend="tpu")  # type: ignore[arg-type]
    with pytest.raises(pywina.ArgumentError, match="n_gpu_layers"):
        pywina.load(tiny_model, n_gpu_layers=-1)

"""Fixtures: the program, tiny models, the real models, and shared data.

Real models are fetched once into the user's cache. Where that is impossible, tests that need them
are skipped with the reason; with CI in the environment they fail instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tinymodel import TinySpec, write_tiny

import pywina
from pywina.hub.fetch import fetch

ROOT = Path(__file__).resolve().parents[2]

# A shell's background jobs ignore interrupts, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _fetched(name: str) -> Path:
    try:
        return fetch(name)
    except pywina.FetchError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{name} cannot be fetched: {error}", pytrace=False)
        pytest.skip(f"{name} cannot be fetched: {error}")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2 135M Instruct, Q4_1: llama, tied output."""
    return _fetched("smollm2-135m")


@pytest.fixture(scope="session")
def qwen_path() -> Path:
    """Qwen2.5 Coder 0.5B Instruct: qwen2, biases, untied output, six tensor types."""
    return _fetched("qwen2.5-coder-0.5b")


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma 3 270M, Q4_K_M: gemma3, SentencePiece-like vocabulary of 262144 tokens."""
    return _fetched("gemma3-270m")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Shared test data: $PYWINA_DATA, else ../shared/data next to the repository."""
    given = os.environ.get("PYWINA_DATA")
    path = Path(given) if given else ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no shared test data: {path} is not there (set PYWINA_DATA)")
    return path


@pytest.fixture(scope="session")
def wina_bin() -> Path:
    """The `wina` program: $WINA_BIN, else that of the default build."""
    path = Path(os.environ.get("WINA_BIN") or ROOT / "build" / "bin" / "wina")
    if not path.is_file():
        pytest.fail(f"{path} is not there: run make first", pytrace=False)
    return path


@pytest.fixture(scope="session")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """write_model(**fields of TinySpec): the path of that tiny model, written on first use."""
    folder = tmp_path_factory.mktemp("models")
    paths: dict[str, Path] = {}

    def write(**fields: object) -> Path:
        spec = TinySpec(**fields)
        key = repr(spec)
        if key not in paths:
            paths[key] = write_tiny(folder / f"tiny{len(paths)}.gguf", spec)
        return paths[key]

    return write


@pytest.fixture(scope="session")
def tiny_model(write_model: Callable[..., Path]) -> Path:
    """Path of the default tiny model: llama, F32."""
    return write_model()


@pytest.fixture
def load_tiny(tiny_model: Path) -> Iterator[Callable[..., pywina.Model]]:
    """load_tiny(**arguments of pywina.load): the default tiny model; closed after the test."""
    models: list[pywina.Model] = []

    def load(**options: object) -> pywina.Model:
        model = pywina.load(tiny_model, **options)
        models.append(model)
        return model

    yield load
    for model in models:
        model.close()


@pytest.fixture
def tiny(load_tiny: Callable[..., pywina.Model]) -> pywina.Model:
    """The default tiny model, loaded."""
    return load_tiny()

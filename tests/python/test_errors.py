"""Bad input: an exception of the right class, with a text that names the thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tinymodel import TinySpec, write_tiny

import pywina

Load = Callable[..., pywina.Model]
Write = Callable[..., Path]


# ---- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"sparsity": float("inf")}, "sparsity is inf"),
        ({"sparsity": "half"}, "sparsity is 'half'"),
        ({"sparsity": True}, "sparsity is True"),
        ({"method": "magic"}, "method is 'magic'.*'wina', 'teal'"),
        ({"mask": "all"}, "mask is 'all'.*'group'"),
    ],
)
def test_bad_sparsity(
    load_tiny: Load, tiny_model: Path, options: dict[str, object], complaint: str
) -> None:
    model = load_tiny()
    for call in (
        lambda: load_tiny(**options),
        lambda: model.generate("a", **options),
        lambda: model.stream("a", **options),
        lambda: model.logits("a", **options),
        lambda: pywina.generate(tiny_model, "a", **options),
        lambda: pywina.generate("no such model", "a", **options),  # told before the load
    ):
        with pytest.raises(pywina.ArgumentError, match=complaint):
            call()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -2}, "max_tokens is -2"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_tokens": 2**31}, "max_tokens is 2147483648"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -0.5}, "min_p is -0.5"),
        ({"repeat_last_n": -2}, "repeat_last_n is -2"),
        ({"repeat_penalty": 0.0}, "repeat_penalty is 0"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf"),
        ({"frequency_penalty": None}, "frequency_penalty is None"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"stop": ""}, "empty string"),
        ({"stop": ["a", ""]}, "empty string"),
        ({"stop": "a\0b"}, "NUL"),
        ({"stop": [3]}, "stop is of type int"),
    ],
)
def test_bad_generation_parameters(
    tiny: pywina.Model, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(pywina.ArgumentError, match=complaint):
        tiny.generate("a", **options)


def test_unknown_parameters_are_type_errors(tiny: pywina.Model) -> None:
    with pytest.raises(TypeError, match="temprature"):
        tiny.generate("a", temprature=1.0)
    with pytest.raises(TypeError, match="temprature"):
        pywina.generate(tiny, "a", temprature=1.0)


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("", "empty"),
        ([], "no tokens"),
        (["a"], r"prompt\[0\] is 'a'"),
        ([1, 99999], r"prompt\[1\] is 99999.*0 to 289"),
        ([-1], r"prompt\[0\] is -1"),
        ([1.5], r"prompt\[0\] is 1.5"),
        ("a\udc80", "lone surrogate"),
    ],
)
def test_bad_prompts(tiny: pywina.Model, prompt: object, complaint: str) -> None:
    for call in (tiny.generate, tiny.stream, tiny.logits):
        with pytest.raises(pywina.ArgumentError, match=complaint):
            call(prompt)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"n_ctx": 0}, "n_ctx is 0"),
        ({"n_ctx": -5}, "n_ctx is -5"),
        ({"n_ctx": 513}, "n_ctx is 513.*512"),
        ({"n_ctx": 2**40}, "n_ctx is 1099511627776"),
        ({"n_ctx": "big"}, "n_ctx is 'big'"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"n_threads": 5000}, "n_threads is 5000"),
        ({"n_batch": 0}, "n_batch is 0"),
        ({"n_batch": 65536}, "n_batch is 65536"),
    ],
)
def test_bad_load_parameters(load_tiny: Load, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(pywina.ArgumentError, match=complaint):
        load_tiny(**options)


def test_load_parameters_need_a_path(tiny: pywina.Model) -> None:
    with pytest.raises(pywina.ArgumentError, match="loaded already"):
        pywina.generate(tiny, "a", n_ctx=64)


def test_too_small_a_context(load_tiny: Load) -> None:
    model = load_tiny(n_ctx=8)
    for call in (model.generate, lambda prompt: list(model.stream(prompt)), model.logits):
        with pytest.raises(pywina.ContextError, match=r"8.*larger n_ctx"):
            call("a prompt that is much longer than the context")
    assert model.generate("a", max_tokens=2) is not None


def test_bad_logits_parameters(tiny: pywina.Model) -> None:
    for options in ({"start": -1}, {"start": 3}, {"dense_prefix": -1}):
        with pytest.raises(pywina.ArgumentError):
            tiny.logits([1, 2, 3], **options)


# ---- files ------------------------------------------------------------------------------------


def test_missing_files_and_names(tmp_path: Path) -> None:
    for name in (tmp_path / "none.gguf", "no-such-model"):
        with pytest.raises(pywina.ModelNotFoundError, match="smollm2-135m") as caught:
            pywina.load(name)
        assert isinstance(caught.value, FileNotFoundError)


def test_folders_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(pywina.FileError, match=tmp_path.name):
        pywina.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 10, b"\0" * 4096])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises((pywina.FormatError, pywina.FileError), match=r"bad\.gguf"):
        pywina.load(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.9999])
def test_files_cut_short(tmp_path: Path, tiny_model: Path, share: float) -> None:
    path = tmp_path / "short.gguf"
    data = tiny_model.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(pywina.FormatError, match=r"short\.gguf.*fetch it again"):
        pywina.load(path)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"architecture": "mamba"}, "mamba"),
        ({"pre": "strange"}, "strange"),
        ({"architecture": "qwen2", "extra": {"qwen2.expert_count": 8}}, "experts"),
        ({"extra": {"llama.rope.scaling.type": "yarn"}}, "yarn"),
    ],
)
def test_unsupported_models_are_named(
    tmp_path: Path, fields: dict[str, object], complaint: str
) -> None:
    path = write_tiny(tmp_path / "other.gguf", TinySpec(**fields))
    with pytest.raises(pywina.UnsupportedError, match=complaint):
        pywina.load(path)


def test_weights_that_are_not_numbers(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "nan.gguf"
    data = bytearray(tiny_model.read_bytes())
    # The last tensor of the file is the gain of the last norm: 64 floats.
    data[-256:] = np.full(64, np.nan, dtype=np.float32).tobytes()
    path.write_bytes(data)
    with pywina.load(path) as model:
        for call in (model.generate, model.logits):
            with pytest.raises(pywina.NumericError):
                call("the world")
        assert model.tokenize("the")


def test_paths_may_hold_anything(tmp_path: Path, tiny_model: Path) -> None:
    name = b"\xff model \xc3\xa4.gguf".decode("utf-8", "surrogateescape")
    try:
        (tmp_path / name).write_bytes(tiny_model.read_bytes())
    except OSError:
        pytest.skip("this file system refuses such names")
    with pywina.load(tmp_path / name) as model:
        assert model.generate("a", max_tokens=1) is not None

"""Run language models from GGUF files, dense or with WINA activation sparsity.

    import pywina

    with pywina.load("smollm2-135m", sparsity=0.4) as model:
        print(model.chat([{"role": "user", "content": "Why is the sky blue?"}]))

The work is done by the C library libwina; this package is a thin layer over it.
"""

from __future__ import annotations

from ._version import __version__
from .api import generate, generate_batch, load
from .errors import (
    ArgumentError,
    CancelledError,
    ContextError,
    DeviceError,
    FetchError,
    FileError,
    FormatError,
    LibraryError,
    ModelNotFoundError,
    NumericError,
    OutOfMemoryError,
    StateError,
    TemplateError,
    UnsupportedError,
    WinaError,
)
from .generation import Chunk, Stream, Timings
from .grammar import Grammar
from .info import ModelInfo, Stats, TensorInfo
from .llama import Llama, LlamaGrammar
from .model import Model
from .params import GenerateOptions, LogitsProcessor, Params
from .sparsity import Sparsity
from .tuning import Tuning

__all__ = [
    "ArgumentError",
    "CancelledError",
    "Chunk",
    "ContextError",
    "DeviceError",
    "FetchError",
    "FileError",
    "FormatError",
    "GenerateOptions",
    "Grammar",
    "LibraryError",
    "Llama",
    "LlamaGrammar",
    "LogitsProcessor",
    "Model",
    "ModelInfo",
    "ModelNotFoundError",
    "NumericError",
    "OutOfMemoryError",
    "Params",
    "Sparsity",
    "StateError",
    "Stats",
    "Stream",
    "TemplateError",
    "TensorInfo",
    "Timings",
    "Tuning",
    "UnsupportedError",
    "WinaError",
    "__version__",
    "generate",
    "generate_batch",
    "load",
]

"""Exceptions of pywina.

Every failure is a :class:`WinaError`. Each class is also the built-in exception that a caller
would expect (``ValueError`` for a bad argument, ``OSError`` for a file, ...), so code that knows
nothing of pywina still catches the right thing.
"""

from __future__ import annotations


class WinaError(Exception):
    """Base class. The text names the thing that is wrong and says what to do about it."""

    #: What usually helps; appended to texts that come from the native library.
    hint = ""


class ArgumentError(WinaError, ValueError):
    """A parameter is outside what the function accepts."""


class FileError(WinaError, OSError):
    """A file cannot be opened, read, mapped or written."""


class ModelNotFoundError(FileError, FileNotFoundError, ValueError):
    """Neither a file nor a known model name. A ``ValueError``, too: a bad name, or path."""


class FormatError(WinaError, ValueError):
    """The file is not a valid GGUF file: cut short, inconsistent, out of bounds."""

    hint = "the file may be incomplete or damaged; fetch it again"


class UnsupportedError(WinaError, NotImplementedError):
    """The file is valid, but has an architecture, tensor type or tokenizer we do not run."""


class OutOfMemoryError(WinaError, MemoryError):
    """An allocation failed."""

    hint = "use a smaller n_ctx or a smaller model"


class ContextError(WinaError, ValueError):
    """More tokens than the context holds."""

    hint = "load the model with a larger n_ctx, or shorten the prompt"


class NumericError(WinaError, ArithmeticError):
    """NaN or infinity in the logits."""

    hint = "the weights may be damaged; fetch the file again"


class DeviceError(WinaError, RuntimeError):
    """The GPU or its driver failed, or there is none although the caller wants one."""


class CancelledError(WinaError):
    """The computation was stopped from outside."""


class StateError(WinaError, RuntimeError):
    """The call is not allowed now: the model is closed, busy, or from before a fork."""


class LibraryError(WinaError, ImportError):
    """The native library is missing, cannot be opened or is of another version."""


class FetchError(FileError):
    """A model could not be fetched, or what was fetched is not what was expected."""


class TemplateError(WinaError, ValueError):
    """The chat template is missing, invalid, or refused the messages."""

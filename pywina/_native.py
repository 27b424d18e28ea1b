"""The raw layer: ``ffi``, ``lib`` and ``check``, nothing else.

The declarations are the marked region of ``wina.h``, read at import, so the header is the only
place where the interface is written down. ``lib`` is opened in cffi's ABI mode: no compiler is
needed and the GIL is released during every call. The library must report the ABI version that
the header states.

Where they are found: ``$PYWINA_LIBRARY`` (a path to ``libwina.so``) first; then ``pywina/lib/``,
where a wheel puts both; then ``build/lib/`` and ``native/include/`` of a source checkout.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import cffi

from . import errors

__all__ = ["check", "ffi", "lib"]

_BEGIN, _END = "/* cffi: begin */", "/* cffi: end */"
_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def _find_header() -> Path:
    for path in (_PACKAGE / "lib" / "wina.h", _CHECKOUT / "native" / "include" / "wina.h"):
        if path.is_file():
            return path
    raise errors.LibraryError(
        f"wina.h is not in {_PACKAGE / 'lib'}: the installation is incomplete; reinstall pywina"
    )


def _find_library() -> Path:
    override = os.environ.get("PYWINA_LIBRARY")
    if override:
        path = Path(override)
        if not path.is_file():
            raise errors.LibraryError(f"PYWINA_LIBRARY is {override!r}, and there is no such file")
        return path.resolve()
    candidates = (
        _PACKAGE / "lib" / "libwina.so",
        _CHECKOUT / "build" / "lib" / "libwina.so",
    )
    for path in candidates:
        if path.is_file():
            return path
    raise errors.LibraryError(
        f"libwina.so is not in {candidates[0].parent} nor {candidates[1].parent}: run `make` in a "
        "source checkout, reinstall pywina, or set PYWINA_LIBRARY to the library's path"
    )


def _name_cublas() -> None:
    """cuBLAS as pywina[cuda] installs it, where the GPU backend looks for its name."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return
    for folder in spec.submodule_search_locations or () if spec else ():
        for found in sorted(Path(folder).glob("*/lib/libcublas.so.*")):
            os.environ.setdefault("WINA_CUBLAS", str(found))


def _parse_header(text: str, name: str) -> tuple[str, int]:
    """The declarations between the marks, and the value of WINA_ABI_VERSION."""
    version = re.search(r"^#define WINA_ABI_VERSION (\d+)$", text, re.MULTILINE)
    begin, end = text.find(_BEGIN), text.find(_END)
    if version is None or begin < 0 or end < begin:
        raise errors.LibraryError(f"{name} has no WINA_ABI_VERSION or no marked region")
    return text[begin + len(_BEGIN) : end], int(version.group(1))


def _open() -> tuple[cffi.FFI, Any]:
    header, path = _find_header(), _find_library()
    _name_cublas()
    declarations, wanted = _parse_header(header.read_text(encoding="utf-8"), str(header))
    builder = cffi.FFI()
    builder.cdef(declarations)
    # Never unloaded: at exit, threads of a model that is still open may be inside the library.
    flags = builder.RTLD_NOW | getattr(builder, "RTLD_NODELETE", 0)
    try:
        library = builder.dlopen(str(path), flags)
        found = library.wina_abi_version()
    except (OSError, AttributeError) as error:
        raise errors.LibraryError(f"cannot use {path}: {error}") from error
    if found != wanted:
        raise errors.LibraryError(
            f"{path} has ABI version {found}, but {header} needs {wanted}: rebuild the library "
            "(`make`), or reinstall pywina"
        )
    return builder, library


def _is_program() -> bool:
    """Whether this process is the `pywina` program: then a traceback helps nobody."""
    started = sys.orig_argv
    return Path(sys.argv[0]).name == "pywina" or "-m pywina" in " ".join(started[:4])


try:
    ffi, lib = _open()
except errors.LibraryError as error:
    if not _is_program():
        raise
    print(f"pywina: error: {error}", file=sys.stderr)
    raise SystemExit(1) from None

_CLASSES: dict[int, type[errors.WinaError]] = {
    lib.WINA_E_ARGUMENT: errors.ArgumentError,
    lib.WINA_E_IO: errors.FileError,
    lib.WINA_E_FORMAT: errors.FormatError,
    lib.WINA_E_UNSUPPORTED: errors.UnsupportedError,
    lib.WINA_E_MEMORY: errors.OutOfMemoryError,
    lib.WINA_E_CONTEXT: errors.ContextError,
    lib.WINA_E_NUMERIC: errors.NumericError,
    lib.WINA_E_CANCELLED: errors.CancelledError,
    lib.WINA_E_STATE: errors.StateError,
    lib.WINA_E_DEVICE: errors.DeviceError,
}


def check(status: int) -> None:
    """Raises the exception of a failed call of this thread; does nothing for ``WINA_OK``."""
    if status == lib.WINA_OK:
        return
    text = ffi.string(lib.wina_error()).decode("utf-8", "replace")
    if not text:
        text = ffi.string(lib.wina_status_name(status)).decode("ascii")
    kind = _CLASSES.get(status, errors.WinaError)
    raise kind(f"{text} ({kind.hint})" if kind.hint else text)

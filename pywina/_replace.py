"""Replacing a file whole: it is written under a temporary name in the target's folder, flushed to
disk and renamed, so that whenever a writer is killed the target is absent, old or complete.

A writer holds a lock on its temporary file. What is left of a killed one has none, and is removed
when the same target is written again.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import FileError


def _remove_stale(path: Path) -> None:
    for name in glob.glob(glob.escape(str(path.parent / f".{path.name}.")) + "*.tmp"):
        with suppress(OSError):
            found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                if os.path.isdir(name):
                    shutil.rmtree(name)
                else:
                    os.unlink(name)
            finally:
                os.close(found)


def _create(path: Path) -> tuple[int, str]:
    while True:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:  # else another writer took it for stale before the lock
                return fd, name
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                os.unlink(name)
            raise
        os.close(fd)


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder."""
    found = os.open(path, os.O_RDONLY)
    try:
        yield found
    finally:
        os.close(found)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which becomes path at the end; after an exception there is nothing.
    FileError if the system fails."""
    try:
        # Opened first: a want of descriptors must not come after the renaming.
        with _folder(path.parent) as folder:
            _remove_stale(path)
            fd, name = _create(path)
            try:
                with open(fd, "wb") as file:
                    yield file
                    file.flush()
                    mask = os.umask(0)
                    os.umask(mask)
                    os.fchmod(fd, 0o666 & ~mask)
                    os.fsync(fd)
                    os.replace(name, path)  # under the lock: nobody may take it for stale before
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
            os.fsync(folder)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside path for what is needed until path is written; removed at the end, or by the
    next writer of path if this one is killed. FileError if the system fails."""
    try:
        _remove_stale(path)
        name = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        lock = os.open(name, os.O_RDONLY)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)
    finally:
        os.close(lock)
        shutil.rmtree(name, ignore_errors=True)

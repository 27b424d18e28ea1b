"""GGUF files from the Hugging Face hub, through huggingface_hub.

Its cache, ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_TOKEN`` and progress bar apply. A pattern must
match exactly one file: of the repository, or of what the cache holds of it when offline. A file in
parts is one.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgumentError, FetchError, ModelNotFoundError

_SHOWN = 12
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _forms(name: str) -> set[str]:
    """What a pattern may match: a name, with or without its folder and the number of its part."""
    names = {name.lower(), _PART.sub(".gguf", name.lower())}
    return names | {name.rpartition("/")[2] for name in names}


def parts_of(name: str, names: Sequence[str]) -> list[str]:
    """The files of one model, name first: a large one comes in parts."""
    part = _PART.search(name)
    if part is None:
        return [name]
    stem, count = name[: part.start()], part[2]
    others = (
        other
        for other in sorted(names)
        if (found := _PART.search(other)) and other[: found.start()] == stem and found[2] == count
    )
    return [name, *(other for other in others if other != name)]


def choose_file(repo_id: str, names: Sequence[str], pattern: str | None) -> str:
    """The one name that a pattern (any case; None: ``*.gguf``) matches as a whole or after its
    last slash; of a model in parts, the first. Raises ModelNotFoundError if there is none,
    ArgumentError if there are several."""
    wanted = (pattern or "*.gguf").lower()
    exact = [name for name in names if name.lower() == wanted]
    found = exact or sorted(
        name
        for name in names
        if any(fnmatch.fnmatchcase(form, wanted) for form in _forms(name))
        and ((part := _PART.search(name)) is None or int(part[1]) == 1)
    )
    models = sorted(name for name in names if name.lower().endswith(".gguf"))
    if not found:
        held = f"it has {_listed(models)}" if models else "it has no GGUF files"
        raise ModelNotFoundError(f"no file of {repo_id} matches {pattern or '*.gguf'!r}; {held}")
    if len(found) > 1:
        raise ArgumentError(
            f"{len(found)} files of {repo_id} match {pattern or '*.gguf'!r}; give a filename that "
            f"matches one of {_listed(found)}"
        )
    return found[0]


def _cached_names(
    repo_id: str, revision: str | None, cache_dir: str | Path | None, token: object
) -> list[str]:
    """Files of a repository that the cache holds."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return []
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _names(
    repo_id: str,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | bool | None,
) -> tuple[list[str], bool]:
    """Files of a repository, and whether only the cache could be asked."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not constants.HF_HUB_OFFLINE:
        try:
            return HfApi(token=token).list_repo_files(repo_id, revision=revision), False
        except (OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
            reason: Exception | None = error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
                raise
            if getattr(error, "response", None) is not None:
                raise  # the hub answered
            reason = error
    else:
        reason = None
    names = _cached_names(repo_id, revision, cache_dir, token)
    if not names:
        why = f"the hub cannot be reached ({reason})" if reason else "HF_HUB_OFFLINE is set"
        raise FetchError(f"{repo_id} is not in the cache, and {why}")
    return names, True


def fetch_pretrained(
    repo_id: str,
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_dir: str | Path | None = None,
) -> Path:
    """The path of one file of a repository on the hub, downloaded if it is not there yet.

    filename: a name or a pattern such as ``*Q4_K_M.gguf``; default: the only GGUF file.
    token: default: ``HF_TOKEN`` or what ``hf auth login`` stored.
    local_dir: put the file there and not into the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        names, offline = _names(repo_id, revision, cache_dir, token)
        paths = [
            hf_hub_download(
                repo_id,
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_dir=local_dir,
                local_files_only=offline,
            )
            for name in parts_of(choose_file(repo_id, names, filename), names)
        ]
        return Path(paths[0])
    except HFValidationError as error:
        raise ArgumentError(f"{repo_id!r} is not the id of a repository: {error}") from error
    except GatedRepoError as error:
        raise FetchError(
            f"{repo_id} wants its terms accepted on the hub's page, and a token (HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repo_id} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no repository {repo_id} on the hub, or it is private and no token was given"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise FetchError(f"{repo_id} cannot be fetched: {error}") from error


_DEFAULT_QUANT = "Q4_K_M"  # llama.cpp's, where a repository has several files


def fetch_repository(spec: str, filename: str | None = None) -> Path:
    """The file of ``owner/repo`` or ``owner/repo:QUANT``, as with llama.cpp's ``-hf``.

    QUANT: how the file's name ends, in any case; default: the only GGUF file, or Q4_K_M.
    filename: a name or a pattern, in place of QUANT.
    """
    repo_id, _, quant = spec.removeprefix("hf://").partition(":")
    if repo_id.count("/") != 1:
        raise ArgumentError(f"{spec!r} names no repository; give OWNER/REPO or OWNER/REPO:QUANT")
    if filename is not None or quant:
        return fetch_pretrained(repo_id, filename or f"*{quant.removesuffix('.gguf')}.gguf")
    try:
        return fetch_pretrained(repo_id)
    except ArgumentError as several:
        try:
            return fetch_pretrained(repo_id, f"*{_DEFAULT_QUANT}.gguf")
        except ModelNotFoundError:
            raise several from None


def cached_models() -> list[tuple[str, Path]]:
    """Repositories and their GGUF files that the hub's cache holds."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return []
    return sorted(
        {
            (repo.repo_id, file.file_path)
            for repo in cache.repos
            for revision in repo.revisions
            for file in revision.files
            if file.file_name.endswith(".gguf")
        }
    )

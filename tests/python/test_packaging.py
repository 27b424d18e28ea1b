"""What is installed: the wheel, checked by auditwheel and run by another Python, and the sdist.

The wheel holds the build under test. What compiles everything anew is slow and wants
WINA_TEST_WHEELS=1 (`make test-packaging`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from pywina import __version__

CLEAN = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith(("MAKE", "MFLAGS", "PYWINA", "WINA", "PYTHONPATH"))
}
slow = pytest.mark.skipif(
    not os.environ.get("WINA_TEST_WHEELS"), reason="slow: WINA_TEST_WHEELS=1, make test-packaging"
)


def run(*command: object, env: dict[str, str] = CLEAN, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=3600, env=env, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def other_python() -> Path | None:
    """A Python that pywina supports and that is not this one: $PYWINA_OTHER_PYTHON, or the newest
    one of pyenv and the usual folders."""
    found: dict[tuple[int, int], Path] = {}
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    paths = [*versions.glob("3.*/bin/python3"), *Path("/usr/bin").glob("python3.*"),
             *Path("/usr/local/bin").glob("python3.*")]  # fmt: skip
    if given := os.environ.get("PYWINA_OTHER_PYTHON"):
        paths = [Path(given)]
    for path in paths:
        code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.returncode == 0 and re.fullmatch(r"3 \d+\n", done.stdout):
            major, minor = map(int, done.stdout.split())
            if (3, 11) <= (major, minor) != sys.version_info[:2]:
                found[major, minor] = path
    return found[max(found)] if found else None


NO_OTHER = (
    f"NOT TRIED with another Python version: none is installed here beside "
    f"{sys.version_info[0]}.{sys.version_info[1]} (3.11 or newer, with venv and ensurepip; looked "
    "in ~/.pyenv/versions, /usr/bin and /usr/local/bin; PYWINA_OTHER_PYTHON names one)"
)


def try_out(python: Path, wheel: Path, model: Path, folder: Path) -> None:
    """Installs a wheel in an empty environment of this Python, and generates with it."""
    run(python, "-m", "venv", folder / "venv")
    own = folder / "venv" / "bin"
    run(own / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    code = (
        "import pywina, sys; m = pywina.load(sys.argv[1]);"
        "print(m.generate('the', max_tokens=4, temperature=0) == m.generate('the', max_tokens=4,"
        "temperature=0, sparsity=0)); print(pywina.__file__)"
    )
    said = run(own / "python", "-W", "error", "-c", code, model, cwd=folder)
    assert said.startswith("True\n") and str(folder) in said
    assert run(own / "pywina", "--version", cwd=folder) == f"pywina {__version__}\n"
    said = run(own / "pywina", "run", "-m", model, "-p", "the", "-n", 4, cwd=folder)
    assert "on the CPU" in said
    assert run(own / "python", "-m", "pip", "check") == "No broken requirements found.\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, wina_bin: Path) -> Path:
    """Of the build under test, with what pip says about making it."""
    folder = tmp_path_factory.mktemp("wheel")
    built = os.path.relpath(wina_bin.parent.parent, ROOT)
    log = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, ".", cwd=ROOT,
        env=CLEAN | {"PYWINA_BUILD": built},
    )  # fmt: skip
    lines = [line for line in log.splitlines() if "Location 'file:" not in line]  # pip's own set-up
    strange = [line for line in lines if re.search("warn|deprecat|error|fail", line, re.IGNORECASE)]
    assert strange == [] and "Successfully built pywina" in log
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_what_the_wheel_holds(wheel: Path) -> None:
    assert re.fullmatch(rf"pywina-{__version__}-py3-none-(manylinux|linux)\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("pywina/lib/libwina.so", "pywina/lib/wina", "pywina/lib/wina.h",
                 "pywina/server/page.html", "pywina/llm_plugin.py"):  # fmt: skip
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [n for n in names if n.startswith("tests") or "__pycache__" in n]
    (metadata,) = [n for n in names if n.endswith(".dist-info/METADATA")]
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    for extra in ("cuda", "server", "eval", "dev", "grammar"):
        assert f"Provides-Extra: {extra}\n" in text
    assert "License-Expression: MIT\n" in text


def test_auditwheel_agrees(wheel: Path) -> None:
    """It needs nothing beside glibc, of the version that tools/make_wheels.py finds."""
    if (
        shutil.which("auditwheel", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        is None
    ):
        pytest.skip("auditwheel is not installed (extra dev)")
    said = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    found = re.search(r'consistent with the following platform tag: "manylinux_2_(\d+)_', said)
    assert found, said
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from make_wheels import needs
    finally:
        sys.path.remove(str(ROOT / "tools"))
    folder = wheel.parent / "unpacked"
    zipfile.ZipFile(wheel).extractall(folder)
    parts = [needs(folder / "pywina" / "lib" / name, "")[1] for name in ("libwina.so", "wina")]
    assert int(found[1]) == max(parts)


def test_another_python_runs_it(wheel: Path, tiny_model: Path, tmp_path: Path) -> None:
    python = other_python()
    if python is None:
        pytest.skip(NO_OTHER)
    try_out(python, wheel, tiny_model, tmp_path)


@slow
def test_the_sdist_builds_alone(tiny_model: Path, tmp_path: Path) -> None:
    """From the source archive, to text."""
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", tmp_path / "tool", "build")
    there = CLEAN | {"PYTHONPATH": str(tmp_path / "tool")}
    run(sys.executable, "-m", "build", "--sdist", "-o", tmp_path, ROOT, env=there)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as contents:
        names = contents.getnames()
    assert not [n for n in names if n.endswith((".so", ".o", ".a", ".gguf")) and "/tests/" not in n]
    assert max(map(len, names)) < 200 and any(n.endswith("/LICENSE") for n in names)
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, archive,
        cwd=tmp_path,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    python = other_python()
    try_out(python or Path(sys.executable), wheel, tiny_model, tmp_path)
    if python is None:
        pytest.skip(f"built, and ran in this Python; {NO_OTHER}")


@slow
def test_make_wheels(tiny_model: Path, tmp_path: Path) -> None:
    """`make wheels`, and the one of this machine in an empty environment."""
    run(sys.executable, ROOT / "tools" / "make_wheels.py", cwd=ROOT)
    wheels = sorted((ROOT / "dist").glob("pywina-*.whl"), key=os.path.getmtime)
    own = next(w for w in reversed(wheels) if os.uname().machine in w.name)
    assert re.search(r"-py3-none-manylinux_2_\d+_", own.name)
    try_out(Path(sys.executable), own, tiny_model, tmp_path)


@slow
def test_make_demo_from_nothing(tmp_path: Path) -> None:
    """`make demo` in a copy of the sources: under 2 minutes to the first text with a warm package
    cache on 2 cores, of which the build takes under 60 s."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: which files belong to it is not known")
    names = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    started = time.monotonic()
    run("make", f"-j{os.cpu_count()}", "native", cwd=tmp_path)
    built = time.monotonic() - started
    text = subprocess.Popen(
        ["make", "demo"], cwd=tmp_path, env=CLEAN, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert text.stdout is not None
    lines, first = [], 0.0
    for line in text.stdout:
        if lines and lines[-1] == "--- dense ---\n":
            first = time.monotonic() - started
        lines.append(line)
    assert text.wait() == 0 and first > 0 and any("% sparse ---" in line for line in lines), lines
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(f"built in {built:.0f} s, first line after {first:.0f} s, load per core {load:.1f}")
    if load > 1.5:
        pytest.skip(f"too busy to judge the time: build {built:.0f} s, text after {first:.0f} s")
    assert built < 60 and first < 120

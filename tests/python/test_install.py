"""What other programs build on: the header, the symbols, `make install`, the example."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "native" / "include" / "wina.h"


def _run(*command: object, **more: object) -> str:
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=300, **more
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """`make install` of the build under test, below a DESTDIR."""
    built = Path(os.environ.get("WINA_BIN") or ROOT / "build" / "bin" / "wina").parents[1]
    stage = tmp_path_factory.mktemp("stage")
    _make("install", BUILD=built, PREFIX="/opt/wina", DESTDIR=stage)
    return stage / "opt" / "wina"


def _make(*goals: str, **variables: object) -> str:
    """make in the source tree, as if nothing of an outer make were there."""
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return _run("make", *goals, *(f"{k}={v}" for k, v in variables.items()), cwd=ROOT, env=clean)


@pytest.mark.parametrize("libc", ["musl", "glibc"])
def test_the_static_program_is_small_and_needs_nothing(libc: str, smollm2_path: Path) -> None:
    built = Path(os.environ.get("WINA_BIN") or ROOT / "build" / "bin" / "wina").parents[1]
    program = built / "bin" / "wina-static"
    program.unlink(missing_ok=True)
    if libc == "musl":
        if shutil.which("musl-gcc") is None:
            pytest.skip("no musl-gcc (Debian: musl-tools)")
        _make("-j2", "static", BUILD=built)
    else:
        _make("-j2", "static", BUILD=built, MUSL="")
    assert "NEEDED" not in _run("readelf", "-d", program)
    size = program.stat().st_size
    print(f"{libc}: {size} bytes", file=sys.stderr)
    assert size < (1_500_000 if libc == "musl" else 2_000_000)
    words = ["run", "-m", smollm2_path, "-p", "The capital of France is", "-n", "4", "--temp", "0"]
    same = [_run(exe, *words) for exe in (program, built / "bin" / "wina")]
    assert same[0] == same[1] != ""


@pytest.mark.parametrize("command", ["gcc -std=c11", "g++ -std=c++17 -x c++"])
def test_the_header_stands_alone(command: str, tmp_path: Path) -> None:
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"no {command.split()[0]}")
    source = tmp_path / "alone.c"
    source.write_text("#include <wina.h>\n#include <wina.h>\nint main(void) { return WINA_OK; }\n")
    flags = "-Wall -Wextra -Wpedantic -Werror -fsyntax-only".split()
    _run(*command.split(), *flags, "-I", HEADER.parent, source)


def test_symbols_are_those_of_the_header() -> None:
    """Nothing else leaves the library, and nothing that the header declares is missing. A change of
    either means a new WINA_ABI_VERSION."""
    library = os.environ.get("PYWINA_LIBRARY") or ROOT / "build" / "lib" / "libwina.so"
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    declared = set(re.findall(r"\b(wina_\w+)\(", text))
    lines = _run("nm", "-D", "--defined-only", library).splitlines()
    assert {line.split()[-1] for line in lines} == declared
    version = re.search(r"#define WINA_ABI_VERSION (\d+)", text)
    assert version
    assert f"libwina.so.{version[1]}" in _run("readelf", "-d", library)


def test_the_example_builds_against_what_is_installed(
    prefix: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert sorted(p.name for p in (prefix / "lib").iterdir())[-1] == "pkgconfig"
    config = (prefix / "lib" / "pkgconfig" / "wina.pc").read_text()
    assert "prefix=/opt/wina\n" in config and str(prefix) not in config
    flags = [f"-I{prefix}/include", f"-L{prefix}/lib", "-lwina"]
    if shutil.which("pkg-config"):
        environment = os.environ | {"PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig"}
        moved = f"--define-variable=prefix={prefix}"
        given = _run("pkg-config", moved, "--cflags", "--libs", "wina", env=environment)
        assert given.split() == flags
    program = tmp_path / "embed"
    example = ROOT / "examples" / "embed.c"
    _run("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", example, *flags, "-o", program)
    environment = os.environ | {"LD_LIBRARY_PATH": f"{prefix}/lib"}
    first = _run(program, tiny_model, "the", env=environment)
    assert len(first) > 4
    static = [f"-I{prefix}/include", f"{prefix}/lib/libwina.a", "-lm", "-pthread", "-ldl"]
    _run("gcc", "-std=c11", example, *static, "-o", program)
    assert _run(program, tiny_model, "the") == first
    done = subprocess.run([program, "nothing.gguf", "the"], capture_output=True, text=True)
    assert done.returncode == 1 and "nothing.gguf" in done.stderr


def test_the_installed_program_runs(prefix: Path, tiny_model: Path) -> None:
    assert "weights" in _run(prefix / "bin" / "wina", "inspect", "-m", tiny_model)


#: Runs a program and prints its peak resident bytes. From a small process, since the kernel counts
#: what the caller had before the program replaced it.
_PEAK = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
assert status == 0
print(usage.ru_maxrss * 1024)
"""


def test_memory_while_loading_and_running(
    smollm2_path: Path, tmp_path: Path, wina_bin: Path
) -> None:
    """Peak resident memory: at most 1.1 times the tensors, the cache and 8 MB for the rest; of a
    packed file, which is mapped, at most its size, the cache and 8 MB."""
    packed = tmp_path / "packed.gguf"
    _run(wina_bin, "pack", "-m", smollm2_path, "-o", packed, "-t", 1)
    cache = 512 * 23040
    for path, factor in ((smollm2_path, 1.1), (packed, 1.0)):
        command = [str(c) for c in (wina_bin, "run", "-m", path, "-c", 512, "-n", 2, "-t", 1)]
        command += ["--backend", "cpu", "-p", "Once upon a time"]
        assert int(_run(sys.executable, "-c", _PEAK, *command).split()[-1]) <= (
            factor * path.stat().st_size + cache + 8e6
        )

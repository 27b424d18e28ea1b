"""The bindings: the header is complete, compiles alone, and is what the library exports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pywina
from pywina import _native
from pywina._native import ffi, lib

HEADER = Path(_native._find_header())
REGION, ABI = _native._parse_header(HEADER.read_text(encoding="utf-8"), "wina.h")
CODE = re.sub(r"/\*.*?\*/", " ", REGION, flags=re.DOTALL)
FUNCTIONS = sorted(set(re.findall(r"\b(wina_\w+)\s*\([^)*]", CODE)))


def test_the_region_holds_every_declaration() -> None:
    text = re.sub(r"/\*.*?\*/", " ", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    everywhere = set(re.findall(r"\b(wina_\w+)\s*\([^)*]", text))
    assert everywhere == set(FUNCTIONS)
    assert len(FUNCTIONS) > 40
    assert "#" not in CODE


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_in_the_library(name: str) -> None:
    assert isinstance(getattr(lib, name), ffi.CData)


def test_the_library_exports_nothing_else() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    listing = subprocess.run(
        [nm, "--dynamic", "--defined-only", "-P", str(_native._find_library())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exported = {line.split()[0] for line in listing.splitlines()}
    assert {name for name in exported if not name.startswith("_")} == set(FUNCTIONS)


@pytest.mark.parametrize(
    ("compiler", "standard", "suffix"), [("cc", "c11", "c"), ("c++", "c++17", "cpp")]
)
def test_the_header_compiles_alone(
    tmp_path: Path, compiler: str, standard: str, suffix: str
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    source = tmp_path / f"alone.{suffix}"
    source.write_text('#include "wina.h"\nint main(void) { return wina_abi_version() == 0; }\n')
    command = [compiler, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command += ["-I", str(HEADER.parent), "-c", str(source), "-o", str(tmp_path / "alone.o")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_examples_of_the_readme_compile(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    compile(blocks["python"], "README.md", "exec")
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    source = tmp_path / "example.c"
    source.write_text(blocks["c"])
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(HEADER.parent)]
    command += ["-c", str(source), "-o", str(tmp_path / "example.o")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_versions_agree() -> None:
    assert lib.wina_abi_version() == ABI
    assert ffi.string(lib.wina_version()).decode() == pywina.__version__


def test_struct_sizes_are_those_of_the_compiler(tmp_path: Path) -> None:
    """cffi lays structures out by itself in ABI mode; the C compiler must agree."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    structs = sorted(set(re.findall(r"typedef struct (wina_\w+) \{", CODE)))
    lines = []
    for struct in structs:
        lines.append(f'printf("{struct} %zu\\n", sizeof({struct}));')
        for field, _ in ffi.typeof(struct).fields:
            lines.append(f'printf("{struct}.{field} %zu\\n", offsetof({struct}, {field}));')
    source = tmp_path / "sizes.c"
    body = "\n".join(lines)
    source.write_text(f'#include <stdio.h>\n#include "wina.h"\nint main(void) {{\n{body}\n}}\n')
    program = tmp_path / "sizes"
    subprocess.run(["cc", "-I", str(HEADER.parent), str(source), "-o", str(program)], check=True)
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert len(structs) >= 9
    for line in output.splitlines():
        name, size = line.split()
        struct, _, field = name.partition(".")
        ours = ffi.offsetof(struct, field) if field else ffi.sizeof(struct)
        assert ours == int(size), name


@pytest.mark.parametrize("name", [n for n in dir(lib) if n.startswith("WINA_E_")])
def test_every_status_has_a_name_and_a_class(name: str) -> None:
    status = getattr(lib, name)
    assert ffi.string(lib.wina_status_name(status)).decode() == name
    with pytest.raises(pywina.WinaError) as caught:
        _native.check(status)
    if name != "WINA_E_SPACE":  # never reaches a caller
        assert type(caught.value) is not pywina.WinaError


def test_unknown_statuses_have_a_name() -> None:
    assert ffi.string(lib.wina_status_name(12345))
    assert ffi.string(lib.wina_status_name(-1))


def test_errors_are_built_in_exceptions_too() -> None:
    assert issubclass(pywina.ArgumentError, ValueError)
    assert issubclass(pywina.FileError, OSError)
    assert issubclass(pywina.ModelNotFoundError, FileNotFoundError)
    assert issubclass(pywina.OutOfMemoryError, MemoryError)
    assert issubclass(pywina.LibraryError, ImportError)


# ---- finding and refusing libraries -----------------------------------------------------------


def _import_with(library: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import pywina"],
        env=os.environ | {"PYWINA_LIBRARY": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("library", ["/nowhere/libwina.so", __file__])
def test_the_program_names_a_wrong_library_in_one_line(library: str) -> None:
    for command in (
        [sys.executable, "-m", "pywina"],
        [str(Path(sys.executable).parent / "pywina")],
    ):
        if not Path(command[0]).exists():
            continue
        done = subprocess.run(
            [*command, "list"], env=os.environ | {"PYWINA_LIBRARY": library},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.startswith("pywina: error: ") and library in done.stderr
        assert done.stderr.count("\n") == 1


def _build(folder: Path, source: str) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    (folder / "other.c").write_text(source)
    library = folder / "libother.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", str(folder / "other.c"), "-o", str(library)], check=True
    )
    return library


def test_another_abi_version_is_refused(tmp_path: Path) -> None:
    library = _build(tmp_path, "int wina_abi_version(void) { return 4711; }\n")
    result = _import_with(library)
    assert result.returncode != 0
    assert "LibraryError" in result.stderr
    assert "ABI version 4711" in result.stderr and "rebuild" in result.stderr


def test_another_library_is_refused(tmp_path: Path) -> None:
    result = _import_with(_build(tmp_path, "int other(void) { return 0; }\n"))
    assert result.returncode != 0
    assert "LibraryError" in result.stderr and "cannot use" in result.stderr


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    result = _import_with(tmp_path / "none.so")
    assert result.returncode != 0
    assert "LibraryError" in result.stderr and "none.so" in result.stderr

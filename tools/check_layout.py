#!/usr/bin/env python3
"""Checks the order of the C sources: who includes whom, names with linkage, file lengths.

Modules stand in layers; a file may include headers of its own layer and of lower ones, never of
higher ones. `sparse/` knows no file format, no backend and no instruction set. The program in
native/cli uses the public header alone. Every name with external linkage starts with `wina_`.

Usage: check_layout.py [ROOT]. Prints every violation; exit code 1 if there is one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 700

# From the lowest layer to the highest. A folder name stands for all files in it. A module that is
# not here fails the check: decide where it belongs.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("wina",),  # the public header
    ("status",),
    ("mem", "mapfile", "diskread", "threads", "unicode", "unicode_data"),
    ("replace",),
    ("sparse",),
    ("dtype", "dequant", "piece", "pairmap"),
    ("quantize", "quantize_32", "quantize_k", "quantize_rows"),
    ("gguf", "gguf_value"),
    ("split",),
    ("pretokmatch", "pretok", "merge", "vocab", "special", "bpe", "spm", "tokenizer"),
    ("config", "pack", "fill", "candidates", "textcut"),
    ("group", "experts"),
    ("sampler",),
    ("weights", "packed", "packed_write", "tuning"),
    ("model",),
    ("backend",),
    ("cpu", "cuda"),
    ("cudalib", "chain"),
    ("forward",),
    ("session", "state", "statehash", "memplan"),
    ("stream",),
    ("api",),
)

# What a folder may include from outside itself, if that is less than its layer allows.
ONLY: dict[str, set[str]] = {"sparse": {"wina", "status", "mem", "threads"}}

# Generated files have any length.
GENERATED = {"unicode_data.c"}

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def layer_of(module: str) -> int | None:
    for i, names in enumerate(LAYERS):
        if module in names:
            return i
    return None


def module_of(path: Path, root: Path) -> str:
    """Folder name for files in a folder of native/src, else the file's name without ending."""
    parts = path.relative_to(root).parts
    if parts[:2] == ("native", "src") and len(parts) > 3:
        return parts[2]
    return path.stem


def find_include(path: Path, name: str, root: Path) -> Path | None:
    for folder in (path.parent, root / "native" / "src", root / "native" / "include"):
        if (folder / name).is_file():
            return (folder / name).resolve()
    return None


def sources(root: Path) -> list[Path]:
    found = [*root.glob("native/**/*.[ch]"), *root.glob("native/**/*.cu*")]
    return sorted(path.resolve() for path in found)


def check_includes(root: Path) -> Iterator[str]:
    for path in sources(root):
        shown = path.relative_to(root)
        module = module_of(path, root)
        is_cli = shown.parts[1] == "cli"
        own = layer_of(module)
        if own is None and not is_cli:
            yield f"{shown}: module {module!r} has no layer; give it one in tools/check_layout.py"
            continue
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            target = find_include(path, name, root)
            if target is None:
                yield f"{shown}: includes {name}, which is not there"
                continue
            other = module_of(target, root)
            if is_cli:
                if other != "wina" and target.parent.name != "cli":
                    yield f"{shown}: includes {name}; the program uses only wina.h"
                continue
            if other == module:
                continue
            rank = layer_of(other)
            if rank is None or (own is not None and rank > own):
                yield f"{shown}: includes {name} of a higher layer"
            if module in ONLY and other not in ONLY[module]:
                yield f"{shown}: {module}/ must not know {name}"


def check_lengths(root: Path) -> Iterator[str]:
    for path in [*sources(root), *sorted(root.glob("tests/native/*.[ch]"))]:
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        if n_lines > MAX_LINES and path.name not in GENERATED:
            yield f"{path.relative_to(root)}: {n_lines} lines, at most {MAX_LINES}"


def check_names(root: Path) -> Iterator[str]:
    """Names of files are unique, and so are prefixes of symbols."""
    seen: dict[str, Path] = {}
    for path in sources(root):
        if path.name in seen:
            yield f"{path.relative_to(root)}: the name is taken by {seen[path.name]}"
        seen[path.name] = path.relative_to(root)


def check_symbols(root: Path, build: Path) -> Iterator[str]:
    """Symbols that objects define for others, and those that the shared library exports."""
    nm = shutil.which("nm")
    objects = [p for p in sorted(build.glob("obj/**/*.o")) if "cli" not in p.parts]
    if nm is None or not objects:
        return
    for path in objects:
        listing = subprocess.run(
            [nm, "--defined-only", "--extern-only", "-P", str(path)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for line in listing.splitlines():
            name = line.split()[0]
            if path.name.endswith(".cu.o") and name.startswith(("_Z", "DW.ref.")):
                continue  # C++: kernels and what the compiler makes for them
            if not name.startswith("wina_") and not name.startswith("__"):
                yield f"{path.name}: {name} has linkage and does not start with wina_"


def main(arguments: list[str]) -> int:
    root = Path(arguments[0] if arguments else Path(__file__).parents[1]).resolve()
    build = Path(arguments[1] if len(arguments) > 1 else root / "build").resolve()
    problems = [
        *check_includes(root),
        *check_lengths(root),
        *check_names(root),
        *check_symbols(root, build),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    n_files = len(sources(root))
    if not n_files:
        print(f"no sources in {root / 'native'}", file=sys.stderr)
        return 1
    print(f"check_layout: {n_files} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

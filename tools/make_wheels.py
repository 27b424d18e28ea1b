#!/usr/bin/env python3
"""Wheels for Linux on x86-64 and aarch64, in dist/.

The native part is built first, then the symbols that it takes from the C library are looked at: the
newest of their versions is the oldest glibc that the wheel runs on, and so its manylinux tag (PEP
600). A library that needs anything but glibc's own is refused. Processors whose compiler is not
there are left out, with a word; the machine's own is always built.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACHINES = ("x86_64", "aarch64")
#: libraries that PEP 600 lets a wheel expect
ALLOWED = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s)\.so\.\d+|ld-linux[-_a-z0-9]*\.so\.\d+")


def needs(path: Path, tools: str) -> tuple[set[str], int]:
    """Libraries that a file is linked with, and the minor version of the newest glibc symbol."""
    text = subprocess.run(
        [f"{tools}objdump", "-p", path], check=True, capture_output=True, text=True
    ).stdout
    libraries = set(re.findall(r"NEEDED\s+(\S+)", text))
    return libraries, max((int(n) for n in re.findall(r"GLIBC_2\.(\d+)", text)), default=17)


def check(files: list[Path], machine: str, tools: str) -> str:
    """The tag that suits all files."""
    newest = 17
    for path in files:
        libraries, version = needs(path, tools)
        foreign = [name for name in libraries if not ALLOWED.fullmatch(name)]
        if foreign:
            raise SystemExit(f"{path} needs {', '.join(foreign)}: no wheel may expect that")
        newest = max(newest, version)
    return f"manylinux_2_{newest}_{machine}"


def build(machine: str) -> None:
    own = machine == platform.machine()
    cross = "" if own else f"{machine}-linux-gnu"
    tools = "" if own else f"{cross}-"
    if shutil.which(f"{tools}gcc") is None:
        print(f"no wheel for {machine}: {tools}gcc is not there")
        return
    folder = f"build-wheel-{machine}"
    target = [f"BUILD={folder}"] + ([f"CROSS={cross}"] if cross else [])
    subprocess.run(["make", "-j2", "native", *target], cwd=ROOT, check=True)
    files = [ROOT / folder / "lib" / "libwina.so", ROOT / folder / "bin" / "wina"]
    tag = check(files, machine, tools)
    environment = os.environ | {"PYWINA_BUILD": folder, "PYWINA_PLATFORM": tag}
    environment |= {"PYWINA_CROSS": cross} if cross else {}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", "dist", "."]
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    print(f"dist: {tag}")


if __name__ == "__main__":
    for name in MACHINES:
        build(name)

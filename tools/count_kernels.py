#!/usr/bin/env python3
"""Counts the instructions of the aarch64 kernels, exactly, under QEMU, one at a time.

For every tensor type and set of kernels: instructions for a block of 64 rows by 32 inputs, of one
token with all inputs and with every second one kept, and of one token of a batch of 16. Prints
the table of docs/edge.md. The measure of a kernel where there is no ARM board to run it on.

Needs aarch64-linux-gnu-gcc and qemu-aarch64-static, and `make CROSS=aarch64-linux-gnu tests`.
Usage: count_kernels.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build-aarch64"
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
SETS = ["neon", "dotprod", "i8mm"]
BLOCKS, TOKENS = 8, 16
KERNEL = re.compile(r"^(wina_)?gem[vm]_")


def build(program: Path) -> None:
    flags = ["-std=c11", "-O2", "-D_GNU_SOURCE", "-static"]
    include = [f"-I{ROOT}/native/include", f"-I{ROOT}/native/src"]
    source, library = ROOT / "tools" / "count_kernels.c", BUILD / "lib" / "libwina.a"
    command = ["aarch64-linux-gnu-gcc", *flags, *include, source, library, "-o", program]
    subprocess.run([*command, "-lm", "-pthread"], check=True)


def kernel_ranges(program: Path) -> str:
    """Addresses of the kernels, as QEMU's -dfilter wants them."""
    listing = subprocess.run(
        ["aarch64-linux-gnu-nm", "-S", program], check=True, capture_output=True, text=True
    ).stdout
    ranges = []
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[2] in "tT" and KERNEL.match(fields[3]):
            ranges.append(f"0x{fields[0]}+0x{fields[1]}")
    if not ranges:
        sys.exit("no kernels found")
    return ",".join(ranges)


def count(program: Path, ranges: str, kernels: str, dtype: str, tokens: int, step: int) -> float:
    """Instructions per block and token."""
    log = program.with_suffix(".log")
    trace = ["-singlestep", "-d", "exec,nochain", "-dfilter", ranges, "-D", log]
    strips = 16 if tokens == 1 else 2  # what is done once for all strips is to count little
    sizes = [str(n) for n in (strips, BLOCKS, tokens, step)]
    result = subprocess.run(
        ["qemu-aarch64-static", "-cpu", "max", *trace, program, dtype, *sizes],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "WINA_CPU": kernels},
    )
    if not result.stdout.startswith(f"{kernels} "):
        sys.exit(f"{dtype}: {result.stdout} instead of {kernels}")
    with log.open("rb") as file:
        n = sum(1 for line in file if line.startswith(b"Trace"))
    return n / (strips * BLOCKS * tokens)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "count_kernels"
        build(program)
        ranges = kernel_ranges(program)
        heads = [f"{name} {what}" for name in SETS for what in ("all", "half", "batch")]
        print("| type | " + " | ".join(heads) + " |")
        print("|" + "---|" * (len(heads) + 1))
        for dtype in TYPES:
            cells = [
                f"{count(program, ranges, kernels, dtype, tokens, step):.0f}"
                for kernels in SETS
                for tokens, step in ((1, 1), (1, 2), (TOKENS, 1))
            ]
            print(f"| {dtype} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

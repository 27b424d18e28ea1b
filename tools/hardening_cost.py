"""What hardening costs: two builds in turn, loading a large file and decoding.

    make native && make BUILD=build-soft HARDEN= native
    python tools/hardening_cost.py build/bin/wina build-soft/bin/wina MODEL [--tokens 1]

A round runs each program once, in changing order. What is compared is processor time, which other
programs on the machine disturb least, and the time on the clock. --tokens 1 measures loading;
the difference of two such runs with few and many tokens is decoding.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time


def run(program: str, model: str, tokens: int) -> tuple[float, float]:
    """Seconds of processor time and on the clock."""
    command = [program, "run", "-m", model, "-p", "a", "-n", str(tokens), "-t", "1", "--temp", "0",
               "--ignore-eos"]  # fmt: skip
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs=2)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=1)
    args = parser.parse_args()
    times: list[list[tuple[float, float]]] = [[], []]
    for i in range(args.rounds):
        for k in (0, 1) if i % 2 else (1, 0):
            times[k].append(run(args.programs[k], args.model, args.tokens))
    for name, part in (("processor", 0), ("clock", 1)):
        first, second = ([t[part] for t in side] for side in times)
        ratio = statistics.median(first) / statistics.median(second)
        pairs = statistics.median(a / b for a, b in zip(first, second, strict=True))
        medians = f"{statistics.median(first):.2f} s and {statistics.median(second):.2f} s"
        print(f"{name}: medians {medians}, ratio {ratio:.3f}; of pairs {pairs:.3f}")


if __name__ == "__main__":
    main()

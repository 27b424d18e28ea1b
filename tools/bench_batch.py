"""Decoding several answers together beside one after the other: tokens per second, in turns.

python tools/bench_batch.py model.gguf ... [--requests 1,2,4,8,16] [--sparsity 0,0.5] [--threads 1]

Every round decodes the same tokens in both ways for each number of requests and each sparsity, so
that what else the machine does falls on all of them; the least time of all rounds counts. --cpu
takes the processor time of this process instead of the clock's: on a machine that others use too,
with one thread, that is steadier.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pywina  # noqa: E402
from pywina.generation import Stream, decode_together  # noqa: E402

Key = tuple[int, float, bool]  # requests, sparsity, together


def decode(streams: list[Stream], n_tokens: int, together: bool) -> None:
    for _ in range(n_tokens):
        if together:
            decode_together(streams)
        for stream in streams:
            next(stream)


def measure(path: str, args: argparse.Namespace, clock: Callable[[], float]) -> dict[Key, float]:
    """Seconds per token of the fastest round."""
    best: dict[Key, float] = {}
    with pywina.load(path, n_ctx=512, n_threads=args.threads, backend="cpu") as model:
        lanes = [model.share() for _ in range(max(args.requests))]
        for _ in range(args.rounds):
            for n in args.requests:
                for sparsity in args.sparsity:
                    for together in (False, True):
                        streams = [
                            lane.stream(
                                f"Request number {i} asks:", temperature=0, ignore_eog=True,
                                max_tokens=None, sparsity=sparsity,
                            )
                            for i, lane in enumerate(lanes[:n])
                        ]  # fmt: skip
                        for stream in streams:
                            next(stream)  # the prompt, and the token that it gives
                        started = clock()
                        decode(streams, args.tokens, together)
                        each = (clock() - started) / (args.tokens * n)
                        for stream in streams:
                            stream.close()
                        key = (n, sparsity, together)
                        best[key] = min(each, best.get(key, each))
        for lane in lanes:
            lane.close()
    return best


def main() -> None:
    def numbers(kind: type) -> Callable[[str], list[float]]:
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="model")
    parser.add_argument("--requests", type=numbers(int), default=[1, 2, 4, 8, 16])
    parser.add_argument("--sparsity", type=numbers(float), default=[0.0, 0.5])
    parser.add_argument("--tokens", type=int, default=8, help="per request and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="processor time, not the clock's")
    args = parser.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    for path in args.models:
        best = measure(path, args, clock)
        print(f"{Path(path).stem}, {args.threads} threads: tokens/s one by one, together, ratio")
        for n in args.requests:
            row = [f"{n:3d} requests"]
            for sparsity in args.sparsity:
                alone, both = best[n, sparsity, False], best[n, sparsity, True]
                row.append(f"{sparsity:4.0%}: {1 / alone:6.1f} {1 / both:6.1f} x{alone / both:.2f}")
            print("   ".join(row), flush=True)


if __name__ == "__main__":
    main()

"""Would another order of the inputs bring kept ones together? Counts on a real model and text.

    tools/count_runs.py MODEL.gguf wiki.valid.tokens

Prints, per group and sparsity, the mean number of neighbours that are kept in a row: in the file's
order, sorted by how often each input is kept inside every block of 32 (all that a quantised panel
allows, since a block shares its scales), and sorted over all inputs. Frequencies come from the
first half of the tokens, runs from the second. The last column says how many of the kept inputs
are among the half that is kept most often: what a cache of half of the columns would hit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pywina

WINDOW, N_WINDOWS = 350, 4


def mean_run(kept: NDArray[np.bool_]) -> float:
    starts = kept[:, 0].sum() + (kept[:, 1:] & ~kept[:, :-1]).sum()
    return float(kept.sum() / starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--sparsity", default="0.5,0.65")
    args = parser.parse_args()
    model = pywina.load(args.model, n_ctx=WINDOW)
    text = args.text.read_text(encoding="utf-8")
    tokens = model.tokenize(text[: 20 * WINDOW * N_WINDOWS])[: WINDOW * N_WINDOWS]
    inputs: dict[tuple[str, int], list[NDArray[np.float32]]] = {}
    with model.tap(lambda layer, group, x: inputs.setdefault((group, layer), []).append(abs(x))):
        for start in range(0, len(tokens), WINDOW):
            model.logits(tokens[start : start + WINDOW], start=WINDOW - 1)
    rows: dict[tuple[str, float], list[list[float]]] = {}
    for (group, _layer), parts in inputs.items():
        x = np.concatenate(parts)
        n_tokens, n = x.shape
        for sparsity in map(float, args.sparsity.split(",")):
            n_keep = round(n * (1 - sparsity))
            kept = x >= -np.partition(-x, n_keep - 1, axis=1)[:, n_keep - 1 : n_keep]
            frequency = kept[: n_tokens // 2].mean(axis=0)
            seen = kept[n_tokens // 2 :]
            everywhere = np.argsort(-frequency, kind="stable")
            in_blocks = np.lexsort((-frequency, np.arange(n) // 32))
            hot = seen[:, everywhere[: n // 2]].sum() / seen.sum()
            runs = [mean_run(seen), mean_run(seen[:, in_blocks]), mean_run(seen[:, everywhere])]
            rows.setdefault((group, sparsity), []).append([*runs, float(hot)])
    head = ["group", "sparsity", "file", "in blocks", "everywhere", "in the hotter half"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for (group, sparsity), values in sorted(rows.items()):
        mean = np.mean(values, axis=0)
        print(f"| {group} | {sparsity:.0%} | " + " | ".join(f"{v:.2f}" for v in mean) + " |")


if __name__ == "__main__":
    main()

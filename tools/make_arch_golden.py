"""Writes tests/golden/arch.npz: logits that transformers computes from tiny random checkpoints.

    python tools/make_arch_golden.py [--only FAMILY]

Needs torch and transformers, which the tests do not. The checkpoints are those of
tests/python/tinycheckpoint.py, float32, one forward pass each with eager attention.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))

from tinycheckpoint import CONFIGS, TOKENS, write_checkpoint  # noqa: E402


def logits(family: str) -> np.ndarray:
    """(n_tokens, n_vocab) float32; stops if a tensor is missing or left over."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder) / family, family)
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    bad = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(bad.values()):
        raise SystemExit(f"{family}: {bad}")
    with torch.no_grad():
        return model.eval()(torch.tensor([TOKENS])).logits[0].numpy()


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=sorted(CONFIGS), help="one family")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden" / "arch.npz")
    args = parser.parse_args()
    kept: dict[str, np.ndarray] = {}
    if args.only and args.out.exists():
        with np.load(args.out) as file:
            kept = {key: file[key] for key in file.files}
    for family in CONFIGS:
        if args.only in (None, family):
            # Every third token: enough for every layer and position, small enough to keep.
            kept[family] = logits(family)[2::3]
            print(f"{family}: std {kept[family].std():.4f}")
    np.savez_compressed(args.out, **kept)


if __name__ == "__main__":
    main()

"""pywina bench: prompt and decode speed at several sparsities, rounds taking turns.

All sparsities get the same random prompt, and decode greedily. Figures are medians over rounds; the
hash is that of the tokens, which are the same from run to run for any number of threads.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict

import numpy as np
from tqdm import tqdm

from ..errors import ArgumentError
from ..generation import Timings
from ..model import Model
from ..sparsity import Sparsity
from .common import announce, load_model, sparsity_of
from .options import add_rule, environment, sparsities


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--n-prompt", type=int, default=128, metavar="N",
                        help="prompt tokens; default %(default)s")  # fmt: skip
    parser.add_argument("-n", "--n-gen", type=int, default=64, metavar="N",
                        help="tokens to decode; default %(default)s")  # fmt: skip
    parser.add_argument("-r", "--repetitions", type=int, default=3, metavar="N",
                        help="rounds; default %(default)s")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    group = parser.add_argument_group("sparsity")
    group.add_argument("--sparsity", default=environment("PYWINA_SPARSITY", "0,0.25,0.4,0.5"),
                       metavar="S,S", help="default 0,0.25,0.4,0.5")  # fmt: skip
    add_rule(group)


def _run(model: Model, prompt: list[int], n: int, wanted: Sparsity) -> tuple[Timings, int, float]:
    """Timings, hash of the tokens, and bytes of weights read per token."""
    model.logits(prompt[:1])  # empties the context, of which the same prompt would be used again
    options = {"max_tokens": n, "temperature": 0.0, "ignore_eog": True, "sparsity": wanted}
    with model.stream(prompt, **options) as stream:
        for _chunk in stream:
            pass
    assert stream.timings is not None  # it was read to its end
    tokens = np.array(stream.tokens, dtype="<i4")
    return stream.timings, zlib.crc32(tokens.tobytes()), model.stats.bytes_per_token


def main(args: argparse.Namespace) -> int:
    if args.n_prompt < 2 or args.n_gen < 2 or args.repetitions < 1:
        raise ArgumentError("-p and -n must be at least 2 and -r at least 1")
    rules = [sparsity_of(args, number) for number in sparsities(args.sparsity)]
    found = defaultdict(list)
    if args.ctx is None:
        args.ctx = args.n_prompt + args.n_gen
    with load_model(args, rules[0]) as model:
        announce(model, ", ".join(f"{rule.sparsity:g}" for rule in rules) + f" ({args.method})")
        random = np.random.default_rng(0)
        prompt = random.integers(0, model.info.n_vocab, args.n_prompt).tolist()
        with tqdm(total=args.repetitions * len(rules), delay=1, leave=False, disable=None) as bar:
            for _ in range(args.repetitions):
                for rule in rules:
                    found[rule].append(_run(model, prompt, args.n_gen, rule))
                    bar.update()
    rows = []
    for rule, runs in found.items():
        rate = float(np.median([timings.decode_tok_s for timings, _, _ in runs]))
        timings, digest, n_bytes = runs[-1]
        rows.append({
            "sparsity": rule.sparsity,
            "prompt_tok_s": float(np.median([t.prefill_tok_s for t, _, _ in runs])),
            "decode_tok_s": rate,
            "kept_fraction": timings.kept_fraction,
            "mb_per_token": n_bytes / 1e6,
            "gb_s": n_bytes * rate / 1e9,
            "hash": f"{digest:08x}",
        })  # fmt: skip
    if args.json:
        print(json.dumps({"n_prompt": args.n_prompt, "n_gen": args.n_gen, "runs": rows}))
        return 0
    print("sparsity  prompt tok/s  decode tok/s    kept  MB/token    GB/s  hash")
    for row in rows:
        print(f"{row['sparsity']:8g}  {row['prompt_tok_s']:12.1f}  {row['decode_tok_s']:12.1f}  "
              f"{row['kept_fraction']:6.1%}  {row['mb_per_token']:8.1f}  {row['gb_s']:6.2f}  "
              f"{row['hash']}")  # fmt: skip
    return 0

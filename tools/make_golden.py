"""Writes tests/golden: what independent float32 implementations compute from the test models.

Needs torch, transformers, accelerate and gguf, which the tests themselves do not:

    python tools/make_golden.py --models DIR --wikitext wiki.test.raw [--llama-python PYTHON]

DIR holds smollm2-135m.gguf, qwen2.5-coder-0.5b.gguf and gemma3-270m.gguf. For each it writes

  dense_<model>.npz     transformers' teacher-forced logits over 200 tokens of TEXT (see sketch.py)
  greedy_<model>.json   48 greedy tokens from a chat prompt, with the top-1 margin of each
  perplexity.json       losses of single 512-token windows of wikitext2's test file, the first
                        20,480 tokens; a window begins with the beginning-of-text token where the
                        model has one. Float32 and, with --llama-python (an interpreter that has
                        llama-cpp-python), llama.cpp's, with --wina (the program) our own.
                        What the file holds already is kept

(--greedy and --perplexity: only these) and stops unless transformers and reference.py, two
implementations that share no code but the dequantiser, agree with each other on the dense logits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from reference import Reference
from sketch import cosine, summary

MODELS = {
    "smollm2": "smollm2-135m.gguf",
    "qwen": "qwen2.5-coder-0.5b.gguf",
    "gemma3": "gemma3-270m.gguf",
}
N_TOKENS, N_GREEDY = 200, 48
# Some ordinary prose with figures, dialogue, code and two other scripts, written for this file.
TEXT = """\
The lighthouse keeper at Brannoch counted ships the way other people count sheep. In the winter \
of 1887 he had written 1,204 of them into a ledger bound in green cloth: the name, the hour, the \
wind, and whether the crew had waved. "Nobody will ever read it," his sister said, and she was \
right for ninety-six years. Then a student who studied storms found the ledger in a box of hymn \
books, and noticed that the old man had been measuring something without knowing it. Whenever \
the waving stopped, the barometer fell within 18 hours.

Why should sailors be less polite before a gale? Her first answer fitted on one line:

    def mood(pressure): return max(0.0, (pressure - 990.5) / 30)

It was wrong, of course, but usefully wrong. The café owner in the harbour laughed: «Les marins \
sentent le temps dans leurs genoux». A Greek captain agreed, ναι, and added that one cannot wave \
with both hands on a rope. So the keeper's table turned out to hold two things at once, the sea \
and the people on it, and the difficulty was to take them apart again.
"""
QUESTION = {
    "smollm2": "What is the capital of France, and what is it known for?",
    "qwen": "Write a Python function that returns the n-th Fibonacci number.",
    "gemma3": "What is the capital of France, and what is it known for?",
}
WINDOW = 512
WINDOWS = 40


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def window_nll(logits: np.ndarray, window: list[int]) -> float:
    """Mean loss in nats over the second half of a window, llama.cpp's protocol: the logits at
    positions n/2 .. n-2 are scored against the tokens that follow them. logits: of that half."""
    first = len(window) // 2
    rows = logits[:-1].astype(np.float64)
    peak = rows.max(axis=1)
    total = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=1))
    return float(np.mean(total - rows[np.arange(len(rows)), window[first + 1 :]]))


class Transformers:
    """The same file through transformers' own GGUF conversion, in float32 on one thread."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        self.model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ).eval()

    def logits(self, tokens: list[int], last: int = 0) -> np.ndarray:
        """(n_tokens, n_vocab) float32; last: of so many tokens at the end, 0: of all"""
        with self.torch.no_grad():
            return self.model(self.torch.tensor([tokens]), logits_to_keep=last).logits[0].numpy()

    def starts_with(self) -> list[int]:
        """The token that every text begins with, or nothing."""
        return self.tokenizer("")["input_ids"][:1]

    def greedy(self, tokens: list[int], n: int, stop: set[int]) -> tuple[list[int], list[float]]:
        """Up to n tokens (the one that stops included) and each one's lead over the second."""
        chosen, margins, cache = [], [], None
        step = self.torch.tensor([tokens])
        while len(chosen) < n and not (chosen and chosen[-1] in stop):
            with self.torch.no_grad():
                out = self.model(step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = self.torch.topk(out.logits[0, -1], 2)
            chosen.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            step = self.torch.tensor([[chosen[-1]]])
        return chosen, margins


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Sorted, one key per line at the top, so that changes can be read."""
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def make_dense(model: Transformers, reference: Reference, out: Path) -> None:
    """Dense logits over TEXT. Stops if the two references disagree."""
    tokens = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:N_TOKENS]
    if len(tokens) != N_TOKENS:
        raise SystemExit(f"TEXT has only {len(tokens)} tokens, {N_TOKENS} are needed")
    logits = model.logits(tokens)
    ours = reference.logits(tokens)
    scale = np.linalg.norm(logits, axis=1) * np.linalg.norm(ours, axis=1)
    exact = (logits.astype(np.float64) * ours).sum(axis=1) / scale
    stored = summary(logits)
    print(f"  transformers against reference.py: cosine >= {exact.min():.8f}")
    print(f"  the same from the stored sketch:   cosine >= {cosine(stored, ours).min():.8f}")
    if exact.min() < 0.999999:
        raise SystemExit("transformers and reference.py disagree")
    rng = np.random.default_rng(1)
    off = logits + 0.02 * logits.std() * rng.standard_normal(logits.shape).astype(np.float32)
    true = 1 - (logits * off).sum(axis=1) / np.linalg.norm(off, axis=1) / stored["norm"]
    ratio = (1 - cosine(stored, off)) / true
    print(f"  sketched / true 1 - cos of a disturbed copy: {ratio.min():.3f} .. {ratio.max():.3f}")
    np.savez_compressed(out, tokens=np.array(tokens, dtype=np.int32), **stored)


def make_greedy(name: str, model: Transformers, out: Path) -> None:
    """Greedy continuation of a chat prompt."""
    prompt, start = QUESTION[name], model.starts_with()
    if model.tokenizer.chat_template:
        start, prompt = (
            [],
            model.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            ),
        )
    tokens = start + model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    chosen, margins = model.greedy(tokens, N_GREEDY, {model.tokenizer.eos_token_id})
    text = model.tokenizer.decode(chosen, skip_special_tokens=True)
    print(f"  greedy, least margin {min(margins):.4f}: {text!r}")
    write_json(
        out,
        {
            "question": QUESTION[name],
            "prompt": prompt,
            "prompt_tokens": tokens,
            "tokens": chosen,
            "margins": [round(m, 5) for m in margins],
            "text": text,
        },
    )


def make_perplexity(
    model: Transformers, path: Path, text: Path, llama_python: str | None, wina: Path | None,
    result: dict[str, Any], save: Callable[[], None],
) -> None:  # fmt: skip
    """Float32, llama.cpp's and our own losses of the first windows of a text, into result, which
    may hold those of some already: a run that was stopped goes on."""
    n, first = WINDOWS * WINDOW, model.starts_with()
    tokens = model.tokenizer(text.read_text(encoding="utf-8")[: n * 8], add_special_tokens=False)
    windows = np.array((first + tokens["input_ids"])[:n]).reshape(-1, WINDOW).tolist()
    for window in windows:
        window[: len(first)] = first
    result |= {"file_sha256": sha256(path), "first_tokens": windows[0][:16]}
    losses = result.setdefault("nll_per_window", [])
    for window in windows[len(losses) :]:
        losses.append(round(window_nll(model.logits(window, WINDOW // 2), window), 6))
        print(f"  window {len(losses)} of {WINDOWS}: {losses[-1]}", flush=True)
        save()
    result["ppl"] = round(math.exp(float(np.mean(losses))), 4)
    own = result.setdefault("llama_cpp", {"nll_per_window": []})
    while llama_python and len(own["nll_per_window"]) < WINDOWS:
        known = len(own["nll_per_window"])
        worker = Path(__file__).with_name("peer_llama.py")
        done = subprocess.run(
            [llama_python, str(worker), "perplexity", "-m", str(path), "-t", "1"],
            input=json.dumps(windows[known : known + 4]),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peer = json.loads(done.stdout)
        own["version"] = peer["version"]
        own["nll_per_window"] += [round(x, 6) for x in peer["nll_per_window"]]
        own["ppl"] = round(math.exp(float(np.mean(own["nll_per_window"]))), 4)
        save()
    if wina:
        command = [wina, "perplexity", "-m", path, "-f", text, "-c", WINDOW, "--chunks", WINDOWS]
        done = subprocess.run(
            [*map(str, command), "--json"], capture_output=True, text=True, check=True
        )
        losses = json.loads(done.stdout)["nll_per_window"]
        result["wina"] = {
            "nll_per_window": [round(x, 6) for x in losses],
            "ppl": round(math.exp(float(np.mean(losses))), 4),
        }
        save()
    peers = {
        who: result[who]["ppl"] for who in ("llama_cpp", "wina") if "ppl" in result.get(who, {})
    }
    print(f"  perplexity: float32 {result['ppl']}, {peers}")


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the GGUF files")
    parser.add_argument("--wikitext", type=Path, required=True, help="wikitext2's wiki.test.raw")
    parser.add_argument("--llama-python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--wina", type=Path, help="our program, build/bin/wina")
    parser.add_argument("--only", choices=sorted(MODELS), help="one model")
    parser.add_argument("--greedy", action="store_true", help="leave the other files alone")
    parser.add_argument("--perplexity", action="store_true", help="leave the other files alone")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent.parent / "tests" / "golden"
    )
    args = parser.parse_args()
    ppl_path = args.out / "perplexity.json"
    ppl = json.loads(ppl_path.read_text(encoding="utf-8")) if ppl_path.exists() else {}
    ppl["window"] = WINDOW
    ppl["text_sha256"] = sha256(args.wikitext)
    for name, file in MODELS.items():
        if args.only not in (None, name):
            continue
        path = args.models / file
        print(f"{name}: {path.name}", flush=True)
        model = Transformers(path)
        everything = not (args.greedy or args.perplexity)
        if everything:
            reference = Reference(path)
            make_dense(model, reference, args.out / f"dense_{name}.npz")
            del reference
        if everything or args.greedy:
            make_greedy(name, model, args.out / f"greedy_{name}.json")
        if not (everything or args.perplexity):
            continue
        save = partial(write_json, ppl_path, ppl)
        found = ppl.setdefault(name, {})
        make_perplexity(model, path, args.wikitext, args.llama_python, args.wina, found, save)
        save()


if __name__ == "__main__":
    main()

"""llama.cpp's side of a comparison: a worker for an interpreter that has llama-cpp-python.

    PYTHON peer_llama.py bench -m FILE -t 2 -p 128 -n 64 -r 3    speeds, load time, peak memory
    PYTHON peer_llama.py perplexity -m FILE -t 1 < windows.json  losses of [[token, ...], ...]

Prints one JSON object. Both use the low-level llama_decode loop, f16 keys and values, and what
llama.cpp does by default otherwise. bench follows llama-bench: prompt and generation are separate
tests from an empty context, after one warm-up of each; tokens are pseudo-random.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable

import llama_cpp as llama
import numpy as np

FLASH = {"off": 0, "on": 1, "auto": -1}
GGML_TYPE_F16 = 1


@llama.llama_log_callback
def _quiet(level: int, text: bytes, _user: ctypes.c_void_p) -> None:
    if level == 4:  # errors; 5 continues the line before
        sys.stderr.write(text.decode(errors="replace"))


class Peer:
    """A loaded model and one context. Raises RuntimeError if either cannot be made."""

    def __init__(self, path: str, n_ctx: int, n_threads: int, flash: str, mmap: bool) -> None:
        llama.llama_log_set(_quiet, None)
        llama.llama_backend_init()
        start = time.perf_counter()
        model_params = llama.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_mmap = mmap
        self.model = llama.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = FLASH[flash]
        params.type_k = params.type_v = GGML_TYPE_F16
        params.no_perf = True
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context for {path}")
        self.load_s = time.perf_counter() - start
        vocab = llama.llama_model_get_vocab(self.model)
        self.n_vocab = llama.llama_vocab_n_tokens(vocab)

    def clear(self) -> None:
        """Empties the key and value cache."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), False)

    def decode(self, tokens: list[int]) -> None:
        """Appends tokens; logits of the last one only."""
        array = (llama.llama_token * len(tokens))(*tokens)
        status = llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def last_logits(self) -> np.ndarray:
        """(n_vocab) float32, a copy; waits for the computation."""
        pointer = llama.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,)).copy()

    def logits(self, tokens: list[int], first: int) -> np.ndarray:
        """(n_tokens - first, n_vocab) float32 of a text evaluated in one batch."""
        self.clear()
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i >= first
        status = llama.llama_decode(self.context, batch)
        llama.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        rows = len(tokens) - first
        pointer = llama.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.n_vocab)).copy()


def peak_bytes() -> int:
    """Largest resident memory of this process, mapped file pages included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(repeats: int, n: int, step: Callable[[], None]) -> list[float]:
    """Tokens per second of each repeat of a step that handles n tokens; one warm-up before."""
    step()
    speeds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        speeds.append(n / (time.perf_counter() - start))
    return speeds


def bench(args: argparse.Namespace) -> dict[str, object]:
    """Speeds of a prompt of -p tokens and of -n single tokens."""
    before = peak_bytes()
    peer = Peer(args.model, max(args.prompt, args.gen) + 8, args.threads, args.flash, args.mmap)
    after_load = peak_bytes()
    tokens = np.random.default_rng(7).integers(0, peer.n_vocab, max(args.prompt, args.gen, 1))
    ids = [int(t) for t in tokens]

    def prompt() -> None:
        peer.clear()
        peer.decode(ids[: args.prompt])
        peer.last_logits()

    def generate() -> None:
        peer.clear()
        for token in ids[: args.gen]:
            peer.decode([token])
            peer.last_logits()

    result: dict[str, object] = {"load_s": peer.load_s}
    if args.prompt:
        result["pp_tok_s"] = timed(args.repeats, args.prompt, prompt)
    if args.gen:
        result["tg_tok_s"] = timed(args.repeats, args.gen, generate)
    finite = bool(np.isfinite(peer.last_logits()).all())
    return result | {
        "finite": finite,
        "peak_bytes": peak_bytes(),
        "peak_bytes_load": after_load,
        "interpreter_bytes": before,
    }


def perplexity(args: argparse.Namespace) -> dict[str, object]:
    """Mean loss of the second half of each window read from stdin, in nats per token."""
    windows = json.load(sys.stdin)
    peer = Peer(args.model, len(windows[0]), args.threads, args.flash, args.mmap)
    losses = []
    for window in windows:
        first = len(window) // 2
        rows = peer.logits(window, first)[:-1].astype(np.float64)
        peak = rows.max(axis=1)
        total = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=1))
        losses.append(float(np.mean(total - rows[np.arange(len(rows)), window[first + 1 :]])))
    return {"nll_per_window": losses}


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("bench", "perplexity"))
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-p", "--prompt", type=int, default=128)
    parser.add_argument("-n", "--gen", type=int, default=64)
    parser.add_argument("-r", "--repeats", type=int, default=3)
    parser.add_argument("--flash", choices=sorted(FLASH), default="auto", help="flash attention")
    parser.add_argument("--no-mmap", dest="mmap", action="store_false")
    args = parser.parse_args()
    result = {"bench": bench, "perplexity": perplexity}[args.command](args)
    result["version"] = f"llama-cpp-python {llama.__version__}"
    result["system"] = llama.llama_print_system_info().decode()
    result["flash"] = args.flash
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()

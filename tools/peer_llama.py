"""llama.cpp's side of a comparison: a worker for an interpreter that has llama-cpp-python.

    PYTHON peer_llama.py serve -m FILE -t 2 -c 200               obeys commands (bench_serve.py)
    PYTHON peer_llama.py perplexity -m FILE -t 1 < windows.json  losses of [[token, ...], ...]
    PYTHON peer_llama.py quantize -m FILE --out FILE --ftype N   llama_model_quantize

perplexity prints one JSON object. Both use the low-level llama_decode loop, f16 keys and values,
and what llama.cpp does by default otherwise: batches, flash attention, repacking, mapping.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys

import bench_serve
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

    def __init__(self, args: argparse.Namespace) -> None:
        llama.llama_log_set(_quiet, None)
        llama.llama_backend_init()
        model_params = llama.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_mmap = args.mmap
        self.model = llama.llama_model_load_from_file(args.model.encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {args.model}")
        params = llama.llama_context_default_params()
        params.n_ctx = args.ctx
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = FLASH[args.flash]
        params.type_k = params.type_v = GGML_TYPE_F16
        params.no_perf = True
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context for {args.model}")
        self.n_batch = llama.llama_n_batch(self.context)
        self.n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self._one = (llama.llama_token * 1)()
        self._one_batch = llama.llama_batch_get_one(self._one, 1)
        self.about = about(args) | {
            "n_batch": self.n_batch,
            "n_ubatch": llama.llama_n_ubatch(self.context),
        }

    def set_threads(self, n: int) -> None:
        llama.llama_set_n_threads(self.context, n, n)
        self.truncate(0)

    def set_sparsity(self, sparsity: float) -> None:
        if sparsity:
            raise ValueError("llama.cpp has no activation sparsity")

    def truncate(self, n_past: int) -> None:
        """Forgets all but the first n_past tokens."""
        memory = llama.llama_get_memory(self.context)
        if not llama.llama_memory_seq_rm(memory, 0, n_past, -1):
            raise RuntimeError("llama.cpp cannot shorten this model's context")

    def prefill(self, tokens: list[int]) -> None:
        """Appends tokens; logits of the last one only."""
        for first in range(0, len(tokens), self.n_batch):
            part = tokens[first : first + self.n_batch]
            array = (llama.llama_token * len(part))(*part)
            self._decode(llama.llama_batch_get_one(array, len(part)))

    def decode(self, token: int) -> None:
        """Appends one token."""
        self._one[0] = token
        self._decode(self._one_batch)

    def _decode(self, batch: llama.llama_batch) -> None:
        status = llama.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        llama.llama_synchronize(self.context)

    def logits(self) -> np.ndarray:
        """(n_vocab) float32 after the last token, a view that the next call changes."""
        pointer = llama.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def counters(self) -> dict[str, float]:
        return {}

    def all_logits(self, tokens: list[int], first: int) -> np.ndarray:
        """(n_tokens - first, n_vocab) float32 of a text evaluated in one batch."""
        self.truncate(0)
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


def about(args: argparse.Namespace) -> dict[str, str]:
    """What ran, for the record."""
    return {
        "version": f"llama-cpp-python {llama.__version__}",
        "system": llama.llama_print_system_info().decode(),
        "flash": args.flash,
    }


def perplexity(args: argparse.Namespace) -> dict[str, object]:
    """Mean loss of the second half of each window read from stdin, in nats per token."""
    windows = json.load(sys.stdin)
    args.ctx = len(windows[0])
    peer = Peer(args)
    losses = []
    for window in windows:
        first = len(window) // 2
        rows = peer.all_logits(window, first)[:-1].astype(np.float64)
        peak = rows.max(axis=1)
        total = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=1))
        losses.append(float(np.mean(total - rows[np.arange(len(rows)), window[first + 1 :]])))
    return {"nll_per_window": losses}


def quantize(args: argparse.Namespace) -> None:
    """Writes args.out. Raises RuntimeError if that fails."""
    llama.llama_log_set(_quiet, None)
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread = args.ftype, args.threads
    status = llama.llama_model_quantize(
        args.model.encode(), args.out.encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"llama.cpp cannot quantise {args.model} to {args.ftype}")


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("serve", "perplexity", "quantize"))
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-c", "--ctx", type=int, default=512, help="tokens there is room for")
    parser.add_argument("--flash", choices=sorted(FLASH), default="auto", help="flash attention")
    parser.add_argument("--no-mmap", dest="mmap", action="store_false")
    parser.add_argument("--out", help="the file that quantize writes")
    parser.add_argument("--ftype", type=int, help="llama.cpp's number of a mixture")
    args = parser.parse_args()
    if args.command == "quantize":
        quantize(args)
        return
    if args.command == "serve":
        bench_serve.serve(lambda: Peer(args), args.ctx)
        return
    json.dump(perplexity(args) | about(args), sys.stdout)
    print()


if __name__ == "__main__":
    main()

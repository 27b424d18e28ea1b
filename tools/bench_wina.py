"""libwina's side of a benchmark: a worker that obeys the commands of bench_serve.py.

    python tools/bench_wina.py -m FILE -t 2 -c 200

Uses the C interface, as `wina bench` does: nothing of pywina lies between two tokens but one call.
$PYWINA_LIBRARY chooses the library.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import bench_serve
import numpy as np

import pywina
from pywina._native import check, ffi, lib

METHODS = {"wina": lib.WINA_METHOD_WINA, "teal": lib.WINA_METHOD_TEAL}
MASKS = {"group": lib.WINA_MASK_GROUP, "projection": lib.WINA_MASK_PROJECTION}


class Engine:
    """A model and its session, which is made anew for another number of threads."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        params = ffi.new("wina_model_params *")
        lib.wina_model_params_init(params)
        params.n_threads = args.threads
        self._model, self._session = ffi.new("wina_model **"), ffi.new("wina_session **")
        check(lib.wina_model_load(os.fsencode(args.model), params, self._model))
        self._sparsity = ffi.new("wina_sparsity *")
        lib.wina_sparsity_init(self._sparsity)
        self._sparsity.method = METHODS[args.method]
        self._sparsity.mask = MASKS[args.mask]
        self._stats = ffi.new("wina_stats *")
        info = ffi.new("wina_model_info *")
        check(lib.wina_model_get_info(self._model[0], info))
        self.n_vocab = info.n_vocab
        self.set_threads(args.threads)
        self.about = {
            "version": f"libwina {ffi.string(lib.wina_version()).decode()}",
            "system": ffi.string(lib.wina_cpu_name()).decode(),
            "library": os.environ.get("PYWINA_LIBRARY", pywina.__file__),
            "n_params": info.n_params,
            "model_file_bytes": info.file_bytes,
            "weight_bytes": info.weight_bytes,
            "kv_bytes_per_token": info.kv_bytes_per_token,
        } | self._tensor_bytes(bool(info.tied_output))

    def _tensor_bytes(self, tied: bool) -> dict[str, int]:
        """Bytes of all tensors of the file, and of those that one dense token reads."""
        info, total, read = ffi.new("wina_tensor_info *"), 0, 0
        for i in range(lib.wina_model_tensor_count(self._model[0])):
            check(lib.wina_model_get_tensor(self._model[0], i, info))
            total += info.n_bytes
            # A separate embedding is a table: one row of it is read.
            if tied or ffi.string(info.name) != b"token_embd.weight":
                read += info.n_bytes
        return {"tensor_bytes": total, "tensor_bytes_per_token": read}

    def set_threads(self, n: int) -> None:
        lib.wina_session_free(self._session[0])
        params = ffi.new("wina_session_params *")
        lib.wina_session_params_init(params)
        params.n_threads, params.n_ctx, params.n_batch = n, self._args.ctx, self._args.batch
        check(lib.wina_session_create(self._model[0], params, self._session))

    def set_sparsity(self, sparsity: float) -> None:
        self._sparsity.sparsity = sparsity
        check(lib.wina_session_set_sparsity(self._session[0], self._sparsity))
        lib.wina_session_reset_stats(self._session[0])

    def truncate(self, n_past: int) -> None:
        check(lib.wina_session_truncate(self._session[0], n_past))

    def prefill(self, tokens: list[int]) -> None:
        check(lib.wina_session_prefill(self._session[0], tokens, len(tokens)))

    def decode(self, token: int) -> None:
        check(lib.wina_session_decode(self._session[0], token))

    def logits(self) -> np.ndarray:
        """(n_vocab) float32, a view that the next call changes."""
        pointer = lib.wina_session_logits(self._session[0])
        return np.frombuffer(ffi.buffer(pointer, self.n_vocab * 4), dtype=np.float32)

    def counters(self) -> dict[str, Any]:
        """Of the runs since the sparsity was set. A prompt shares what it reads: no bytes."""
        check(lib.wina_session_get_stats(self._session[0], self._stats))
        decoded = self._stats.n_decode > 0
        return {
            "kept_fraction": self._stats.kept_fraction,
            "bytes_per_token": self._stats.bytes_per_token if decoded else None,
        }


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", "--threads", type=int, required=True)
    parser.add_argument("-c", "--ctx", type=int, required=True, help="tokens there is room for")
    parser.add_argument("-b", "--batch", type=int, default=0, help="of prompts; 0: the default")
    parser.add_argument("--method", choices=sorted(METHODS), default="wina")
    parser.add_argument("--mask", choices=sorted(MASKS), default="group")
    args = parser.parse_args()
    bench_serve.serve(lambda: Engine(args), args.ctx)


if __name__ == "__main__":
    main()

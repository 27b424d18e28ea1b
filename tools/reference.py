"""An independent float32 forward pass of llama and qwen2 GGUF files, dense or with WINA masks.

This is the yardstick that libwina's own forward pass is tested against, so it shares nothing with
it: weights come from gguf-py's dequantiser, every projection is a dense numpy product, and
sparsity is a mask on the input (masked inputs are multiplied as zeros). Clarity beats speed, yet a
whole text is one pass, layer by layer. numpy and gguf are the only dependencies.

    reference = Reference("model.gguf")
    logits = reference.logits(tokens, sparsity=0.5, method="wina", mask="group", n_dense=5)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np

GROUPS: dict[str, tuple[str, ...]] = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
METHODS = ("dense", "wina", "teal")
MASKS = ("group", "projection")
# Pairs of a head that the position rotates: (2i, 2i + 1) or (i, i + n/2).
ROPE_INTERLEAVED = {"llama": True, "qwen2": False}


def kept_count(n: int, sparsity: float) -> int:
    """Inputs kept of n: half rounds up, at least one. Sparsity is taken at float32 precision, as
    the library's parameter holds it, and the rest is done in double."""
    keep = (1.0 - float(np.float32(sparsity))) * n
    return max(1, int(np.floor(keep + 0.5)))


def keep_mask(scores: np.ndarray, n_keep: int) -> np.ndarray:
    """True for the n_keep largest scores of each row; of equals the lower index is kept.

    scores: (n_tokens, n) float32, without NaN; returns (n_tokens, n) bool.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :n_keep]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


class Reference:
    """Weights of one file as float32 arrays of shape (rows, cols) = (outputs, inputs).

    Raises ValueError for an architecture or a feature that is not implemented here.
    """

    def __init__(self, path: str | Path) -> None:
        reader = gguf.GGUFReader(str(path))
        meta = {name: field for name, field in reader.fields.items() if "ggml.tokens" not in name}
        self.arch = str(meta["general.architecture"].contents())
        if self.arch not in ROPE_INTERLEAVED:
            raise ValueError(f"{path}: architecture {self.arch!r} is not implemented")

        def get(key: str, default: Any = None) -> Any:
            field = meta.get(f"{self.arch}.{key}")
            if field is None and default is None:
                raise ValueError(f"{path}: {self.arch}.{key} is missing")
            return default if field is None else field.contents()

        self.n_layer = int(get("block_count"))
        self.n_embd = int(get("embedding_length"))
        self.n_head = int(get("attention.head_count"))
        self.n_head_kv = int(get("attention.head_count_kv", self.n_head))
        self.head_dim = int(get("attention.key_length", self.n_embd // self.n_head))
        self.rope_dim = int(get("rope.dimension_count", self.head_dim))
        self.rope_theta = float(get("rope.freq_base", 10000.0))
        scaling = str(get("rope.scaling.type", "none"))
        if scaling not in ("none", "linear"):
            raise ValueError(f"{path}: rope scaling {scaling!r} is not implemented")
        factor = float(get("rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0
        self.rope_scale = 1.0 / factor
        self.eps = np.float32(get("attention.layer_norm_rms_epsilon"))
        self.weights: dict[str, np.ndarray] = {
            t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32, copy=False)
            for t in reader.tensors
        }
        self._norms: dict[tuple[int, tuple[str, ...]], np.ndarray] = {}
        self.n_vocab = self.weights["token_embd.weight"].shape[0]
        self.head = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def column_norms(self, layer: int, names: tuple[str, ...]) -> np.ndarray:
        """(cols) l2 norm of every column of the named matrices, stacked over rows."""
        key = (layer, names)
        if key not in self._norms:
            total = sum(
                (self.weights[f"blk.{layer}.{name}.weight"].astype(np.float64) ** 2).sum(axis=0)
                for name in names
            )
            self._norms[key] = np.sqrt(total).astype(np.float32)
        return self._norms[key]

    def logits(
        self,
        tokens: list[int] | np.ndarray,
        *,
        sparsity: float = 0.0,
        method: str = "wina",
        mask: str = "group",
        n_dense: int = 0,
        kv_f16: bool = False,
        logits_from: int = 0,
        margins: list[float] | None = None,
    ) -> np.ndarray:
        """Teacher-forced logits, shape (n_tokens - logits_from, n_vocab), float32.

        The first n_dense tokens run dense, the rest at the given sparsity. kv_f16 rounds keys
        (after rotation) and values to half precision, as the library's cache does. margins, if
        given, collects for every selection the gap between the last kept and the first dropped
        score relative to the former: small gaps are where rounding may flip a choice.
        """
        if method not in METHODS or mask not in MASKS:
            raise ValueError(f"method {method!r} or mask {mask!r} is unknown")
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity is {sparsity}, must be in [0, 1)")
        run = _Run(self, len(tokens), sparsity, method, mask, n_dense, kv_f16, margins)
        x = self.weights["token_embd.weight"][np.asarray(tokens, dtype=np.int64)]
        for layer in range(self.n_layer):
            x = x + run.attention(layer, self.normed(x, f"blk.{layer}.attn_norm"))
            x = x + run.feed_forward(layer, self.normed(x, f"blk.{layer}.ffn_norm"))
        return self.normed(x[logits_from:], "output_norm") @ self.head.T

    def normed(self, x: np.ndarray, name: str) -> np.ndarray:
        """RMSNorm of each row, times the gain."""
        mean = np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True)
        scale = (1.0 / np.sqrt(mean + self.eps)).astype(np.float32)
        return x * scale * self.weights[f"{name}.weight"]


class _Run:
    """One pass over one text: positions, causal mask and sparsity settings."""

    def __init__(
        self,
        reference: Reference,
        n_tokens: int,
        sparsity: float,
        method: str,
        mask: str,
        n_dense: int,
        kv_f16: bool,
        margins: list[float] | None,
    ) -> None:
        self.ref = reference
        self.sparse_from = n_tokens if method == "dense" or sparsity == 0.0 else n_dense
        self.n_tokens, self.sparsity, self.method, self.mask = n_tokens, sparsity, method, mask
        self.kv_f16, self.margins = kv_f16, margins
        half = reference.rope_dim // 2
        freq = reference.rope_theta ** (-2.0 * np.arange(half) / reference.rope_dim)
        factors = reference.weights.get("rope_freqs.weight")
        if factors is not None:
            freq = freq / factors.astype(np.float64)
        angle = np.outer(np.arange(n_tokens) * reference.rope_scale, freq)
        self.cos = np.cos(angle).astype(np.float32)[:, None, :]  # (n_tokens, 1, rope_dim / 2)
        self.sin = np.sin(angle).astype(np.float32)[:, None, :]
        self.future = np.triu(np.ones((n_tokens, n_tokens), dtype=bool), 1)

    def masked(self, layer: int, names: tuple[str, ...], x: np.ndarray) -> np.ndarray:
        """x (n_tokens, cols) with the dropped inputs of every sparse token set to zero."""
        if self.sparse_from >= self.n_tokens:
            return x
        n = x.shape[1]
        n_keep = kept_count(n, self.sparsity)
        sparse = x[self.sparse_from :]
        scores = np.abs(sparse)
        if self.method == "wina":
            scores = scores * self.ref.column_norms(layer, names)
        if self.margins is not None and n_keep < n:
            ranked = -np.sort(-scores, axis=1)
            last, first = ranked[:, n_keep - 1], ranked[:, n_keep]
            self.margins.extend(((last - first) / np.maximum(last, 1e-30)).tolist())
        kept = np.where(keep_mask(scores, n_keep), sparse, np.float32(0))
        return np.concatenate([x[: self.sparse_from], kept])

    def project(self, layer: int, group: str, x: np.ndarray) -> list[np.ndarray]:
        """Outputs of every matrix of a group for the same input x, biases added."""
        names = GROUPS[group]
        shared = self.masked(layer, names, x) if self.mask == "group" else None
        outputs = []
        for name in names:
            masked = self.masked(layer, (name,), x) if shared is None else shared
            out = masked @ self.ref.weights[f"blk.{layer}.{name}.weight"].T
            bias = self.ref.weights.get(f"blk.{layer}.{name}.bias")
            outputs.append(out if bias is None else out + bias)
        return outputs

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """Rotary position embedding of x (n_tokens, heads, head_dim)."""
        n, out = self.ref.rope_dim, x.copy()
        if ROPE_INTERLEAVED[self.ref.arch]:
            first, second = slice(0, n, 2), slice(1, n, 2)
        else:
            first, second = slice(0, n // 2), slice(n // 2, n)
        a, b = x[..., first], x[..., second]
        out[..., first] = a * self.cos - b * self.sin
        out[..., second] = a * self.sin + b * self.cos
        return out

    def attention(self, layer: int, x: np.ndarray) -> np.ndarray:
        """Causal grouped-query attention, output projection included."""
        ref, t = self.ref, self.n_tokens
        q, k, v = self.project(layer, "qkv", x)
        q = self.rotate(q.reshape(t, ref.n_head, ref.head_dim))
        k = self.rotate(k.reshape(t, ref.n_head_kv, ref.head_dim))
        v = v.reshape(t, ref.n_head_kv, ref.head_dim)
        if self.kv_f16:
            k, v = (a.astype(np.float16).astype(np.float32) for a in (k, v))
        out = np.empty_like(q)
        for head in range(ref.n_head):
            kv = head // (ref.n_head // ref.n_head_kv)
            scores = (q[:, head] @ k[:, kv].T) / np.float32(np.sqrt(ref.head_dim))
            scores[self.future] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, head] = weights @ v[:, kv]
        return self.project(layer, "o", out.reshape(t, -1))[0]

    def feed_forward(self, layer: int, x: np.ndarray) -> np.ndarray:
        """down(silu(gate(x)) * up(x))"""
        gate, up = self.project(layer, "gate_up", x)
        with np.errstate(over="ignore"):
            hidden = gate / (1.0 + np.exp(-gate)) * up
        return self.project(layer, "down", hidden)[0]


def main() -> None:
    """Prints the ten most likely next tokens after a list of token ids."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("tokens", type=int, nargs="+")
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--method", choices=METHODS, default="wina")
    parser.add_argument("--mask", choices=MASKS, default="group")
    parser.add_argument("--n-dense", type=int, default=0)
    args = parser.parse_args()
    last = Reference(args.model).logits(
        args.tokens,
        sparsity=args.sparsity,
        method=args.method,
        mask=args.mask,
        n_dense=args.n_dense,
        logits_from=len(args.tokens) - 1,
    )[0]
    for token in np.argsort(-last, kind="stable")[:10]:
        print(f"{token:8d} {last[token]:10.4f}")


if __name__ == "__main__":
    main()

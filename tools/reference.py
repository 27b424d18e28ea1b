"""An independent float32 forward pass of GGUF files, dense or with WINA masks.

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
METHODS = ("dense", "wina", "teal", "cats")
MASKS = ("group", "projection")
#: kept fractions at sparsity 0.5 that the library has built in
PROFILE = {"qkv": 0.58, "o": 0.42, "gate_up": 0.59, "down": 0.32}
#: bits of one weight, scales excluded
VALUE_BITS = {
    "F32": 32, "F16": 16, "BF16": 16, "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8,
    "Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "Q2_K": 2, "Q3_K": 3, "IQ4_NL": 4, "IQ4_XS": 4, "MXFP4": 4,
    "TQ1_0": 2, "TQ2_0": 2,  # as panels hold them
}  # fmt: skip
# Pairs of a head that the position rotates: (2i, 2i + 1) or (i, i + n/2).
ROPE_INTERLEAVED = {
    "llama": True, "smollm3": True, "granite": True, "qwen2": False, "qwen3": False,
    "phi3": False, "gemma2": False, "gemma3": False, "olmo2": False, "qwen2moe": False,
    "qwen3moe": False, "olmoe": False, "granitemoe": True,
}  # fmt: skip
#: every so many layers one sees all positions; 1: none does
WINDOW_STEP = {"llama": 1, "phi3": 1, "gemma2": 2, "gemma3": 6}


def kept_count(n: int, sparsity: float) -> int:
    """Inputs kept of n: half rounds up, at least one. Sparsity is taken at float32 precision, as
    the library's parameter holds it, and the rest is done in double."""
    keep = (1.0 - float(np.float32(sparsity))) * n
    return max(1, int(np.floor(keep + 0.5)))


def fit_fractions(shape: np.ndarray, weight: np.ndarray, share: float) -> np.ndarray:
    """Kept fractions whose weighted mean is `share`: the log-odds of every 1 - shape moved by one
    number (a fraction of 1 stays)."""
    shape = np.asarray(shape, dtype=np.float64)
    odds = (1 - shape) / shape

    def mean(move: float) -> float:
        return float(np.average(1 / (1 + odds * np.exp(move)), weights=weight))

    low, high = -30.0, 30.0
    while high - low > 1e-12:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if mean(middle) > share else (low, middle)
    return 1 / (1 + odds * np.exp(low))


def count_of(fraction: float, n: int) -> int:
    return int(min(n, max(1, np.floor(fraction * n + 0.5))))


def keep_mask(scores: np.ndarray, n_keep: int) -> np.ndarray:
    """True for the n_keep largest scores of each row; of equals the lower index is kept.

    scores: (n_tokens, n) float32, without NaN; returns (n_tokens, n) bool.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :n_keep]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def capped(x: np.ndarray, cap: np.float32) -> np.ndarray:
    """cap * tanh(x / cap); a cap of 0 is none."""
    return cap * np.tanh(x / cap) if cap else x


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
        self._read_traits(get)
        self._norms: dict[tuple[int, tuple[str, ...]], np.ndarray] = {}
        self.bits = {t.name: VALUE_BITS.get(t.tensor_type.name, 0) for t in reader.tensors}
        self._split_fused()
        self._split_experts()
        self.n_vocab = self.weights["token_embd.weight"].shape[0]
        self.head = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def _read_traits(self, get: Any) -> None:
        """What other architectures than llama and qwen2 have."""
        arch = self.arch
        self.gelu = arch in ("gemma2", "gemma3")
        self.window = int(get("attention.sliding_window", 0)) if arch in WINDOW_STEP else 0
        self.theta_window = 10000.0 if arch == "gemma3" else self.rope_theta
        self.theta_window = float(get("rope.freq_base_swa", self.theta_window))
        self.rope_gain = np.float32(get("rope.scaling.attn_factor", 1.0))
        self.n_ctx_short = int(get("rope.scaling.original_context_length", 0))
        self.embd_scale = np.float32(np.sqrt(self.n_embd) if self.gelu else 1.0)
        self.embd_scale = np.float32(get("embedding_scale", float(self.embd_scale)))
        self.residual_scale = np.float32(get("residual_scale", 1.0))
        self.attn_scale = np.float32(get("attention.scale", float(self.head_dim**-0.5)))
        self.logit_scale = np.float32(get("logit_scale", 1.0))
        self.attn_softcap = np.float32(get("attn_logit_softcapping", 0.0))
        self.logit_softcap = np.float32(get("final_logit_softcapping", 0.0))
        self.n_expert = int(get("expert_count", 0))
        self.n_expert_used = int(get("expert_used_count", 0))
        self.shared = self.n_expert > 0 and "blk.0.ffn_up_shexp.weight" in self.weights

    def _split_fused(self) -> None:
        """phi3: one matrix for q, k and v, one for gate and up."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        for layer in range(self.n_layer if self.arch == "phi3" else 0):
            name = f"blk.{layer}."
            parts = np.split(self.weights.pop(f"{name}attn_qkv.weight"), [q, q + kv])
            gate_up = np.split(self.weights.pop(f"{name}ffn_up.weight"), 2)
            roles = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
            bits = [self.bits[f"{name}attn_qkv.weight"]] * 3 + [
                self.bits[f"{name}ffn_up.weight"]
            ] * 2
            for role, part, n in zip(roles, [*parts, *gate_up], bits, strict=True):
                self.weights[f"{name}{role}.weight"], self.bits[f"{name}{role}.weight"] = part, n

    def _split_experts(self) -> None:
        """blk.N.ffn_up_exps.weight becomes blk.N.ffn_up.E.weight, as files had it once."""
        for name in [name for name in self.weights if "_exps." in name]:
            for expert, values in enumerate(self.weights.pop(name)):
                own = name.replace("_exps.", f".{expert}.")
                self.weights[own], self.bits[own] = values, self.bits[name]

    def dense_bits(self, layer: int, names: tuple[str, ...]) -> int:
        """Bits of the values that a dense token reads of the named matrices: of those that experts
        have in the experts that are chosen and in the shared one."""
        if not self.n_expert or not names[0].startswith("ffn"):
            return self.group_bits(layer, names)
        one = self.group_bits(layer, tuple(f"{name}.0" for name in names))
        shared = tuple(f"{name}_shexp" for name in names) if self.shared else ()
        return self.n_expert_used * one + self.group_bits(layer, shared)

    def has_window(self, layer: int) -> bool:
        """Whether the layer sees only the last positions."""
        step = WINDOW_STEP.get(self.arch, 1)
        return self.window > 0 and (step == 1 or (layer + 1) % step != 0)

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

    def group_bits(self, layer: int, names: tuple[str, ...]) -> int:
        """Bits of the values of the named matrices."""
        full = [f"blk.{layer}.{name}.weight" for name in names]
        return sum(self.weights[name].size * self.bits[name] for name in full)

    def keep_table(
        self, sparsity: float, method: str, budget: str | np.ndarray
    ) -> dict[tuple[int, str], float]:
        """Fractions of the inputs that are kept, by layer and group. budget: "uniform", "profile",
        or kept fractions (n_layer, 4) whose shape is to be followed."""
        items = [(layer, group) for layer in range(self.n_layer) for group in GROUPS]
        bits = np.array([self.dense_bits(layer, GROUPS[group]) for layer, group in items], float)
        share = 1.0 - float(np.float32(sparsity))
        if method == "cats":
            up = sum(self.dense_bits(layer, ("ffn_up",)) for layer in range(self.n_layer))
            down = sum(self.dense_bits(layer, ("ffn_down",)) for layer in range(self.n_layer))
            gated = 1 - (1 - share) * bits.sum() / (up + down)
            fractions = np.array([gated if group == "down" else 1.0 for _, group in items])
        elif isinstance(budget, str) and budget == "uniform":
            fractions = np.full(len(items), share)
        else:
            if isinstance(budget, str):
                shape = np.array([PROFILE[group] for _, group in items])
            else:
                shape = np.asarray(budget).ravel()
            fractions = fit_fractions(shape, bits, share)
        return dict(zip(items, fractions, strict=True))

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
        budget: str | np.ndarray = "uniform",
        exponent: float = 1.0,
        norms: dict[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Teacher-forced logits, shape (n_tokens - logits_from, n_vocab), float32.

        The first n_dense tokens run dense, the rest at the given sparsity. kv_f16 rounds keys
        (after rotation) and values to half precision, as the library's cache does. margins, if
        given, collects for every selection the gap between the last kept and the first dropped
        score relative to the former: small gaps are where rounding may flip a choice.
        budget: see keep_table. norms: (n_layer, n_in) by group and by q, k, v, gate, up, in place
        of column norms; exponent: their power.
        """
        if method not in METHODS or mask not in MASKS:
            raise ValueError(f"method {method!r} or mask {mask!r} is unknown")
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity is {sparsity}, must be in [0, 1)")
        run = _Run(self, len(tokens), sparsity, method, mask, n_dense, kv_f16, margins)
        run.keep = self.keep_table(sparsity, method, budget)
        run.exponent, run.norms = np.float32(exponent), norms
        x = self.weights["token_embd.weight"][np.asarray(tokens, dtype=np.int64)] * self.embd_scale
        for layer in range(self.n_layer):
            name = f"blk.{layer}."
            out = run.attention(layer, self.normed(x, f"{name}attn_norm"))
            x = x + self.normed(out, f"{name}post_attention_norm") * self.residual_scale
            out = run.feed_forward(layer, self.normed(x, f"{name}ffn_norm"))
            x = x + self.normed(out, f"{name}post_ffw_norm") * self.residual_scale
        logits = self.normed(x[logits_from:], "output_norm") @ self.head.T / self.logit_scale
        return capped(logits, self.logit_softcap)

    def normed(self, x: np.ndarray, name: str) -> np.ndarray:
        """RMSNorm over the last axis, times the gain; x itself where the model has no such norm."""
        if f"{name}.weight" not in self.weights:
            return x
        mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
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
        self.keep: dict[tuple[int, str], float] = {}
        self.visitors = np.arange(n_tokens)  #: tokens whose inputs are projected
        self.exponent = np.float32(1)
        self.norms: dict[str, np.ndarray] | None = None
        self.angles = self.rope_angles(reference.rope_theta, reference.rope_scale)
        same = reference.theta_window == reference.rope_theta
        scale = reference.rope_scale if same else 1.0
        self.angles_window = self.rope_angles(reference.theta_window, scale)
        self.future = np.triu(np.ones((n_tokens, n_tokens), dtype=bool), 1)
        self.unseen = self.future | np.tril(np.ones_like(self.future), -reference.window)

    def rope_angles(self, theta: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, (n_tokens, 1, rope_dim / 2) each."""
        ref = self.ref
        freq = theta ** (-2.0 * np.arange(ref.rope_dim // 2) / ref.rope_dim)
        length = "long" if self.n_tokens > ref.n_ctx_short else "short"
        factors = ref.weights.get(f"rope_factors_{length}.weight")
        factors = ref.weights.get("rope_freqs.weight", factors)
        if factors is not None:
            freq = freq / factors.astype(np.float64)
        angle = np.outer(np.arange(self.n_tokens) * scale, freq)[:, None, :]
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        return cos * ref.rope_gain, sin * ref.rope_gain

    def weighed(self, layer: int, group: str, names: tuple[str, ...]) -> np.ndarray:
        """(cols) what |x| is multiplied by for the score of wina."""
        if self.norms is None:
            norms = self.ref.column_norms(layer, names)
        elif names == GROUPS[group]:
            norms = self.norms[group][layer]
        else:
            norms = self.norms[names[0].split("_")[1]][layer]
        return norms**self.exponent

    def masked(
        self,
        layer: int,
        group: str,
        names: tuple[str, ...],
        x: np.ndarray,
        scored: np.ndarray | None = None,
    ) -> np.ndarray:
        """x (n_tokens, cols) with the dropped inputs of every sparse token set to zero. scored:
        what is scored in the place of x."""
        first = int(np.searchsorted(self.visitors, self.sparse_from))  # row of a sparse token
        if first == len(x):
            return x
        n_keep = count_of(self.keep[layer, group], x.shape[1])
        sparse = x[first:]
        scores = np.abs((x if scored is None else scored)[first:])
        if self.method == "wina":
            scores = scores * self.weighed(layer, group, names)
        if self.margins is not None and n_keep < x.shape[1]:
            ranked = -np.sort(-scores, axis=1)
            last, first = ranked[:, n_keep - 1], ranked[:, n_keep]
            self.margins.extend(((last - first) / np.maximum(last, 1e-30)).tolist())
        kept = np.where(keep_mask(scores, n_keep), sparse, np.float32(0))
        return np.concatenate([x[:first], kept])

    def project(
        self,
        layer: int,
        group: str,
        x: np.ndarray,
        scored: np.ndarray | None = None,
        suffix: str = "",
    ) -> list[np.ndarray]:
        """Outputs of every matrix of a group for the same input x, biases added. suffix: of the
        matrices' names, for those of experts."""
        names = tuple(name + suffix for name in GROUPS[group])
        shared = self.masked(layer, group, names, x, scored) if self.mask == "group" else None
        outputs = []
        for name in names:
            masked = shared
            if masked is None:
                masked = self.masked(layer, group, (name,), x, scored)
            out = masked @ self.ref.weights[f"blk.{layer}.{name}.weight"].T
            bias = self.ref.weights.get(f"blk.{layer}.{name}.bias")
            outputs.append(out if bias is None else out + bias)
        return outputs

    def rotate(self, x: np.ndarray, layer: int) -> np.ndarray:
        """Rotary position embedding of x (n_tokens, heads, head_dim)."""
        if self.ref.arch == "smollm3" and (layer + 1) % 4 == 0:
            return x
        cos, sin = self.angles_window if self.ref.has_window(layer) else self.angles
        n, out = self.ref.rope_dim, x.copy()
        if ROPE_INTERLEAVED[self.ref.arch]:
            first, second = slice(0, n, 2), slice(1, n, 2)
        else:
            first, second = slice(0, n // 2), slice(n // 2, n)
        a, b = x[..., first], x[..., second]
        out[..., first] = a * cos - b * sin
        out[..., second] = a * sin + b * cos
        return out

    def attention(self, layer: int, x: np.ndarray) -> np.ndarray:
        """Causal grouped-query attention, output projection included."""
        ref, t = self.ref, self.n_tokens
        q, k, v = self.project(layer, "qkv", x)
        whole = ref.arch in ("olmo2", "olmoe")
        heads = (-1,) if whole else (-1, ref.head_dim)  # what is normed together
        q = ref.normed(q.reshape(t, *heads), f"blk.{layer}.attn_q_norm")
        k = ref.normed(k.reshape(t, *heads), f"blk.{layer}.attn_k_norm")
        q = self.rotate(q.reshape(t, ref.n_head, ref.head_dim), layer)
        k = self.rotate(k.reshape(t, ref.n_head_kv, ref.head_dim), layer)
        v = v.reshape(t, ref.n_head_kv, ref.head_dim)
        if self.kv_f16:
            k, v = (a.astype(np.float16).astype(np.float32) for a in (k, v))
        out = np.empty_like(q)
        for head in range(ref.n_head):
            kv = head // (ref.n_head // ref.n_head_kv)
            scores = capped((q[:, head] @ k[:, kv].T) * ref.attn_scale, ref.attn_softcap)
            scores[self.unseen if ref.has_window(layer) else self.future] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, head] = weights @ v[:, kv]
        return self.project(layer, "o", out.reshape(t, -1))[0]

    def feed_forward(self, layer: int, x: np.ndarray) -> np.ndarray:
        """What the block adds, of all tokens."""
        ref = self.ref
        if not ref.n_expert:
            return self.gated(layer, x)
        chosen, weights = self.route(layer, x)
        out = np.zeros_like(x)
        for expert in range(ref.n_expert):
            tokens, place = np.nonzero(chosen == expert)
            if len(tokens):
                self.visitors = tokens
                own = self.gated(layer, x[tokens], f".{expert}")
                out[tokens] += own * weights[tokens, place][:, None]
        self.visitors = np.arange(self.n_tokens)
        if ref.shared:
            shared = self.gated(layer, x, "_shexp")
            gate = ref.weights.get(f"blk.{layer}.ffn_gate_inp_shexp.weight")
            if gate is not None:
                shared = shared / (1 + np.exp(-(x @ gate.ravel())))[:, None]
            out += shared
        return out

    def route(self, layer: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Experts of every token and their weights, (n_tokens, n_expert_used) each."""
        ref = self.ref
        logits = (x @ ref.weights[f"blk.{layer}.ffn_gate_inp.weight"].T).astype(np.float64)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, : ref.n_expert_used]
        share = np.take_along_axis(share, chosen, axis=1)
        if ref.arch not in ("qwen2moe", "olmoe"):
            share /= share.sum(axis=1, keepdims=True)
        return chosen, share.astype(np.float32)

    def gated(self, layer: int, x: np.ndarray, suffix: str = "") -> np.ndarray:
        """down(silu(gate(x)) * up(x)), or with gelu"""
        gate, up = self.project(layer, "gate_up", x, suffix=suffix)
        with np.errstate(over="ignore"):
            bent = gate
            if self.ref.gelu:  # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
                bent = np.float32(2 * np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
            active = gate / (1.0 + np.exp(-bent))
        scored = active if self.method == "cats" else None
        return self.project(layer, "down", active * up, scored, suffix)[0]


def main() -> None:
    """Prints the ten most likely next tokens after a list of token ids."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("tokens", type=int, nargs="+")
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--method", choices=METHODS, default="wina")
    parser.add_argument("--mask", choices=MASKS, default="group")
    parser.add_argument("--n-dense", type=int, default=0)
    parser.add_argument("--budget", choices=("uniform", "profile"), default="profile")
    parser.add_argument("--exponent", type=float, default=0.0)
    args = parser.parse_args()
    last = Reference(args.model).logits(
        args.tokens,
        sparsity=args.sparsity,
        method=args.method,
        mask=args.mask,
        n_dense=args.n_dense,
        budget=args.budget,
        exponent=args.exponent,
        logits_from=len(args.tokens) - 1,
    )[0]
    for token in np.argsort(-last, kind="stable")[:10]:
        print(f"{token:8d} {last[token]:10.4f}")


if __name__ == "__main__":
    main()

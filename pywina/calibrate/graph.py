"""The decoder in torch, float32, differentiable: for gradients and for the output of one block.

Weights are those of the file, decoded by the library. torch is the optional extra
``pywina[calibrate]``; nothing else of pywina needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ..errors import ArgumentError, LibraryError, UnsupportedError
from ..info import Group
from ..model import Model

#: architecture -> pairs that the position rotates are (2i, 2i + 1), else (i, i + n/2)
_INTERLEAVED = {
    "llama": True, "smollm3": True, "granite": True, "qwen2": False, "qwen3": False,
    "gemma2": False, "gemma3": False, "olmo2": False,
}  # fmt: skip
#: every so many layers one sees all positions; 1: none does
_WINDOW_STEP = {"llama": 1, "gemma2": 2, "gemma3": 6}
#: layers of the model of each family whose attention is scaled by its width over its heads
_WIDE = {"gemma2": 46, "gemma3": 62}

#: gets layer, group and the group's input, and returns what is multiplied in its place
Hook = Callable[[int, Group, Any], Any]


def import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise LibraryError(
            "this needs torch: pip install 'pywina[calibrate]' (a CPU build will do)"
        ) from error
    return torch


class Traits:
    """Numbers in which architectures differ, from the metadata of a file."""

    def __init__(self, model: Model) -> None:
        info, meta = model.info, model.metadata
        self.arch = arch = info.architecture
        if arch not in _INTERLEAVED or "rope_factors_long.weight" in model.tensors:
            raise UnsupportedError(
                f"calibration in torch does not know architecture {arch!r} "
                f"(supported: {', '.join(_INTERLEAVED)}, without long and short rotation factors)"
            )

        def number(key: str, default: float | None = None) -> float:
            name = f"{arch}.{key}"
            return float(meta[name] if default is None else meta.get(name, str(default)))

        self.interleaved = _INTERLEAVED[arch]
        self.eps = number("attention.layer_norm_rms_epsilon")
        self.theta = number("rope.freq_base", 10000.0)
        self.n_rotated = int(number("rope.dimension_count", info.head_dim))
        linear = meta.get(f"{arch}.rope.scaling.type") == "linear"
        self.scale = 1 / number("rope.scaling.factor", 1.0) if linear else 1.0
        self.rope_gain = number("rope.scaling.attn_factor", 1.0)
        self.rope_step = 4 if arch == "smollm3" else 0  # every fourth layer has no positions
        self.window_step = _WINDOW_STEP.get(arch, 0)
        usual = 4096 if arch == "gemma2" else 0
        self.window = int(number("attention.sliding_window", usual)) if self.window_step else 0
        base = 10000.0 if arch == "gemma3" else self.theta
        self.theta_window = number("rope.freq_base_swa", base) if self.window_step else self.theta
        self.gelu = arch in ("gemma2", "gemma3")
        self.embd_scale = math.sqrt(info.n_embd) if self.gelu else 1.0
        width = info.head_dim
        if _WIDE.get(arch) == info.n_layer:
            width = info.n_embd // info.n_head
        self.attn_scale = number("attention.scale", width**-0.5)
        self.attn_cap = number("attn_logit_softcapping", 0.0)
        self.logit_cap = number("final_logit_softcapping", 0.0)
        self.residual_scale = self.logit_scale = 1.0
        if arch == "granite":
            self.embd_scale = number("embedding_scale", 1.0)
            self.residual_scale = number("residual_scale", 1.0)
            self.logit_scale = 1 / number("logit_scale", 1.0)

    def has_window(self, layer: int) -> bool:
        """Whether a layer sees only the last positions."""
        step = self.window_step
        return self.window > 0 and (step == 1 or (layer + 1) % step != 0)


class Graph:
    """All weights as tensors of shape (rows, cols) on one device; takes 4 bytes for every one.

    Activations have shape (..., n_tokens, width): windows of equal length may be stacked.
    device: what torch calls it, "cpu" or "cuda"."""

    def __init__(self, model: Model, device: str = "cpu") -> None:
        self.torch = import_torch()
        self.device = self.torch.device(device)
        if self.device.type == "cuda" and not self.torch.cuda.is_available():
            raise ArgumentError(f"device {device!r}: this torch sees no GPU")
        self.info, self.traits = model.info, Traits(model)
        self.weights = {
            name: self.torch.from_numpy(model.read_tensor(name)).to(self.device)
            for name in model.tensors
        }
        self._angles: dict[tuple[int, bool], Any] = {}
        self._masks: dict[int, Any] = {}

    def embed(self, tokens: Sequence[Any]) -> Any:
        """(..., n_tokens, n_embd) of token numbers of shape (..., n_tokens)."""
        index = self.torch.tensor(tokens, device=self.device)
        return self.weights["token_embd.weight"][index] * self.traits.embd_scale

    def logits(self, x: Any) -> Any:
        """(..., n_vocab) of what the last block leaves."""
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        logits = self._norm(x, "output_norm") @ head.T
        if self.traits.logit_scale != 1:
            logits = logits * self.traits.logit_scale
        return self._capped(logits, self.traits.logit_cap)

    def _capped(self, x: Any, cap: float) -> Any:
        """cap tanh(x / cap); a cap of 0 is none."""
        return cap * self.torch.tanh(x / cap) if cap else x

    def _norm(self, x: Any, name: str) -> Any:
        """RMSNorm over the last axis times the gain; x where the model has no such norm."""
        gain = self.weights.get(f"{name}.weight")
        if gain is None:
            return x
        scale = self.torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.traits.eps)
        return x * scale * gain

    def _linear(self, layer: int, name: str, x: Any) -> Any:
        bias = self.weights.get(f"blk.{layer}.{name}.bias")
        return self.torch.nn.functional.linear(x, self.weights[f"blk.{layer}.{name}.weight"], bias)

    def _turning(self, n_tokens: int, windowed: bool) -> Any:
        """cos and sin, (n_tokens, n_rotated / 2) each."""
        key = (n_tokens, windowed)
        if key not in self._angles:
            torch, traits, n = self.torch, self.traits, self.traits.n_rotated
            double = {"dtype": torch.float64, "device": self.device}
            theta = traits.theta_window if windowed else traits.theta
            rate = theta ** (-torch.arange(0, n, 2, **double) / n)
            factors = self.weights.get("rope_freqs.weight")
            if factors is not None:
                rate = rate / factors.double()
            # Layers with a base of their own are not stretched.
            scale = 1.0 if windowed and theta != traits.theta else traits.scale
            angle = torch.outer(torch.arange(n_tokens, **double) * scale, rate)
            gain = traits.rope_gain
            self._angles[key] = angle.cos().float() * gain, angle.sin().float() * gain
        return self._angles[key]

    def _rotate(self, x: Any, layer: int) -> Any:
        """Rotary positions of x (..., n_tokens, head_dim)."""
        torch, traits, n = self.torch, self.traits, self.traits.n_rotated
        if traits.rope_step and (layer + 1) % traits.rope_step == 0:
            return x
        cos, sin = self._turning(x.shape[-2], traits.has_window(layer))
        head, rest = x[..., :n], x[..., n:]
        if traits.interleaved:
            a, b = head[..., 0::2], head[..., 1::2]
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        else:
            a, b = head[..., : n // 2], head[..., n // 2 :]
            turned = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        return torch.cat((turned, rest), -1)

    def _change_basis(self, layer: int, name: str, x: Any) -> Any:
        """x in the basis of the site that follows: transformed files change it here and there."""
        matrix = self.weights.get(f"blk.{layer}.{name}.weight")
        return x if matrix is None else x @ matrix.T

    def _attend(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """(..., n_head, n_tokens, head_dim), each query over what it may see."""
        torch, traits, n = self.torch, self.traits, q.shape[-2]
        windowed = traits.has_window(layer) and n > traits.window
        if not windowed and not traits.attn_cap:
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=traits.attn_scale
            )
        width = traits.window if windowed else n
        if width not in self._masks or len(self._masks[width]) != n:
            seen = torch.ones(n, n, dtype=torch.bool, device=self.device).tril()
            self._masks[width] = seen & torch.ones_like(seen).triu(1 - width)
        scores = self._capped(q @ k.transpose(-1, -2) * traits.attn_scale, traits.attn_cap)
        scores = scores.masked_fill(~self._masks[width], float("-inf"))
        return scores.softmax(-1) @ v

    def _normed_heads(self, layer: int, name: str, x: Any) -> Any:
        """Heads of q or k behind their norm: of each head, or of all of them at once."""
        gain = self.weights.get(f"blk.{layer}.{name}.weight")
        whole = gain is not None and len(gain) != self.info.head_dim
        if whole:
            x = self._norm(x, f"blk.{layer}.{name}")
        x = x.unflatten(-1, (-1, self.info.head_dim))
        if not whole:
            x = self._norm(x, f"blk.{layer}.{name}")
        return self._rotate(x.transpose(-3, -2), layer)

    def block(self, layer: int, x: Any, hook: Hook) -> Any:
        """Output of one block for the residual stream x (..., n_tokens, n_embd)."""
        torch, info, traits = self.torch, self.info, self.traits
        x = self._change_basis(layer, "attn_rot", x)
        h = hook(layer, "qkv", self._norm(x, f"blk.{layer}.attn_norm"))
        q, k, v = (self._linear(layer, name, h) for name in ("attn_q", "attn_k", "attn_v"))
        q, k = (
            self._normed_heads(layer, name, y)
            for name, y in (("attn_q_norm", q), ("attn_k_norm", k))
        )
        repeat = info.n_head // info.n_head_kv
        k = k.repeat_interleave(repeat, -3)
        v = v.unflatten(-1, (-1, info.head_dim)).transpose(-3, -2).repeat_interleave(repeat, -3)
        out = self._attend(layer, q, k, v)
        out = hook(layer, "o", out.transpose(-3, -2).flatten(-2))
        out = self._linear(layer, "attn_output", out)
        x = x + self._norm(out, f"blk.{layer}.post_attention_norm") * traits.residual_scale
        x = self._change_basis(layer, "ffn_rot", x)
        h = hook(layer, "gate_up", self._norm(x, f"blk.{layer}.ffn_norm"))
        gate, up = self._linear(layer, "ffn_gate", h), self._linear(layer, "ffn_up", h)
        functional = torch.nn.functional
        active = functional.gelu(gate, approximate="tanh") if traits.gelu else functional.silu(gate)
        out = self._linear(layer, "ffn_down", hook(layer, "down", active * up))
        return x + self._norm(out, f"blk.{layer}.post_ffw_norm") * traits.residual_scale

    def loss(self, tokens: list[int], hook: Hook, first: int = 0) -> Any:
        """Summed -log p of tokens[first + 1:], in nats."""
        x = self.embed(tokens[:-1]).requires_grad_()
        for layer in range(self.info.n_layer):
            x = self.block(layer, x, hook)
        targets = self.torch.tensor(tokens[first + 1 :], device=self.device)
        logits = self.logits(x[first:])
        return self.torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def keep_largest(torch: Any, x: Any, score: Any, n_keep: int) -> Any:
    """x (..., width) with all but the n_keep largest scores of each row at zero."""
    index = score.topk(n_keep, dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index))

"""The decoder in torch, float32, differentiable: for gradients and for the output of one block.

Weights are those of the file, decoded by the library. torch is the optional extra
``pywina[calibrate]``; nothing else of pywina needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ..errors import ArgumentError, LibraryError, UnsupportedError
from ..info import Group
from ..model import Model

#: architecture -> pairs that the position rotates are (2i, 2i + 1), else (i, i + n/2)
_INTERLEAVED = {"llama": True, "qwen2": False}

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


class Graph:
    """All weights as tensors of shape (rows, cols) on one device; takes 4 bytes for every one.

    Activations have shape (..., n_tokens, width): windows of equal length may be stacked.
    device: what torch calls it, "cpu" or "cuda"."""

    def __init__(self, model: Model, device: str = "cpu") -> None:
        self.torch = import_torch()
        self.device = self.torch.device(device)
        if self.device.type == "cuda" and not self.torch.cuda.is_available():
            raise ArgumentError(f"device {device!r}: this torch sees no GPU")
        info = model.info
        if info.architecture not in _INTERLEAVED:
            raise UnsupportedError(f"calibration does not know architecture {info.architecture!r}")
        self.info = info
        self.interleaved = _INTERLEAVED[info.architecture]
        self.weights = {
            name: self.torch.from_numpy(model.read_tensor(name)).to(self.device)
            for name in model.tensors
        }
        meta, arch = model.metadata, info.architecture
        self.eps = float(meta[f"{arch}.attention.layer_norm_rms_epsilon"])
        self.theta = float(meta.get(f"{arch}.rope.freq_base", "10000"))
        self.scale = 1.0 / float(meta.get(f"{arch}.rope.scaling.factor", "1"))
        self.n_rotated = int(meta.get(f"{arch}.rope.dimension_count", str(info.head_dim)))

    def embed(self, tokens: Sequence[Any]) -> Any:
        """(..., n_tokens, n_embd) of token numbers of shape (..., n_tokens)."""
        index = self.torch.tensor(tokens, device=self.device)
        return self.weights["token_embd.weight"][index]

    def logits(self, x: Any) -> Any:
        """(..., n_vocab) of what the last block leaves."""
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return self._norm(x, "output_norm") @ head.T

    def _norm(self, x: Any, name: str) -> Any:
        scale = self.torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * scale * self.weights[f"{name}.weight"]

    def _linear(self, layer: int, name: str, x: Any) -> Any:
        bias = self.weights.get(f"blk.{layer}.{name}.bias")
        return self.torch.nn.functional.linear(x, self.weights[f"blk.{layer}.{name}.weight"], bias)

    def _rotate(self, x: Any) -> Any:
        """Rotary positions of x (..., n_tokens, head_dim)."""
        torch, n = self.torch, self.n_rotated
        double = {"dtype": torch.float64, "device": self.device}
        rate = self.theta ** (-torch.arange(0, n, 2, **double) / n)
        factors = self.weights.get("rope_freqs.weight")
        if factors is not None:
            rate = rate / factors.double()
        angle = torch.outer(torch.arange(x.shape[-2], **double) * self.scale, rate)
        cos, sin = angle.cos().float(), angle.sin().float()
        head, rest = x[..., :n], x[..., n:]
        if self.interleaved:
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

    def block(self, layer: int, x: Any, hook: Hook) -> Any:
        """Output of one block for the residual stream x (..., n_tokens, n_embd)."""
        torch, info = self.torch, self.info
        x = self._change_basis(layer, "attn_rot", x)
        h = hook(layer, "qkv", self._norm(x, f"blk.{layer}.attn_norm"))
        q, k, v = (self._linear(layer, name, h) for name in ("attn_q", "attn_k", "attn_v"))

        def heads(y: Any, n: int) -> Any:
            return y.unflatten(-1, (n, info.head_dim)).transpose(-3, -2)

        q, k = self._rotate(heads(q, info.n_head)), self._rotate(heads(k, info.n_head_kv))
        repeat = info.n_head // info.n_head_kv
        k = k.repeat_interleave(repeat, -3)
        v = heads(v, info.n_head_kv).repeat_interleave(repeat, -3)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = hook(layer, "o", out.transpose(-3, -2).flatten(-2))
        x = x + self._linear(layer, "attn_output", out)
        x = self._change_basis(layer, "ffn_rot", x)
        h = hook(layer, "gate_up", self._norm(x, f"blk.{layer}.ffn_norm"))
        gate, up = self._linear(layer, "ffn_gate", h), self._linear(layer, "ffn_up", h)
        product = hook(layer, "down", torch.nn.functional.silu(gate) * up)
        return x + self._linear(layer, "ffn_down", product)

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

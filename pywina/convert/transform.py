"""Rotations of the residual stream that leave a model's outputs as they are.

RMSNorm does not see an orthogonal change of basis once its gain is folded into the matrices that
follow. So with Q (n_embd, n_embd) orthogonal, embeddings E become E Q, matrices that read the
stream W diag(gain) Q, and matrices that write to it Q' W; nothing is left to do at run time. Q is
the eigenbasis of the normed stream's second moment, in which its energy lies in few coordinates:
that is what choosing inputs gains from. Tied embeddings become two matrices, because only one of
them takes up the last gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from ..model import Group, Model

Array = NDArray[np.float32]

_READERS = {
    "attn_q": "attn_norm",
    "attn_k": "attn_norm",
    "attn_v": "attn_norm",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
}
_WRITERS = ("attn_output", "ffn_down")
_ARCHITECTURES = ("llama", "qwen2")


def second_moment(
    model: Model, windows: Sequence[list[int]], progress: Callable[[int], object] = lambda n: None
) -> NDArray[np.float64]:
    """(n_embd, n_embd) mean over tokens and norms of the normed stream, gains taken out."""
    n = model.info.n_embd
    total = np.zeros((n, n))
    gains = {
        (layer, group): model.read_tensor(f"blk.{layer}.{name}.weight").ravel()
        for layer in range(model.info.n_layer)
        for group, name in (("qkv", "attn_norm"), ("gate_up", "ffn_norm"))
    }

    def add(layer: int, group: Group, x: Array) -> None:
        gain = gains.get((layer, group))
        if gain is not None:
            plain = np.divide(x, gain, out=np.zeros_like(x), where=np.abs(gain) > 1e-8)
            np.add(total, plain.T @ plain, out=total)

    for window in windows:
        with model.tap(add):
            model.logits(window, start=len(window) - 1, method="dense")
        progress(1)
    return total / max(1, sum(map(len, windows)) * len(gains))


def eigenbasis(moment: NDArray[np.float64]) -> Array:
    """Orthogonal Q (n, n), columns by falling energy."""
    return np.ascontiguousarray(np.linalg.eigh(moment)[1][:, ::-1]).astype(np.float32)


class Rotation:
    """One basis for the whole stream: gives every tensor of the rotated model."""

    def __init__(self, model: Model, basis: Array) -> None:
        if model.info.architecture not in _ARCHITECTURES:
            raise UnsupportedError(
                f"architecture {model.info.architecture!r} cannot be transformed "
                f"(supported: {', '.join(_ARCHITECTURES)})"
            )
        self.model, self.basis = model, basis

    def names(self) -> list[str]:
        """Names of all tensors of the result; the tied head becomes a tensor of its own."""
        names = list(self.model.tensors)
        return names + (["output.weight"] if "output.weight" not in names else [])

    def tensor(self, name: str) -> Array:
        """A tensor of the result."""
        read, basis = self.model.read_tensor, self.basis
        role = name.split(".")[-2]
        if role.endswith("_norm") or role == "output_norm":
            return np.ones_like(read(name))
        if role == "token_embd":
            return read(name) @ basis
        if role == "output":
            tied = name not in self.model.tensors
            head = read("token_embd.weight" if tied else name)
            return (head * read("output_norm.weight")) @ basis
        if name.endswith(".bias") and role in _WRITERS:
            return basis.T @ read(name)
        if name.endswith(".weight") and role in _READERS:
            layer = name.split(".")[1]
            return (read(name) * read(f"blk.{layer}.{_READERS[role]}.weight")) @ basis
        if name.endswith(".weight") and role in _WRITERS:
            return basis.T @ read(name)
        return read(name)

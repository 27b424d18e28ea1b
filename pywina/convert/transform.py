"""Rotations of the residual stream that leave a model's outputs as they are.

RMSNorm does not see an orthogonal change of basis once its gain is folded into the matrices that
follow. So with Q (n_embd, n_embd) orthogonal, embeddings E become E Q, matrices that read the
stream W diag(gain) Q, and matrices that write to it Q' W. One Q for the whole model leaves nothing
to do at run time. Several cost a matrix Q_new' Q_old wherever the basis changes, which the library
multiplies by and counts. Tied embeddings become two matrices, because only one of them takes up
the last gain. Gains behind what a block writes (gemma, olmo2) belong to single coordinates and
cannot be folded anywhere: such models are refused.

A *site* is a place where the stream is read and written: two per block, attention (2 i) and
feed-forward (2 i + 1). PCA bases are eigenbases of the normed stream's second moment: in them its
energy lies in few coordinates, which is what choosing inputs gains from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, UnsupportedError
from ..info import Group
from ..model import Model

Array = NDArray[np.float32]
Moment = NDArray[np.float64]

_READERS = {
    "attn_q": "attn_norm",
    "attn_k": "attn_norm",
    "attn_v": "attn_norm",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
}
_WRITERS = ("attn_output", "ffn_down")
_GAINS = ("attn_norm", "ffn_norm", "output_norm")  # what is folded into matrices
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3", "granite")
_POST_NORMS = ("post_attention_norm", "post_ffw_norm")


def check(model: Model) -> None:
    """Refuses what no rotation leaves as it is."""
    architecture = model.info.architecture
    roles = {name.split(".")[-2] for name in model.tensors if name.count(".") > 1}
    post = [name for name in _POST_NORMS if name in roles]
    if post:
        raise UnsupportedError(
            f"architecture {architecture!r} cannot be transformed: {' and '.join(post)} weigh "
            "single coordinates of what blocks add to the residual stream, which no other basis "
            "can express"
        )
    if architecture not in _ARCHITECTURES:
        raise UnsupportedError(
            f"architecture {architecture!r} cannot be transformed "
            f"(supported: {', '.join(_ARCHITECTURES)})"
        )
    if any(role.endswith("_rot") for role in roles):
        raise ArgumentError(f"{model.path} is transformed already")


def second_moments(
    model: Model, windows: Sequence[list[int]], progress: Callable[[int], object] = lambda n: None
) -> Moment:
    """(n_sites, n_embd, n_embd) mean over tokens of the normed stream's outer product, gains taken
    out."""
    n, n_layer = model.info.n_embd, model.info.n_layer
    total = np.zeros((2 * n_layer, n, n))
    names = {"qkv": "attn_norm", "gate_up": "ffn_norm"}
    gains = {
        (layer, group): model.read_tensor(f"blk.{layer}.{name}.weight").ravel()
        for layer in range(n_layer)
        for group, name in names.items()
    }

    def add(layer: int, group: Group, x: Array) -> None:
        gain = gains.get((layer, group))
        if gain is not None:
            plain = np.divide(x, gain, out=np.zeros_like(x), where=np.abs(gain) > 1e-8)
            total[2 * layer + (group == "gate_up")] += plain.T @ plain

    for window in windows:
        with model.tap(add):
            model.logits(window, start=len(window) - 1, method="dense")
        progress(1)
    return total / sum(map(len, windows))


def eigenbasis(moment: Moment) -> Array:
    """Orthogonal Q (n, n), columns by falling energy."""
    return np.ascontiguousarray(np.linalg.eigh(moment)[1][:, ::-1]).astype(np.float32)


def global_bases(moments: Moment) -> list[Array]:
    """One basis for all sites."""
    return [eigenbasis(moments.sum(axis=0))] * len(moments)


def block_bases(moments: Moment) -> list[Array]:
    """A basis for every site."""
    return [eigenbasis(moment) for moment in moments]


def _spread(moments: Moment, basis: NDArray[np.floating[Any]]) -> float:
    """Energy of all sites outside the half of the basis that serves each of them best."""
    energy = np.stack([((moment @ basis) * basis).sum(axis=0) for moment in moments])
    energy.sort(axis=1)
    return float(energy[:, : energy.shape[1] // 2].sum())


def _spreads(moments: Moment, device: str) -> NDArray[np.float64]:
    """(n_layer + 1, n_layer + 1) the spread of a run of blocks [begin, end) in its own basis; inf
    where there is none. On a GPU by torch: seconds in place of many minutes."""
    n_layer = len(moments) // 2
    cost = np.full((n_layer + 1, n_layer + 1), np.inf)
    torch: Any = None
    if device != "cpu":
        from ..calibrate.graph import import_torch

        torch = import_torch()
        on_device = torch.from_numpy(moments).to(device)
    for begin in range(n_layer):
        for end in range(begin + 1, n_layer + 1):
            if torch is None:
                part = moments[2 * begin : 2 * end]
                cost[begin, end] = _spread(part, np.linalg.eigh(part.sum(axis=0))[1])
            else:
                part = on_device[2 * begin : 2 * end]
                basis = torch.linalg.eigh(part.sum(0)).eigenvectors
                energy = ((part @ basis) * basis).sum(1).sort(1).values
                cost[begin, end] = float(energy[:, : energy.shape[1] // 2].sum())
    return cost


def segment_bases(moments: Moment, n_segments: int, device: str = "cpu") -> list[Array]:
    """A basis for each of several runs of blocks, cut where most energy fits into half of the
    coordinates (all cuts are tried: shortest path over pairs of blocks)."""
    n_layer = len(moments) // 2
    if not 1 <= n_segments <= n_layer:
        raise ArgumentError(f"{n_segments} segments: give 1 to {n_layer}, the number of blocks")
    cost = _spreads(moments, device)
    least = np.full((n_segments + 1, n_layer + 1), np.inf)
    before = np.zeros((n_segments + 1, n_layer + 1), dtype=int)
    least[0, 0] = 0
    for k in range(1, n_segments + 1):
        for end in range(k, n_layer + 1):
            options = least[k - 1, :end] + cost[:end, end]
            before[k, end] = int(options.argmin())
            least[k, end] = options.min()
    cuts, end = [], n_layer
    for k in range(n_segments, 0, -1):
        cuts.append((int(before[k, end]), end))
        end = int(before[k, end])
    bases: list[Array] = []
    for begin, stop in reversed(cuts):
        basis = eigenbasis(moments[2 * begin : 2 * stop].sum(axis=0))
        bases += [basis] * (2 * (stop - begin))
    return bases


def paper_bases(model: Model) -> list[Array]:
    """The published choice: right singular vectors of W_k and W_gate, gains folded in."""
    bases = []
    for layer in range(model.info.n_layer):
        for name in ("attn_k", "ffn_gate"):
            gain = model.read_tensor(f"blk.{layer}.{_READERS[name]}.weight").ravel()
            weight = (model.read_tensor(f"blk.{layer}.{name}.weight") * gain).astype(np.float64)
            bases.append(eigenbasis(weight.T @ weight))
    return bases


class Rotation:
    """Gives every tensor of the rotated model. bases: one per site; where two that follow each
    other are not the same object, a matrix goes between them."""

    def __init__(self, model: Model, bases: Sequence[Array]) -> None:
        check(model)
        self.model, self.bases = model, bases

    def changes(self) -> dict[str, int]:
        """Names of the matrices between bases, and the site each stands before."""
        names = ("attn_rot", "ffn_rot")
        return {
            f"blk.{site // 2}.{names[site % 2]}.weight": site
            for site in range(1, len(self.bases))
            if self.bases[site] is not self.bases[site - 1]
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors of the result; the tied head becomes one of its own."""
        tensors = self.model.tensors
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        shapes.setdefault("output.weight", tensors["token_embd.weight"].shape)
        n = self.model.info.n_embd
        return shapes | dict.fromkeys(self.changes(), (n, n))

    def tensor(self, name: str) -> Array:
        """A tensor of the result."""
        read, role = self.model.read_tensor, name.split(".")[-2]
        if role.endswith("_rot"):
            site = self.changes()[name]
            return self.bases[site].T @ self.bases[site - 1]
        if role in _GAINS:
            return np.ones_like(read(name))
        if role == "token_embd":
            return read(name) @ self.bases[0]
        if role == "output":
            tied = name not in self.model.tensors
            head = read("token_embd.weight" if tied else name)
            return (head * read("output_norm.weight")) @ self.bases[-1]
        if role not in _READERS and role not in _WRITERS:
            return read(name)
        layer = int(name.split(".")[1])
        basis = self.bases[2 * layer + role.startswith("ffn")]
        if role in _WRITERS:
            return basis.T @ read(name)
        if name.endswith(".bias"):
            return read(name)
        return (read(name) * read(f"blk.{layer}.{_READERS[role]}.weight")) @ basis


def make_bases(
    model: Model,
    transform: str,
    windows: Sequence[list[int]],
    progress: Callable[[int], object] = lambda n: None,
    device: str = "cpu",
) -> list[Array]:
    """Bases of a transform by name: global, segments:K, blocks or paper (which needs no text).
    device: where torch looks for the cuts of segments; "cpu": without torch."""
    check(model)
    name, _, number = transform.partition(":")
    if name == "paper" and not number:
        return paper_bases(model)
    if name == "segments" and number.isdecimal():
        return segment_bases(second_moments(model, windows, progress), int(number), device)
    if name in ("global", "blocks") and not number:
        moments = second_moments(model, windows, progress)
        return global_bases(moments) if name == "global" else block_bases(moments)
    raise ArgumentError(
        f"transform {transform!r} is unknown; choose global, segments:K, blocks or paper"
    )


def at_equal_bytes(model: Model, sparsity: float) -> float:
    """The sparsity at which basis changes and kept weights of a transformed model take
    (1 - sparsity) of the bytes of the sparsified weights; the same where there are none."""
    changes = sum(t.n_bytes for name, t in model.tensors.items() if name.endswith("_rot.weight"))
    roles = (*_READERS, *_WRITERS)
    sparsified = sum(
        t.n_bytes for name, t in model.tensors.items()
        if name.endswith(".weight") and name.split(".")[-2] in roles
    )  # fmt: skip
    raised = sparsity + changes / sparsified if sparsity else 0.0
    if raised >= 1:
        raise ArgumentError(
            f"sparsity {sparsity:g} leaves no bytes for weights: the changes of basis of "
            f"{model.path} take {changes / sparsified:.0%} of them"
        )
    return raised

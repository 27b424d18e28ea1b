"""Which type each tensor of a quantised file gets: llama.cpp's mixtures.

A mixture has a type for most matrices and better ones for those that suffer most: the output
matrix (the embeddings, if they are tied), attention's values and the feed-forward's way down, these
in the first and last eighth of the layers and in every third one between. Rows that are no whole
number of blocks get a type of smaller blocks. tools/make_quantize_golden.py records what llama.cpp
itself does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import gguf
from gguf import GGMLQuantizationType as Type

from .gguffile import GgufFile, Tensor

#: what --quantize accepts, and llama.cpp's number for files of it
MIXTURES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q5_1": 9, "Q5_0": 8, "Q4_1": 3, "Q4_0": 2,
    "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q4_K_M": 15, "Q4_K_S": 14,
}  # fmt: skip

_FLOATS = ("F32", "F16", "BF16")
#: in place of types whose blocks are longer than a row's remainder
_SHORTER = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
_LAYER = re.compile(r"blk\.(\d+)\.")


def fitting(kind: Type, n_cols: int) -> Type:
    """kind, or what takes its place for rows of n_cols."""
    while n_cols % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = _SHORTER.get(kind, Type.F16)
    return kind


def _more_bits(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass
class Mixture:
    """The types of one file's tensors. importance: whether there is an importance matrix."""

    kind: str  #: a key of MIXTURES
    content: GgufFile
    importance: bool = False
    _values: list[str] = field(init=False)
    _n_experts: int = field(init=False)
    _head: str = field(init=False)
    _n_layers: int = field(init=False)

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.content.tensors]
        # Counted among the layers that have them, in the order of layers.
        self._values = sorted(
            (n for n in names if n.endswith(("attn_v.weight", "attn_qkv.weight"))), key=self._layer
        )
        self._n_layers = 1 + max((self._layer(n) for n in names), default=-1)
        self._head = "output.weight" if "output.weight" in names else "token_embd.weight"
        experts = [v for k, v in self.content.values.items() if k.endswith(".expert_count")]
        self._n_experts = int.from_bytes(experts[0][4:], "little") if experts else 0

    @staticmethod
    def _layer(name: str) -> int:
        found = _LAYER.match(name)
        return int(found[1]) if found else -1

    @property
    def base(self) -> Type:
        """The type of most matrices."""
        return Type[self.kind.removesuffix("_M").removesuffix("_S")]

    def type_of(self, tensor: Tensor) -> Type:
        """The type that a tensor is written in."""
        name = tensor.name
        if len(tensor.shape) < 2 or not name.endswith(".weight"):
            return Type.F32
        if name.endswith(("ffn_gate_inp.weight", "_norm.weight")):
            return Type(tensor.kind)
        if self.kind in _FLOATS:
            return self.base
        return fitting(self._wanted(name, tensor.shape[-1]), tensor.shape[-1])

    def _wanted(self, name: str, n_cols: int) -> Type:
        if name == self._head:
            whole = n_cols % gguf.GGML_QUANT_SIZES[self.base][0] == 0
            return Type.Q6_K if whole and self.base != Type.Q8_0 else Type.Q8_0
        role = name.split(".")[-2]
        rule = {
            "attn_v": self._attn_v,
            "attn_k": self._attn_k,
            "attn_qkv": self._attn_v,
            "attn_output": self._attn_output,
        }.get(role)
        if rule is None and role.startswith("ffn_down"):
            rule = self._ffn_down
        return rule(name) if rule else self.base

    def _attn_v(self, name: str) -> Type:
        if self._n_experts == 8:
            return Type.Q8_0
        i, n = self._values.index(name), len(self._values)
        if self.kind in ("Q4_K_M", "Q5_K_M") and _more_bits(i, n):
            return Type.Q6_K
        return Type.Q5_K if self.kind == "Q4_K_S" and i < 4 else self.base

    def _attn_k(self, _name: str) -> Type:
        return Type.Q8_0 if self._n_experts == 8 else self.base

    def _attn_output(self, _name: str) -> Type:
        better = self._n_experts == 8 and self.base == Type.Q4_K
        return Type.Q5_K if better else self.base

    def _ffn_down(self, name: str) -> Type:
        i, n = self._layer(name), self._n_layers
        if self.kind in ("Q4_K_M", "Q5_K_M") and _more_bits(i, n):
            return Type.Q6_K
        if i < n // 8:
            if self.kind == "Q4_K_S":
                return Type.Q5_K
            if self.importance and self.kind in ("Q4_0", "Q5_0"):
                return Type.Q4_1 if self.kind == "Q4_0" else Type.Q5_1
        return self.base

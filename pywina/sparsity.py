"""Activation sparsity: how much is skipped, by which rule, and for which tokens."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from ._native import ffi, lib
from .errors import ArgumentError

Method = Literal["wina", "teal", "dense"]
Mask = Literal["group", "projection"]

_METHODS = {
    "dense": lib.WINA_METHOD_DENSE,
    "wina": lib.WINA_METHOD_WINA,
    "teal": lib.WINA_METHOD_TEAL,
}
_MASKS = {"group": lib.WINA_MASK_GROUP, "projection": lib.WINA_MASK_PROJECTION}


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ArgumentError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


@dataclass(frozen=True)
class Sparsity:
    """What a model skips.

    sparsity: share of the inputs of every projection that is skipped, 0 <= sparsity < 1.
    method: ``"wina"`` keeps the largest ``|x_i| * norm_i``, ``"teal"`` the largest ``|x_i|``,
        ``"dense"`` everything.
    mask: ``"group"`` chooses once for the projections that share an input (qkv, o, gate_up,
        down), ``"projection"`` for each matrix on its own.
    prefill: True makes prompts sparse too, which is meant for evaluation; by default prompts are
        dense and only generated tokens are sparse.
    """

    sparsity: float = 0.0
    method: Method = "wina"
    mask: Mask = "group"
    prefill: bool = False

    def __post_init__(self) -> None:
        value = self.sparsity
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ArgumentError(f"sparsity is {value!r}; give a number, 0 <= sparsity < 1")
        if not 0 <= value < 1:
            raise ArgumentError(
                f"sparsity is {value!r}; it is the share that is skipped, 0 <= sparsity < 1"
            )
        _choice("method", self.method, get_args(Method))
        _choice("mask", self.mask, get_args(Mask))

    def replace(
        self,
        *,
        sparsity: float | None = None,
        method: Method | None = None,
        mask: Mask | None = None,
        prefill: bool | None = None,
    ) -> Sparsity:
        """A copy in which every argument that is not None takes the place of the old value."""
        return Sparsity(
            self.sparsity if sparsity is None else sparsity,
            self.method if method is None else method,
            self.mask if mask is None else mask,
            self.prefill if prefill is None else bool(prefill),
        )

    def _store(self, struct: Any) -> None:
        """Writes the values into a wina_sparsity."""
        lib.wina_sparsity_init(ffi.addressof(struct))
        struct.sparsity = float(self.sparsity)
        struct.method = _METHODS[self.method]
        struct.mask = _MASKS[self.mask]
        struct.prefill = int(self.prefill)

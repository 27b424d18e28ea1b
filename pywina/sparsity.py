"""Activation sparsity: how much is skipped, by which rule, and for which tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

from ._native import ffi, lib
from .errors import ArgumentError

Method = Literal["wina", "teal", "cats", "dense"]
Mask = Literal["group", "projection"]
Budget = Literal["auto", "uniform", "profile", "calibrated"]
Norms = Literal["auto", "l2", "calibrated"]
Select = Literal["topk", "threshold"]

_METHODS = {
    "dense": lib.WINA_METHOD_DENSE,
    "wina": lib.WINA_METHOD_WINA,
    "teal": lib.WINA_METHOD_TEAL,
    "cats": lib.WINA_METHOD_CATS,
}
_MASKS = {"group": lib.WINA_MASK_GROUP, "projection": lib.WINA_MASK_PROJECTION}
_BUDGETS = {
    "auto": lib.WINA_BUDGET_AUTO,
    "uniform": lib.WINA_BUDGET_UNIFORM,
    "profile": lib.WINA_BUDGET_PROFILE,
    "calibrated": lib.WINA_BUDGET_CALIBRATED,
}
_NORMS = {
    "auto": lib.WINA_NORMS_AUTO,
    "l2": lib.WINA_NORMS_L2,
    "calibrated": lib.WINA_NORMS_CALIBRATED,
}
_SELECTIONS = {"topk": lib.WINA_SELECT_TOPK, "threshold": lib.WINA_SELECT_THRESHOLD}


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ArgumentError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


def _number(name: str, value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"{name} is {value!r}; give a number, {what}")


@dataclass(frozen=True)
class Sparsity:
    """What a model skips. Wherever a call takes ``sparsity=``, a number or one of these will do.

    sparsity: share of the bytes of the sparsified weights that is skipped, 0 <= sparsity < 1.
    method: ``"wina"`` keeps the largest ``|x_i| * norm_i**e``, ``"teal"`` the largest ``|x_i|``,
        ``"cats"`` the largest activated gates (down and up only), ``"dense"`` everything.
    mask: ``"group"`` chooses once for the projections that share an input (qkv, o, gate_up,
        down), ``"projection"`` for each matrix on its own.
    prefill: True makes prompts sparse too, which is meant for evaluation; by default prompts are
        dense and only generated tokens are sparse.
    budget: how the kept share is divided: ``"uniform"``, the built-in ``"profile"`` per kind of
        group, or ``"calibrated"``; ``"auto"`` is the best there is for wina and uniform for the
        other methods. The bytes are the same.
    norms: ``"l2"`` norms of weight columns or ``"calibrated"`` ones; ``"auto"``: the latter where
        the model has them.
    exponent: e, of the norms; None: the best that is known (calibrated, else 0). The published
        rule has 1.
    select: ``"topk"`` keeps exactly the budget, ``"threshold"`` what scores above a calibrated
        number.
    """

    sparsity: float = 0.0
    method: Method = "wina"
    mask: Mask = "group"
    prefill: bool = False
    budget: Budget = "auto"
    norms: Norms = "auto"
    exponent: float | None = None
    select: Select = "topk"

    def __post_init__(self) -> None:
        value = self.sparsity
        _number("sparsity", value, "0 <= sparsity < 1")
        if not 0 <= value < 1:
            raise ArgumentError(
                f"sparsity is {value!r}; it is the share that is skipped, 0 <= sparsity < 1"
            )
        _choice("method", self.method, get_args(Method))
        _choice("mask", self.mask, get_args(Mask))
        _choice("budget", self.budget, get_args(Budget))
        _choice("norms", self.norms, get_args(Norms))
        _choice("select", self.select, get_args(Select))
        if self.exponent is not None:
            _number("exponent", self.exponent, "0 to 4")
            if not 0 <= self.exponent <= 4:
                raise ArgumentError(f"exponent is {self.exponent!r}; it must be 0 to 4")

    def replace(
        self,
        *,
        sparsity: float | Sparsity | None = None,
        method: Method | None = None,
        mask: Mask | None = None,
        prefill: bool | None = None,
    ) -> Sparsity:
        """A copy in which every argument that is not None takes the place of the old value. A
        Sparsity takes the place of them all."""
        base = sparsity if isinstance(sparsity, Sparsity) else self
        changes: dict[str, Any] = {}
        if sparsity is not None and not isinstance(sparsity, Sparsity):
            changes["sparsity"] = sparsity
        if method is not None:
            changes["method"] = method
        if mask is not None:
            changes["mask"] = mask
        if prefill is not None:
            changes["prefill"] = bool(prefill)
        return replace(base, **changes)

    def _store(self, struct: Any) -> None:
        """Writes the values into a wina_sparsity."""
        lib.wina_sparsity_init(ffi.addressof(struct))
        struct.sparsity = float(self.sparsity)
        struct.method = _METHODS[self.method]
        struct.mask = _MASKS[self.mask]
        struct.prefill = int(self.prefill)
        struct.budget = _BUDGETS[self.budget]
        struct.norms = _NORMS[self.norms]
        struct.exponent = -1.0 if self.exponent is None else float(self.exponent)
        struct.selection = _SELECTIONS[self.select]

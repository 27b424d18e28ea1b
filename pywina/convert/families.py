"""What tells the families of Hugging Face checkpoints apart: names, norms, rotation, scales.

A family is one :class:`Family`: a row of traits and a function for the metadata that only it has.
A setting that the runtime does not know is refused by name: a model that runs and is slightly
wrong is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from .experts import Experts

Config = dict[str, Any]
Array = NDArray[np.float32]

_COMMON = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_BIASES = {f"self_attn.{x}_proj.bias": f"attn_{x}.bias" for x in "qkv"}
_QK_NORMS = {f"self_attn.{x}_norm.weight": f"attn_{x}_norm.weight" for x in "qk"}
_POST_NORMS = {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
_FUSED = {
    "self_attn.qkv_proj.weight": "attn_qkv.weight",
    "mlp.gate_up_proj.weight": "ffn_up.weight",
}


_ATTENTION = {key: name for key, name in _COMMON.items() if not key.startswith("mlp.")}
_ROUTER = {"mlp.gate.weight": "ffn_gate_inp.weight"}
_SHARED = {
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
_GRANITE = {
    "block_sparse_moe.router.layer.weight": "ffn_gate_inp.weight",
    "block_sparse_moe.output_linear.weight": "ffn_down_exps.weight",
    "shared_mlp.output_linear.weight": "ffn_down_shexp.weight",
}
_EACH = {
    f"mlp.experts.{{}}.{x}_proj.weight": f"ffn_{x}_exps.weight" for x in ("gate", "up", "down")
}
_CHOSEN = {"block_sparse_moe.gate.weight": "ffn_gate_inp.weight"}
_MIXTRAL = {
    f"block_sparse_moe.experts.{{}}.{x}.weight": f"ffn_{role}_exps.weight"
    for x, role in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
}
_HALVES = {
    "block_sparse_moe.input_linear.weight": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "shared_mlp.input_linear.weight": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
}


def _nothing(_: Config) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """arch: general.architecture. paired: rows of q and k are stored in pairs. norm_offset: added
    to every gain. facts: the metadata that only this family has, by key without the prefix."""

    arch: str
    names: dict[str, str]
    paired: bool = False
    norm_offset: float = 0.0
    head_dim: int = 0  #: 0: hidden_size / heads
    activation: str = "silu"
    facts: Callable[[Config], dict[str, Any]] = _nothing
    experts: Experts | None = None


def _window(config: Config) -> dict[str, Any]:
    window = config.get("sliding_window")
    return {"attention.sliding_window": int(window)} if window else {}


def _softcaps(config: Config) -> dict[str, Any]:
    keys = ("attn_logit_softcapping", "final_logit_softcapping")
    return {key: float(config[key]) for key in keys if config.get(key)}


def _check_layers(config: Config, key: str, wanted: Callable[[int], Any]) -> None:
    """Refuses a pattern of layers that is not the family's own."""
    given = config.get(key)
    if given and list(given) != [wanted(i) for i in range(int(config["num_hidden_layers"]))]:
        raise UnsupportedError(f"{key} {given} is not supported")


def _gemma(step: int) -> Callable[[Config], dict[str, Any]]:
    def facts(config: Config) -> dict[str, Any]:
        def kind(i: int) -> str:
            return "sliding_attention" if (i + 1) % step else "full_attention"

        _check_layers(config, "layer_types", kind)
        if config.get("sliding_window_pattern", step) != step:
            raise UnsupportedError("sliding_window_pattern is not supported")
        found = {**_window(config), **_softcaps(config)}
        found["attention.scale"] = float(config.get("query_pre_attn_scalar", 256)) ** -0.5
        local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
        base = config.get("rope_local_base_freq", local.get("rope_theta"))
        if base:
            found["rope.freq_base_swa"] = float(base)
        return found

    return facts


def _granite(config: Config) -> dict[str, Any]:
    return {
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "attention.scale": float(config["attention_multiplier"]),
        "logit_scale": float(config["logits_scaling"]),
    }


def _smollm3(config: Config) -> dict[str, Any]:
    if config.get("use_sliding_window"):
        raise UnsupportedError("use_sliding_window is not supported")
    _check_layers(config, "no_rope_layers", lambda i: int((i + 1) % 4 != 0))
    return {}


def _phi3(config: Config) -> dict[str, Any]:
    found = _window(config)
    scaling = rope_scaling(config)
    if scaling.get("rope_type") == "longrope":
        short = int(config.get("original_max_position_embeddings") or
                    scaling["original_max_position_embeddings"])  # fmt: skip
        factor = int(config["max_position_embeddings"]) / short
        gain = scaling.get("attention_factor")
        if gain is None:
            gain = math.sqrt(1 + math.log(factor) / math.log(short)) if factor > 1 else 1.0
        found["rope.scaling.original_context_length"] = short
        found["rope.scaling.attn_factor"] = float(gain)
    return found


#: by model_type
FAMILIES = {
    "llama": Family("llama", _COMMON, paired=True),
    "mistral": Family("llama", _COMMON, paired=True, facts=_window),
    "qwen2": Family("qwen2", {**_COMMON, **_BIASES}),
    "qwen3": Family("qwen3", {**_COMMON, **_QK_NORMS}, head_dim=128),
    "smollm3": Family("smollm3", _COMMON, paired=True, facts=_smollm3),
    "granite": Family("granite", _COMMON, paired=True, facts=_granite),
    "olmo2": Family("olmo2", {**_COMMON, **_QK_NORMS, **_POST_NORMS}),
    "phi3": Family("phi3", {**_COMMON, **_FUSED}, facts=_phi3),
    "gemma2": Family("gemma2", {**_COMMON, **_POST_NORMS}, norm_offset=1.0, head_dim=256,
                     activation="gelu_pytorch_tanh", facts=_gemma(2)),
    "gemma3_text": Family("gemma3", {**_COMMON, **_QK_NORMS, **_POST_NORMS}, norm_offset=1.0,
                          head_dim=256, activation="gelu_pytorch_tanh", facts=_gemma(6)),
    "mixtral": Family("llama", {**_ATTENTION, **_CHOSEN}, paired=True, facts=_window,
                      experts=Experts(_MIXTRAL)),
    "qwen2_moe": Family("qwen2moe", {**_ATTENTION, **_BIASES, **_ROUTER, **_SHARED},
                        experts=Experts(_EACH, normed=False, asked=True)),
    "qwen3_moe": Family("qwen3moe", {**_ATTENTION, **_QK_NORMS, **_ROUTER},
                        experts=Experts(_EACH, asked=True)),
    "olmoe": Family("olmoe", {**_ATTENTION, **_QK_NORMS, **_ROUTER},
                    experts=Experts(_EACH, normed=False, asked=True)),
    "granitemoe": Family("granitemoe", {**_ATTENTION, **_GRANITE}, paired=True, facts=_granite,
                         experts=Experts(split=_HALVES)),
    "granitemoeshared": Family("granitemoe", {**_ATTENTION, **_GRANITE}, paired=True,
                               facts=_granite, experts=Experts(split=_HALVES)),
}  # fmt: skip


def rope_scaling(config: Config) -> dict[str, Any]:
    """The scaling of positions under one spelling, {"rope_type": "default"} where there is none."""
    parameters = config.get("rope_parameters") or {}
    parameters = parameters.get("full_attention") or parameters
    scaling = dict(config.get("rope_scaling") or parameters)
    scaling["rope_type"] = scaling.get("rope_type", scaling.get("type")) or "default"
    if scaling["rope_type"] == "su":  # longrope's first name
        scaling["rope_type"] = "longrope"
    scaling.setdefault("rope_theta", config.get("rope_theta") or parameters.get("rope_theta"))
    return scaling


def rotated_width(config: Config, head_dim: int) -> int:
    """Dimensions of a head that positions rotate."""
    factor = rope_scaling(config).get("partial_rotary_factor")
    return int(head_dim * float(config.get("partial_rotary_factor") or factor or 1.0))


def _llama3(scaling: dict[str, Any], width: int) -> Array:
    """Divisors of the frequencies as Llama 3.1 introduced them: long wavelengths by the factor,
    short ones not at all, in between a blend that is linear in the number of turns."""
    factor, low, high = (
        float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    old = float(scaling["original_max_position_embeddings"])
    rate = float(scaling["rope_theta"] or 10000.0) ** (-np.arange(0, width, 2) / width)
    turns = old * rate / (2 * np.pi)  # within the old context
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


def rope_tensors(config: Config, width: int) -> dict[str, Array]:
    """Vectors of divisors (width / 2) that the file has beside the checkpoint's tensors."""
    scaling = rope_scaling(config)
    if scaling["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3(scaling, width)}
    if scaling["rope_type"] == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.asarray(scaling[f"{kind}_factor"], dtype=np.float32)
            for kind in ("long", "short")
        }
    return {}

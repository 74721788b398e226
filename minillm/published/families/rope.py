"""RoPE, and how it is stretched for longer contexts, as config.json describes it."""

import math
from collections.abc import Callable
from typing import Any

from minillm.layers import Llama3Scaling, RopeScaling, YarnScaling
from minillm.published.families.base import Fields, present


def rope_from(fields: Fields) -> dict[str, Any]:
    """RoPE as files described it until 2025 (rope_theta, rope_scaling) and since (rope_parameters).

    Where both are there, people added the older one by hand, and it hides the whole of the newer one, as in
    transformers, which goes on with a default in place of the hidden rope_theta; that is refused here.
    """
    newer, older = fields.table("rope_parameters"), fields.table("rope_scaling")
    outside = {key: fields.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    rope = Fields({"rope_theta": 10_000.0, **present(outside), **(older or newer)})
    if older and newer.get("rope_theta", rope.get("rope_theta")) != rope.get("rope_theta"):
        raise ValueError(
            f"rope_scaling hides rope_parameters and its rope_theta={newer['rope_theta']}; "
            "write that into rope_scaling too, or remove one of them"
        )
    rope.expect("partial_rotary_factor", 1.0)
    scaling = rope.choice("rope_type", SCALINGS, rope.get("type", "default"))
    return {"rope_theta": rope.positive("rope_theta"), "rope_scaling": scaling(rope, original_context(fields, rope))}


def original_context(fields: Fields, rope: Fields) -> int:
    """The context that a model was trained with first; it may stand in three places."""
    key = "original_max_position_embeddings"
    return fields.count(key, rope.count(key, fields.size("max_position_embeddings")))


def dynamic_scaling(rope: Fields, context: int) -> None:
    """None: it begins with texts longer than `max_position_embeddings`, which are not read here."""
    RopeScaling(rope.number("factor"))


def llama3_scaling(rope: Fields, context: int) -> RopeScaling:
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_seq_len=context,
    )


def yarn_scaling(rope: Fields, context: int) -> RopeScaling:
    factor = rope.number("factor")
    above, below = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    above, below = (above, below) if above and below else (1.0, 0.0)
    grown = 0.1 * math.log(max(factor, 1.0))
    return YarnScaling(
        factor=factor,
        original_max_seq_len=context,
        fast=rope.number("beta_fast", 0.0) or 32.0,
        slow=rope.number("beta_slow", 0.0) or 1.0,
        magnitude=rope.number("attention_factor", (above * grown + 1) / (below * grown + 1)),
        whole_pairs=rope.flag("truncate", True),
    )


SCALINGS: dict[str, Callable[[Fields, int], RopeScaling | None]] = {
    "default": lambda rope, context: None,
    "linear": lambda rope, context: RopeScaling(rope.number("factor")),
    "dynamic": dynamic_scaling,
    "llama3": llama3_scaling,
    "yarn": yarn_scaling,
}


def scaling_to(scaling: RopeScaling | None) -> dict[str, Any]:
    """`rope_scaling`, where there is one."""
    match scaling:
        case None:
            return {}
        case Llama3Scaling(factor, low, high, context):
            rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        case YarnScaling(factor, context, fast, slow, magnitude, whole):
            rope = {"rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": slow}
            rope |= {"attention_factor": magnitude, "truncate": whole}
        case _:
            return {"rope_scaling": {"rope_type": "linear", "factor": scaling.factor}}
    return {"rope_scaling": {**rope, "original_max_position_embeddings": context}}

"""GPT-2, Llama (SmolLM2 is one), Mistral, Qwen2 and Qwen3: what they call what gpt.py has."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from minillm.gpt import GPT, GPTConfig
from minillm.heads import TokenClassifier
from minillm.layers import Llama3Scaling, RopeScaling, YarnScaling
from minillm.published.families.base import (
    ACTIVATIONS,
    OF_SEQUENCES,
    Family,
    Fields,
    Head,
    of_sequences,
    rule,
    written,
)
from minillm.published.families.rope import rope_from, scaling_to

FULL, SLIDING = "full_attention", "sliding_attention"  # what a layer sees: everything before, or a window of it


def heads(lm: str, name: str, tagger: str = "score") -> dict[str, Head]:
    """`tagger` is what the last product of theirs is called that gives every token a class."""
    classify, tag = (rule("classifier", "score"),), (rule("classifier", tagger), OF_SEQUENCES)
    return {
        "lm": Head(GPT, lm, also=(f"{name}Model",), rules=(rule("output", "lm_head"),)),
        **of_sequences(f"{name}ForSequenceClassification", classify),
        "tag": Head(TokenClassifier, f"{name}ForTokenClassification", rules=tag, has_classes=True),
    }


# ---- GPT-2 ---------------------------------------------------------------------------------------


def gpt2_from(fields: Fields) -> GPTConfig:
    fields.expect("scale_attn_weights", True)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    fields.expect("add_cross_attention", False)
    fields.share("embd_pdrop", 0.1)  # embeddings are trained with the rate of the layers here
    return GPTConfig(
        vocab_size=fields.size("vocab_size"),
        max_seq_len=fields.size("n_positions"),
        num_layers=fields.size("n_layer"),
        width=fields.size("n_embd"),
        num_heads=fields.size("n_head"),
        mlp_width=fields.size("n_inner", 0),
        mlp=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
        positions="learned",
        norm_eps=fields.positive("layer_norm_epsilon", 1e-5),
        bias=True,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        dropout=fields.share("resid_pdrop", 0.1),
        attention_dropout=fields.share("attn_pdrop", 0.1),
    )


def gpt2_to(config: GPTConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_seq_len,
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "activation_function": written(ACTIVATIONS, config.mlp),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
    }


GPT2 = Family(
    model_type="gpt2",
    prefix="transformer.",
    rules=(
        rule("tokens", "wte"),
        rule("positions", "wpe"),
        rule("blocks.*.attn_norm", "h.*.ln_1"),
        rule("blocks.*.attn.qkv", "h.*.attn.c_attn", transpose=True),
        rule("blocks.*.attn.out", "h.*.attn.c_proj", transpose=True),
        rule("blocks.*.mlp_norm", "h.*.ln_2"),
        rule("blocks.*.mlp.up", "h.*.mlp.c_fc", transpose=True),
        rule("blocks.*.mlp.down", "h.*.mlp.c_proj", transpose=True),
        rule("final_norm", "ln_f"),
    ),
    heads=heads("GPT2LMHeadModel", "GPT2", tagger="classifier"),
    config_type=GPTConfig,
    config_from=gpt2_from,
    config_to=gpt2_to,
    ignored=(".attn.bias", ".attn.masked_bias"),
)


# ---- Llama and its relatives ---------------------------------------------------------------------


def llama_from(fields: Fields) -> GPTConfig:
    attention, mlp = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    if mlp and not attention:
        raise ValueError("mlp_bias=True is not supported without attention_bias=True")
    kinds = fields.get("layer_types", [FULL])
    return relative_from(fields, kinds, bias=mlp, qkv_bias=attention, out_bias=attention)


def mistral_from(fields: Fields) -> GPTConfig:
    return relative_from(fields, [FULL if window(fields) is None else SLIDING])


def qwen2_from(fields: Fields) -> GPTConfig:
    return relative_from(fields, qwen_kinds(fields), qkv_bias=True)


def qwen3_from(fields: Fields) -> GPTConfig:
    bias = fields.flag("attention_bias", False)
    special = {"head_dim": fields.size("head_dim", 128), "qk_norm": True, "qkv_bias": bias, "out_bias": bias}
    return relative_from(fields, qwen_kinds(fields), **special)


def qwen_kinds(fields: Fields) -> Sequence[str]:
    """What each layer sees: files name it, or say from which layer on it is a window."""
    layers, full = fields.size("num_hidden_layers"), fields.count("max_window_layers", 28)
    may_slide = fields.flag("use_sliding_window", False)
    slide = may_slide and window(fields) is not None
    named = fields.get("layer_types", [SLIDING if slide and layer >= full else FULL for layer in range(layers)])
    if SLIDING in named and not may_slide:
        raise ValueError(f"layer_types names {SLIDING!r}, but use_sliding_window is false")
    return named


def window(fields: Fields) -> int | None:
    """The last tokens that a layer sees, by transformers 4,096 where a file says nothing; null: all of them."""
    return fields.size("sliding_window", 4096) if fields.values.get("sliding_window", 0) is not None else None


def reach(fields: Fields, kinds: Sequence[str]) -> int:
    """Most tokens of a text. Where layers see a window only, not more than that: up to there it hides nothing."""
    context = fields.size("max_position_embeddings")
    if unknown := set(kinds) - {FULL, SLIDING}:
        raise ValueError(f"layer_types: {min(unknown)!r} is not supported, only {FULL!r} or {SLIDING!r}")
    if SLIDING not in kinds:
        return context
    if (seen := window(fields)) is None:
        raise ValueError(f"layer_types names {SLIDING!r}, but sliding_window is null")
    return min(context, seen)


def relative_from(fields: Fields, kinds: Sequence[str], **special: Any) -> GPTConfig:
    """What they have in common, and `special`."""
    fields.expect("hidden_act", "silu", "swish")  # two names of one function
    common = {
        "vocab_size": fields.size("vocab_size"),
        "max_seq_len": reach(fields, kinds),
        "num_layers": fields.size("num_hidden_layers"),
        "width": fields.size("hidden_size"),
        "num_heads": fields.size("num_attention_heads"),
        "num_kv_heads": fields.size("num_key_value_heads", 0),
        "head_dim": fields.size("head_dim", 0),
        "mlp_width": fields.size("intermediate_size"),
        "norm": "rmsnorm",
        "norm_eps": fields.positive("rms_norm_eps", 1e-6),
        "mlp": "swiglu",
        "tie_embeddings": fields.flag("tie_word_embeddings", False),
        "dropout": fields.share("residual_dropout", 0.0),  # ours: other libraries know none here
        "attention_dropout": fields.share("attention_dropout", 0.0),
    }
    return GPTConfig(**{**common, **rope_from(fields), **special})


def llama_to(config: GPTConfig) -> dict[str, Any]:
    return {**relative_to(config), "attention_bias": config.out_bias, "mlp_bias": config.bias}


def qwen3_to(config: GPTConfig) -> dict[str, Any]:
    return {**relative_to(config), "attention_bias": config.out_bias}


def relative_to(config: GPTConfig) -> dict[str, Any]:
    fields = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "attention_dropout": config.attention_dropout,
        **scaling_to(config.rope_scaling),
    }
    if config.dropout:
        fields["residual_dropout"] = config.dropout
    return fields


def qkv_rows(config: GPTConfig) -> tuple[int, int, int]:
    keys = config.num_kv_heads * config.head_dim
    return config.num_heads * config.head_dim, keys, keys


RELATIVE_RULES = (
    rule("tokens", "embed_tokens"),
    rule("blocks.*.attn_norm", "layers.*.input_layernorm"),
    rule(
        "blocks.*.attn.qkv",
        "layers.*.self_attn.q_proj",
        "layers.*.self_attn.k_proj",
        "layers.*.self_attn.v_proj",
        rows=qkv_rows,
    ),
    rule("blocks.*.attn.q_norm", "layers.*.self_attn.q_norm"),
    rule("blocks.*.attn.k_norm", "layers.*.self_attn.k_norm"),
    rule("blocks.*.attn.out", "layers.*.self_attn.o_proj"),
    rule("blocks.*.mlp_norm", "layers.*.post_attention_layernorm"),
    rule("blocks.*.mlp.gate_up", "layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"),
    rule("blocks.*.mlp.down", "layers.*.mlp.down_proj"),
    rule("final_norm", "norm"),
)


def relative(model_type: str, name: str, config_from: Any, config_to: Any = relative_to) -> Family:
    return Family(
        model_type=model_type,
        prefix="model.",
        rules=RELATIVE_RULES,
        heads=heads(f"{name}ForCausalLM", name),
        config_type=GPTConfig,
        config_from=config_from,
        config_to=config_to,
        ignored=("rotary_emb.inv_freq",),
    )


LLAMA = relative("llama", "Llama", llama_from, llama_to)
MISTRAL = relative("mistral", "Mistral", mistral_from)  # written as the Llama that it is
QWEN2 = relative("qwen2", "Qwen2", qwen2_from)
QWEN3 = relative("qwen3", "Qwen3", qwen3_from, qwen3_to)


# ---- our own: what no family can say -------------------------------------------------------------


def own_from(fields: Fields) -> GPTConfig:
    fields.expect("architecture", *(head.architecture for head in OWN.heads.values()))
    ours = {field.name: field for field in dataclasses.fields(GPTConfig)}
    about_heads = {"architecture", "id2label", "label2id", "dtype", "sequence_classes", "problem_type"}
    if unknown := fields.values.keys() - ours.keys() - about_heads:
        raise ValueError(f"{min(unknown)!r} is unknown")
    readers = {int: fields.count, float: fields.number, bool: fields.flag, str: fields.get}
    values = {
        name: readers[field.type](name)
        for name, field in ours.items()
        if field.type in readers and (name in fields.values or field.default is dataclasses.MISSING)
    }
    if scaling := fields.table("rope_scaling"):
        kind = Fields(scaling).choice("rope_type", OWN_SCALINGS, "llama3")
        values["rope_scaling"] = kind(**{key: value for key, value in scaling.items() if key != "rope_type"})
    return GPTConfig(**values)


OWN_SCALINGS = {"linear": RopeScaling, "llama3": Llama3Scaling, "yarn": YarnScaling}


def own_to(config: GPTConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    if scaling := config.rope_scaling:
        fields["rope_scaling"]["rope_type"] = written(OWN_SCALINGS, type(scaling))
    return fields


OWN_CLASSIFIER = (rule("classifier", "classifier"),)
OWN = Family(
    model_type="",
    prefix="encoder.",
    rules=(),
    heads={
        "lm": Head(GPT, "GPT", rules=(rule("output", "output"),), is_bare=True),
        **of_sequences("GPTClassifier", OWN_CLASSIFIER),
        "tag": Head(
            TokenClassifier, "GPTTagger", rules=(rule("classifier", "classifier"), OF_SEQUENCES), has_classes=True
        ),
    },
    config_type=GPTConfig,
    config_from=own_from,
    config_to=own_to,
)

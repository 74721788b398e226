"""ModernBERT: what it calls what the files of models have."""

from typing import Any

from minillm.modernbert import ModernBERT, ModernBERTConfig
from minillm.published.families.base import Family, Fields, rule, written
from minillm.published.families.bert import heads

POOLINGS = {"cls": "first", "mean": "mean"}


def modernbert_from(fields: Fields) -> ModernBERTConfig:
    for key in ("hidden_activation", "classifier_activation"):
        fields.expect(key, "gelu")
    for key in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"):
        fields.expect(key, False)
    for key in ("embedding_dropout", "attention_dropout", "mlp_dropout"):
        fields.share(key, 0.0)  # there is none here, in training neither
    fields.expect("decoder_bias", True)
    fields.expect("classifier_pooling", *POOLINGS)
    both_sides = fields.size("local_attention", 128)
    fields.expect("sliding_window", both_sides // 2)  # another name for it, of one side
    return ModernBERTConfig(
        vocab_size=fields.size("vocab_size"),
        max_seq_len=fields.size("max_position_embeddings"),
        num_layers=fields.size("num_hidden_layers"),
        width=fields.size("hidden_size"),
        num_heads=fields.size("num_attention_heads"),
        mlp_width=fields.size("intermediate_size"),
        global_every=global_every_from(fields),
        window=both_sides // 2 + 1,  # theirs counts without the token itself
        global_theta=theta_from(fields, "full_attention", "global_rope_theta", 160_000.0),
        local_theta=theta_from(fields, "sliding_attention", "local_rope_theta", 10_000.0),
        norm_eps=fields.positive("norm_eps", 1e-5),
        pooling=POOLINGS[fields.get("classifier_pooling", "cls")],
        classifier_dropout=fields.share("classifier_dropout", 0.0),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def layer_types(num_layers: int, global_every: int) -> list[str]:
    return ["sliding_attention" if layer % global_every else "full_attention" for layer in range(num_layers)]


def global_every_from(fields: Fields) -> int:
    """Files give a number, and since 2025 the name of what each layer sees."""
    named = fields.get("layer_types")
    if named is not None and not isinstance(named, list):
        raise ValueError(f"layer_types={named!r} is no list")
    if named is None or fields.get("global_attn_every_n_layers"):
        every = fields.size("global_attn_every_n_layers", 3)
    else:
        every = next((i for i, name in enumerate(named) if i > 0 and name == "full_attention"), len(named))
    if named not in (None, layer_types(fields.size("num_hidden_layers"), every)):
        raise ValueError(f"layer_types={named} is not supported, only every so many layers 'full_attention'")
    return every


def theta_from(fields: Fields, kind: str, early_name: str, default: float) -> float:
    """Of RoPE in layers of this kind, as files had it until 2025 and since."""
    rope = Fields({**Fields(fields.table("rope_parameters")).table(kind), **fields.table("rope_scaling")})
    rope.expect("rope_type", "default")
    return rope.positive("rope_theta", fields.positive(early_name, default))


def modernbert_to(config: ModernBERTConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "pad_token_id": None,  # nothing is padded here; the default lies beyond small vocabularies
        "max_position_embeddings": config.max_seq_len,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_activation": "gelu",
        "global_attn_every_n_layers": config.global_every,
        "layer_types": layer_types(config.num_layers, config.global_every),
        "local_attention": 2 * (config.window - 1),
        "global_rope_theta": config.global_theta,
        "local_rope_theta": config.local_theta,
        "norm_eps": config.norm_eps,
        "classifier_pooling": written(POOLINGS, config.pooling),
        "classifier_dropout": config.classifier_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


TRANSFORM = (rule("transform.dense", "head.dense"), rule("transform.norm", "head.norm"))
CLASSIFIER = (*TRANSFORM, rule("classifier", "classifier"))

MODERNBERT = Family(
    model_type="modernbert",
    prefix="model.",
    rules=(
        rule("tokens", "embeddings.tok_embeddings"),
        rule("embedding_norm", "embeddings.norm"),
        rule("blocks.*.attn_norm", "layers.*.attn_norm"),
        rule("blocks.*.attn.qkv", "layers.*.attn.Wqkv"),
        rule("blocks.*.attn.out", "layers.*.attn.Wo"),
        rule("blocks.*.mlp_norm", "layers.*.mlp_norm"),
        rule("blocks.*.mlp.gate_up", "layers.*.mlp.Wi"),
        rule("blocks.*.mlp.down", "layers.*.mlp.Wo"),
        rule("final_norm", "final_norm"),
    ),
    heads=heads("ModernBert", ModernBERT, (*TRANSFORM, rule("output", "decoder")), CLASSIFIER, CLASSIFIER),
    config_type=ModernBERTConfig,
    config_from=modernbert_from,
    config_to=modernbert_to,
)

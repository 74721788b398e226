"""BERT (MiniLM is one), RoBERTa and its kin, DistilBERT: what they call what the files of models have."""

from typing import Any

from torch import nn

from minillm.bert import BERT, BERTConfig
from minillm.embedder import SentenceEmbedder
from minillm.heads import MaskedLM, TokenClassifier
from minillm.published.families.base import (
    ACTIVATIONS,
    OF_SEQUENCES,
    Family,
    Fields,
    Head,
    Rule,
    of_sequences,
    rule,
    written,
)


def heads(
    name: str,
    encoder: type[nn.Module],
    mlm: tuple[Rule, ...],
    classify: tuple[Rule, ...],
    tag: tuple[Rule, ...] = (rule("classifier", "classifier"),),
    pretraining: tuple[str, ...] = (),
) -> dict[str, Head]:
    others = tuple(f"{name}For{what}" for what in ("QuestionAnswering", "MultipleChoice", "NextSentencePrediction"))
    return {
        "encoder": Head(encoder, f"{name}Model", also=others, is_bare=True),  # of the others it is what is used
        "mlm": Head(MaskedLM, f"{name}ForMaskedLM", also=pretraining, rules=mlm),
        **of_sequences(f"{name}ForSequenceClassification", classify),
        "tag": Head(TokenClassifier, f"{name}ForTokenClassification", rules=(*tag, OF_SEQUENCES), has_classes=True),
        "embed": Head(SentenceEmbedder, f"{name}Model", is_bare=True),
    }


# ---- BERT ----------------------------------------------------------------------------------------


def bert_from(fields: Fields) -> BERTConfig:
    return bert_like_from(fields, max_seq_len=fields.size("max_position_embeddings"))


def bert_like_from(fields: Fields, max_seq_len: int, position_offset: int = 0) -> BERTConfig:
    fields.expect("position_embedding_type", "absolute")
    fields.expect("is_decoder", False)
    fields.expect("add_cross_attention", False)
    dropout = fields.share("hidden_dropout_prob", 0.1)
    return BERTConfig(
        vocab_size=fields.size("vocab_size"),
        max_seq_len=max_seq_len,
        num_layers=fields.size("num_hidden_layers"),
        width=fields.size("hidden_size"),
        num_heads=fields.size("num_attention_heads"),
        mlp_width=fields.size("intermediate_size"),
        num_segments=max(1, fields.count("type_vocab_size", 2)),
        position_offset=position_offset,
        activation=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        norm_eps=fields.positive("layer_norm_eps", 1e-12),
        dropout=dropout,
        attention_dropout=fields.share("attention_probs_dropout_prob", 0.1),
        classifier_dropout=fields.share("classifier_dropout", dropout),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def bert_to(config: BERTConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.position_offset + config.max_seq_len,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "type_vocab_size": config.num_segments,
        "hidden_act": written(ACTIVATIONS, config.activation),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.classifier_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


BERT_RULES = (
    rule("tokens", "embeddings.word_embeddings"),
    rule("positions", "embeddings.position_embeddings"),
    rule("segments", "embeddings.token_type_embeddings"),
    rule("embedding_norm", "embeddings.LayerNorm"),
    rule(
        "blocks.*.attn.qkv",
        "encoder.layer.*.attention.self.query",
        "encoder.layer.*.attention.self.key",
        "encoder.layer.*.attention.self.value",
    ),
    rule("blocks.*.attn.out", "encoder.layer.*.attention.output.dense"),
    rule("blocks.*.attn_norm", "encoder.layer.*.attention.output.LayerNorm"),
    rule("blocks.*.mlp.up", "encoder.layer.*.intermediate.dense"),
    rule("blocks.*.mlp.down", "encoder.layer.*.output.dense"),
    rule("blocks.*.mlp_norm", "encoder.layer.*.output.LayerNorm"),
)
QUESTION_ANSWERING = "qa_outputs.weight", "qa_outputs.bias"
EARLY_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

FAMILY_BERT = Family(
    model_type="bert",
    prefix="bert.",
    rules=BERT_RULES,
    heads=heads(
        "Bert",
        BERT,
        mlm=(
            rule("transform.dense", "cls.predictions.transform.dense"),
            rule("transform.norm", "cls.predictions.transform.LayerNorm"),
            rule("output", "cls.predictions.decoder"),
        ),
        classify=(rule("transform.dense", "bert.pooler.dense"), rule("classifier", "classifier")),
        pretraining=("BertForPreTraining",),
    ),
    config_type=BERTConfig,
    config_from=bert_from,
    config_to=bert_to,
    old_names=EARLY_NAMES,
    twins={"cls.predictions.bias": "cls.predictions.decoder.bias"},
    ignored=(
        "embeddings.position_ids",
        *QUESTION_ANSWERING,
        "cls.seq_relationship.weight",  # BERT was also trained to tell which sentences follow each other
        "cls.seq_relationship.bias",
    ),
)


# ---- RoBERTa -------------------------------------------------------------------------------------


def roberta_from(fields: Fields) -> BERTConfig:
    """Its positions begin behind the number of the padding token."""
    fields.expect("hidden_act", "gelu")  # its head for masked words knows no other
    offset = fields.count("pad_token_id", 1) + 1
    return bert_like_from(fields, fields.size("max_position_embeddings") - offset, offset)


def roberta_to(config: BERTConfig) -> dict[str, Any]:
    return {**bert_to(config), "pad_token_id": config.position_offset - 1}


def roberta(model_type: str, name: str) -> Family:
    return Family(
        model_type=model_type,
        prefix="roberta.",
        rules=BERT_RULES,
        heads=heads(
            name,
            BERT,
            mlm=(
                rule("transform.dense", "lm_head.dense"),
                rule("transform.norm", "lm_head.layer_norm"),
                rule("output", "lm_head.decoder"),
            ),
            classify=(rule("transform.dense", "classifier.dense"), rule("classifier", "classifier.out_proj")),
        ),
        config_type=BERTConfig,
        config_from=roberta_from,
        config_to=roberta_to,
        twins={"lm_head.bias": "lm_head.decoder.bias"},
        ignored=(
            "embeddings.position_ids",
            "pooler.dense.weight",  # never trained: its classifiers have their own
            "pooler.dense.bias",
            *QUESTION_ANSWERING,
        ),
    )


ROBERTA = roberta("roberta", "Roberta")
XLM_ROBERTA = roberta("xlm-roberta", "XLMRoberta")  # these two are written as the RoBERTa that they are
CAMEMBERT = roberta("camembert", "Camembert")


# ---- DistilBERT ----------------------------------------------------------------------------------


def distilbert_from(fields: Fields) -> BERTConfig:
    return BERTConfig(
        vocab_size=fields.size("vocab_size"),
        max_seq_len=fields.size("max_position_embeddings"),
        num_layers=fields.size("n_layers"),
        width=fields.size("dim"),
        num_heads=fields.size("n_heads"),
        mlp_width=fields.size("hidden_dim"),
        num_segments=0,
        activation=fields.choice("activation", ACTIVATIONS, "gelu"),
        pooler="relu",
        dropout=fields.share("dropout", 0.1),
        attention_dropout=fields.share("attention_dropout", 0.1),
        classifier_dropout=fields.share("seq_classif_dropout", 0.2),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def distilbert_to(config: BERTConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "n_layers": config.num_layers,
        "dim": config.width,
        "n_heads": config.num_heads,
        "hidden_dim": config.mlp_width,
        "activation": written(ACTIVATIONS, config.activation),
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "seq_classif_dropout": config.classifier_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


DISTILBERT = Family(
    model_type="distilbert",
    prefix="distilbert.",
    rules=(
        rule("tokens", "embeddings.word_embeddings"),
        rule("positions", "embeddings.position_embeddings"),
        rule("embedding_norm", "embeddings.LayerNorm"),
        rule(
            "blocks.*.attn.qkv",
            "transformer.layer.*.attention.q_lin",
            "transformer.layer.*.attention.k_lin",
            "transformer.layer.*.attention.v_lin",
        ),
        rule("blocks.*.attn.out", "transformer.layer.*.attention.out_lin"),
        rule("blocks.*.attn_norm", "transformer.layer.*.sa_layer_norm"),
        rule("blocks.*.mlp.up", "transformer.layer.*.ffn.lin1"),
        rule("blocks.*.mlp.down", "transformer.layer.*.ffn.lin2"),
        rule("blocks.*.mlp_norm", "transformer.layer.*.output_layer_norm"),
    ),
    heads=heads(
        "DistilBert",
        BERT,
        mlm=(
            rule("transform.dense", "vocab_transform"),
            rule("transform.norm", "vocab_layer_norm"),
            rule("output", "vocab_projector"),
        ),
        classify=(rule("transform.dense", "pre_classifier"), rule("classifier", "classifier")),
    ),
    config_type=BERTConfig,
    config_from=distilbert_from,
    config_to=distilbert_to,
    ignored=("embeddings.position_ids", *QUESTION_ANSWERING),
)

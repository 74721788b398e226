"""The models against those of transformers: random weights, copied over, must give the same logits."""

import pytest
import torch
from tiny import bert_config, packed, sequences, shake

from minillm.heads import MaskedLM, SequenceClassifier, TokenClassifier

transformers = pytest.importorskip("transformers", reason="transformers is not installed; pip install transformers")

LENGTHS = (5, 1, 7, 3)
LAYERS = range(2)
QKV = ("query", "key", "value")


def copy_weights(ours, theirs, names):
    """`names`: of each parameter of ours, the parameters of theirs that it consists of; none may be left over."""
    left = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        parts = {part: left.pop(part) for part in names.pop(name)}
        parameter.data = torch.cat(list(parts.values())).detach().clone()
    assert not left, f"nobody took {sorted(left)}"
    assert not names, f"nobody needed {sorted(names)}"


def with_bias(names):
    """The same for the biases beside the weights."""
    both = {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            both[f"{ours}.{kind}"] = [f"{name}.{kind}" for name in theirs]
    return both


def per_layer(ours, theirs, names):
    """`names` under the prefix of each layer."""
    return {
        f"{ours}.{i}.{name}": [f"{theirs}.{i}.{part}" for part in parts]
        for i in LAYERS
        for name, parts in names.items()
    }


@torch.no_grad()
def assert_parity(ours, theirs, names, segments=False, head="logits", tolerance=1e-10):
    """Both read the same sequences, ours packed, theirs one by one."""
    shake(theirs).eval()
    copy_weights(ours, theirs, names)
    ours.double().eval()
    parts = sequences(LENGTHS)
    kinds = [torch.arange(len(part)) // 3 % 2 for part in parts]
    out = ours(*packed(parts), *([torch.cat(kinds)] if segments else []))
    out = ours.logits(out) if hasattr(ours, "logits") else out
    extra = [{"token_type_ids": kind[None]} if segments else {} for kind in kinds]
    truth = torch.cat([theirs(part[None], **more).logits[0] for part, more in zip(parts, extra, strict=True)])
    truth = truth.view(-1, out.shape[-1])
    assert truth.std() > 0.1
    torch.testing.assert_close(out, truth, rtol=0, atol=tolerance * float(truth.abs().max()))


def bert_names(prefix):
    block = {
        "attn.qkv": [f"attention.self.{x}" for x in QKV],
        "attn.out": ["attention.output.dense"],
        "attn_norm": ["attention.output.LayerNorm"],
        "mlp.up": ["intermediate.dense"],
        "mlp.down": ["output.dense"],
        "mlp_norm": ["output.LayerNorm"],
    }
    return {
        f"{prefix}.tokens.weight": ["bert.embeddings.word_embeddings.weight"],
        f"{prefix}.positions.weight": ["bert.embeddings.position_embeddings.weight"],
        f"{prefix}.segments.weight": ["bert.embeddings.token_type_embeddings.weight"],
        **with_bias({f"{prefix}.embedding_norm": ["bert.embeddings.LayerNorm"]}),
        **with_bias(per_layer(f"{prefix}.blocks", "bert.encoder.layer", block)),
    }


def their_bert_config(**more):
    return transformers.BertConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        **more,
    )


def test_masked_lm():
    theirs = transformers.BertForMaskedLM(their_bert_config())
    head = {
        "transform.dense": ["cls.predictions.transform.dense"],
        "transform.norm": ["cls.predictions.transform.LayerNorm"],
    }
    names = {**bert_names("encoder"), **with_bias(head), "output.bias": ["cls.predictions.bias"]}
    assert_parity(MaskedLM(bert_config(mlp_width=24)), theirs, names, segments=True)


def test_sequence_classifier():
    theirs = transformers.BertForSequenceClassification(their_bert_config(num_labels=3))
    head = {"transform.dense": ["bert.pooler.dense"], "classifier": ["classifier"]}
    ours = SequenceClassifier(bert_config(mlp_width=24), "abc")
    assert_parity(ours, theirs, {**bert_names("encoder"), **with_bias(head)}, segments=True)


def test_token_classifier():
    theirs = transformers.BertForTokenClassification(their_bert_config(num_labels=5))
    ours = TokenClassifier(bert_config(mlp_width=24), "abcde")
    names = {**bert_names("encoder"), **with_bias({"classifier": ["classifier"]})}
    assert_parity(ours, theirs, names, segments=True)

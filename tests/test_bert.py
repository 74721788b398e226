"""BERT and its heads: packed and padded batches, sight in both directions, segments, initialisation."""

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB, assert_same, batch_of, bert_config, gradients, packed, padded_attention, sequences, shake

import minillm.bert
from kernels import Packing, backend
from minillm.batching import IGNORE
from minillm.bert import BERT, BERTConfig
from minillm.heads import MaskedLM, MultiLabelClassifier, SequenceClassifier, TokenClassifier

LENGTHS = (5, 1, 7, 3, 7)
HEADS = {
    "encoder": BERT,
    "masked lm": MaskedLM,
    "sequence": lambda config: SequenceClassifier(config, "abc"),
    "several labels": lambda config: MultiLabelClassifier(config, "abc"),
    "tokens": lambda config: TokenClassifier(config, "abcd"),
}
every_head = pytest.mark.parametrize("head", HEADS)


def make(head="encoder", seed=0, **choices):
    return shake(HEADS[head](bert_config(**choices)), seed).eval()


def segments_of(tokens):
    return (tokens % 2 == 0).long()


def run(model, tokens, packing, keep=None):
    """Output, losses and gradients of a packed batch; only the rows `keep` count. One row a token or a sequence."""
    keep = torch.ones(len(tokens), dtype=torch.bool) if keep is None else keep
    out = model(tokens, packing, segments_of(tokens))
    is_a_token = len(out) == len(tokens)
    out = out[keep] if is_a_token else out
    result = {"out": out.detach()}
    value = (out.sin() * torch.linspace(0.5, 1, out.shape[1])).sum()  # no sum of rows that a norm would keep at 0
    if isinstance(model, MaskedLM):
        result["logits"] = model.logits(out).detach()
    if hasattr(model, "loss"):
        loss = model.loss(asked(model, tokens, packing, keep))
        result["loss"] = loss[keep].detach() if is_a_token else loss.detach()
        value = value + loss.sum()
    value.backward()
    return {**result, **gradients(model)}


def asked(model, tokens, packing, keep):
    """A batch that asks for some class of every token, or of every sequence."""
    if isinstance(model, SequenceClassifier):
        labels = tokens[packing.cu_seqlens[:-1].long()] % len(model.classes)
        if isinstance(model, MultiLabelClassifier):
            labels = F.one_hot(labels, len(model.classes)).float()
        return batch_of(tokens, packing, labels=labels, segments=segments_of(tokens))
    targets = (tokens * 7 + 3) % (VOCAB if isinstance(model, MaskedLM) else len(model.classes))
    return batch_of(tokens, packing, targets.where(keep, IGNORE), segments=segments_of(tokens))


def one_by_one(model, parts):
    results = [run(model, *packed([part])) for part in parts]
    rows = ("out", "logits", "loss")
    return {name: (torch.cat if name in rows else sum)([r[name] for r in results]) for name in results[0]}


# ---- packed = padded = one by one ----------------------------------------------------------------


@every_head
@pytest.mark.parametrize("impl", ["torch", "eager"])
def test_packed_is_one_by_one(head, impl):
    model, parts = make(head), sequences(LENGTHS)
    truth = one_by_one(model, parts)
    backend.set_default(impl)
    assert_same(truth, run(model, *packed(parts)))


@every_head
def test_padded_is_one_by_one(head, monkeypatch):
    model, parts = make(head), sequences(LENGTHS)
    truth = one_by_one(model, parts)
    T = max(LENGTHS)
    rows = torch.stack([F.pad(part, (0, T - len(part)), value=9) for part in parts])
    real = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).flatten()
    monkeypatch.setattr(minillm.bert, "attention", padded_attention(LENGTHS, causal=False))
    assert_same(truth, run(model, rows.flatten(), Packing.from_lengths([T] * len(parts)), keep=real))


@every_head
def test_every_parameter_learns(head):
    model = make(head)
    found = run(model, *packed(sequences(LENGTHS)))
    assert {name for name, _ in model.named_parameters()} <= found.keys()
    silent = {name for name, value in found.items() if value.abs().max() == 0}
    assert not silent


# ---- sight ---------------------------------------------------------------------------------------


def test_every_token_sees_every_other():
    model, (tokens,) = make(), sequences([6])
    before = model(*packed([tokens]))
    for changed in range(6):
        other = tokens.clone()
        other[changed] = (other[changed] + 1) % VOCAB
        assert (model(*packed([other])) - before).abs().amax(dim=1).min() > 1e-6


def test_a_neighbour_changes_nothing():
    model, parts = make(), sequences(LENGTHS)
    first = model(*packed(parts))
    second = model(*packed([sequences([4], seed=9)[0], *parts[1:]]))
    torch.testing.assert_close(second[4:], first[5:], rtol=0, atol=1e-12)


def test_a_sequence_is_classified_from_its_first_token():
    model, parts = make("sequence"), sequences(LENGTHS)
    first = model.encoder(*packed(parts))[torch.tensor([0, 5, 6, 13, 16])]  # where the sequences begin
    truth = model.classifier(torch.tanh(model.transform.dense(first)))
    torch.testing.assert_close(model(*packed(parts)), truth, rtol=0, atol=1e-12)


def test_segments():
    model, (tokens, packing) = make(), packed(sequences(LENGTHS))
    plain = model(tokens, packing)
    assert torch.equal(model(tokens, packing, torch.zeros_like(tokens)), plain)
    assert not torch.allclose(model(tokens, packing, torch.ones_like(tokens)), plain)


def test_order_matters():
    model = make()
    first, second = (model(*packed([torch.tensor(t)])) for t in ([1, 2, 3], [2, 1, 3]))
    assert (first[2] - second[2]).abs().max() > 1e-3


# ---- heads, dropout, sizes -----------------------------------------------------------------------


def test_masked_lm_writes_with_the_embedding_and_a_bias():
    model = make("masked lm")
    tokens, packing = packed(sequences(LENGTHS))
    hidden = model(tokens, packing)
    logits = hidden @ model.encoder.tokens.weight.T + model.output.bias
    torch.testing.assert_close(model.logits(hidden), logits, rtol=0, atol=1e-12)
    targets = tokens.clone()
    targets[::2] = -100  # not masked, so not asked for
    truth = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    check_loss(model, batch_of(tokens, packing, targets), truth)


def check_loss(model, batch, truth):
    """The values one by one, and their weighted sum."""
    torch.testing.assert_close(model.loss(batch), truth, rtol=0, atol=1e-12)
    for weights in (0.25, torch.linspace(-1, 2, len(truth), dtype=torch.float64)):
        total = model.loss(batch, weights)
        torch.testing.assert_close(total, (weights * truth).sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_of_classifiers_is_minus_log_probability(temperature):
    tokens, packing = packed(sequences(LENGTHS))
    model, labels = make("sequence"), torch.tensor([2, 0, 1, 1, 2])
    batch, segments = batch_of(tokens, packing, labels=labels, segments=segments_of(tokens)), segments_of(tokens)
    truth = F.cross_entropy(model(tokens, packing, segments) / temperature, labels, reduction="none")
    torch.testing.assert_close(model.loss(batch, temperature=temperature), truth, rtol=0, atol=1e-12)
    check_loss(model, batch, model.loss(batch))
    model, targets = make("tokens"), (tokens % 4).where(tokens > 2, IGNORE)
    batch = batch_of(tokens, packing, targets, segments=segments)
    truth = F.cross_entropy(model(tokens, packing, segments) / temperature, targets, reduction="none")
    torch.testing.assert_close(model.loss(batch, temperature=temperature), truth, rtol=0, atol=1e-12)
    check_loss(model, batch, model.loss(batch))


@every_head
def test_dropout_only_in_training(head):
    model, batch = make(head, dropout=0.5), packed(sequences(LENGTHS))
    plain = make(head, dropout=0.0)(*batch)
    assert torch.equal(model(*batch), plain)
    model.train()
    torch.manual_seed(1)
    first, second = model(*batch), model(*batch)
    torch.manual_seed(1)
    assert torch.equal(model(*batch), first)
    assert not torch.allclose(first, second)


def test_compute_dtype_is_of_activations_only():
    model = make("masked lm").float()
    model.compute_dtype = torch.bfloat16
    tokens, packing = packed(sequences(LENGTHS))
    hidden = model(tokens, packing)
    assert hidden.dtype == torch.bfloat16
    model.loss(batch_of(tokens, packing, tokens)).sum().backward()
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_a_sequence_may_fill_the_model_but_no_more():
    model = make()
    assert model(*packed(sequences([16, 3]))).shape == (19, 16)
    with pytest.raises(ValueError, match="17 tokens but max_seq_len=16"):
        model(*packed(sequences([3, 17])))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0 must be positive"),
        ({"num_segments": -1}, "num_segments=-1"),
        ({"pooler": "gelu"}, "pooler='gelu' is not"),
        ({"num_layers": -2}, "num_layers=-2"),
        ({"width": 18}, "width=18 is no multiple of num_heads=4"),
        ({"mlp_width": -4}, "mlp_width=-4"),
        ({"dropout": 1.5}, "dropout=1.5"),
    ],
)
def test_impossible_configs_are_named(choices, message):
    with pytest.raises(ValueError, match=message):
        bert_config(**choices)


@every_head
def test_initialisation(head):
    torch.manual_seed(0)
    model = HEADS[head](BERTConfig(vocab_size=500, width=256, num_segments=16))
    for name, p in model.state_dict().items():
        if name.endswith("bias"):
            assert p.abs().max() == 0, name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            assert abs(float(p.std()) / 0.02 - 1) < 0.1, name

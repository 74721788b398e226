"""Integrated gradients: complete, equal to captum's, of a linear function its terms."""

import numpy as np
import pytest
import tiny
import torch
from tiny import bert_config, gpt_config, packed, sequences, shake

from minillm import explain
from minillm.batching import Document
from minillm.explain import along, integrated_gradients, logit, logit_of_token, logit_of_whole, outputs_at
from minillm.heads import MultiLabelClassifier, SequenceClassifier, TokenClassifier
from minillm.modernbert import ModernBERTConfig

MODELS = {
    "bert": lambda: SequenceClassifier(bert_config(), "abc"),
    "modernbert": lambda: SequenceClassifier(ModernBERTConfig(tiny.VOCAB, 16, 3, 16, 4, window=3), "abc"),
    "gpt": lambda: SequenceClassifier(gpt_config(positions="learned", bias=True), "abc"),
    "llama": lambda: MultiLabelClassifier(gpt_config(**tiny.LLAMA), "abc"),
    "tagger": lambda: TokenClassifier(bert_config(), "abc", "de"),
}
LOOKS = {"tagger": [logit_of_token(2, 1), logit_of_whole(1)]}
every_model = pytest.mark.parametrize("name", MODELS)
TOKENS = sequences((7,))[0].tolist()
IS_WORD = np.array([False, True, True, True, True, True, False])


def make(name):
    return shake(MODELS[name]()).eval()


def ends(model, is_word=IS_WORD):
    """The embeddings of the tokens, and those of which nothing is known."""
    table = model.encoder.tokens.weight.detach()
    x = table[torch.tensor(TOKENS)]
    return torch.where(torch.from_numpy(is_word)[:, None], table.mean(0), x), x


@every_model
def test_the_shares_add_up(name):
    model = make(name)
    for look in LOOKS.get(name, [logit(0), logit(2)]):
        shares, value, start = integrated_gradients(model, Document(TOKENS, label=0), IS_WORD, look)
        assert abs(value - start) > 1e-3
        assert shares.sum() == pytest.approx(value - start, abs=0.011 * min(1, abs(value - start)))
        assert not shares[~IS_WORD].any()
        assert np.abs(shares[IS_WORD]).min() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


@every_model
def test_the_text_itself_is_at_the_end_of_the_path(name):
    model = make(name)
    document, look = Document(TOKENS, label=0), LOOKS.get(name, [logit(1)])[0]
    _, value, _ = integrated_gradients(model, document, IS_WORD, look)
    tokens, packing = packed([torch.tensor(TOKENS)])
    with torch.no_grad():
        out = model(tokens, packing, None)
    assert value == pytest.approx(float(out[2, 1] if name == "tagger" else out[0, 1]), rel=1e-9)


@every_model
def test_captum_has_the_same_shares(name):
    attr = pytest.importorskip("captum.attr", reason="pip install captum --no-deps")
    model, document = make(name), Document(TOKENS, label=0)
    b, x = ends(model)
    for look in LOOKS.get(name, [logit(1)]):
        theirs = attr.IntegratedGradients(lambda z, look=look: outputs_at(model, document, z, look))
        found = theirs.attribute(x[None], b[None], n_steps=32, method="gausslegendre")[0].sum(-1)
        np.testing.assert_allclose(along(model, document, b, x, look, 32), found.detach().numpy(), rtol=1e-5, atol=1e-8)


def test_points_in_several_batches_are_those_in_one(monkeypatch):
    model, document = make("bert"), Document(TOKENS, label=0)
    whole = along(model, document, *ends(model), logit(0), 16)
    monkeypatch.setattr(explain, "BATCH_TOKENS", 20)
    np.testing.assert_allclose(along(model, document, *ends(model), logit(0), 16), whole, rtol=1e-9, atol=1e-12)


def test_of_a_linear_function_the_shares_are_its_terms():
    """Averages of embeddings, times a vector: no layer between."""
    model = make("bert")
    vector = torch.arange(16.0, dtype=torch.float64)

    class Sum(torch.nn.Module):
        encoder = model.encoder

        def forward(self, tokens, packing, segments=None):
            return self.encoder.tokens(tokens).view(len(packing.lengths), -1, 16).mul(vector).sum((1, 2))[:, None]

    shares, _, _ = integrated_gradients(Sum(), Document(TOKENS, label=0), IS_WORD, logit(0))
    b, x = ends(model)
    np.testing.assert_allclose(shares, ((x - b) @ vector).numpy(), rtol=1e-9, atol=1e-12)

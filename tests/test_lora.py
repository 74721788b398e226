"""LoRA: the trained model, the merged one and the fast copy are one model, and the base stays as it was."""

import copy

import pytest
import torch
from tiny import GPT_FAMILIES, VOCAB, batch_of, bert_config, gpt, gpt_config, packed, sequences, shake
from torch import nn

from minillm import lora
from minillm.gpt import GPT
from minillm.heads import MaskedLM, SequenceClassifier, TokenClassifier
from minillm.inference import ready
from minillm.modernbert import ModernBERTConfig

MODERN = ModernBERTConfig(VOCAB, max_seq_len=16, num_layers=3, width=16, num_heads=4, window=3)
MODELS = {
    **{name: lambda choices=choices: gpt(**choices) for name, choices in GPT_FAMILIES.items()},
    "bert": lambda: shake(SequenceClassifier(bert_config(), "abc")).eval(),
    "bert, words": lambda: shake(MaskedLM(bert_config(mlp_width=24))).eval(),
    "modernbert": lambda: shake(TokenClassifier(MODERN, "abc")).eval(),
    "gpt, classes": lambda: shake(SequenceClassifier(gpt_config(**GPT_FAMILIES["llama 3"]), "abc")).eval(),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def shaken(model: nn.Module, rank: int = 3) -> nn.Module:
    """With pairs of which neither is 0."""
    lora.adapted(model, rank)
    for i, layer in enumerate(lora.adapters(model).values()):
        generator = torch.Generator().manual_seed(i)
        for pair in (layer.lora_a, layer.lora_b):
            pair.data = torch.randn(pair.shape, generator=generator, dtype=pair.dtype) / 10
    return model


@torch.no_grad()
def outputs(model: nn.Module) -> torch.Tensor:
    tokens, packing = packed(sequences((5, 1, 7)))
    found = model(tokens, packing)
    return model.logits(found) if hasattr(model, "logits") else found


@every_model
def test_it_begins_as_the_model_it_adapts(make):
    assert torch.equal(outputs(lora.adapted(make(), 4)), outputs(make()))


@every_model
def test_trained_merged_and_fast_are_one(make):
    model = shaken(make())
    trained = outputs(model)
    assert (trained - outputs(make())).abs().max() > 1e-2  # the pairs do something
    torch.testing.assert_close(outputs(lora.merged(model)), trained, rtol=1e-11, atol=1e-11)
    if isinstance(model, GPT):
        torch.testing.assert_close(outputs(ready(model)), trained, rtol=1e-11, atol=1e-11)


@every_model
def test_the_definition(make):
    """W + alpha / r · B A, written out, in a model without pairs."""
    model, plain = shaken(make(), rank=2), make()
    for name, layer in lora.adapters(model).items():
        plain.get_submodule(name).weight.data += 32 / 2 * (layer.lora_b @ layer.lora_a).detach()
    torch.testing.assert_close(outputs(model), outputs(plain), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("width", [16, 256])  # 256: packed products and a fused activation
@pytest.mark.parametrize("mlp", ["gelu-erf", "swiglu"])
def test_the_fast_copy_in_the_precisions_of_training(width, mlp):
    model = shaken(gpt(width=width, mlp=mlp).float())
    trained = outputs(model)
    torch.testing.assert_close(outputs(ready(model)), trained, rtol=1e-4, atol=1e-4 * float(trained.abs().max()))
    merged = lora.merged(model)
    assert torch.equal(outputs(ready(model, "int8")), outputs(ready(merged, "int8")))
    model.compute_dtype = merged.compute_dtype = torch.bfloat16
    assert torch.equal(outputs(ready(model)), outputs(ready(merged)))


@every_model
def test_linear_layers_of_blocks_have_pairs_and_all_of_them(make):
    model = lora.adapted(make(), 2)
    expected = {name for name, m in make().named_modules() if isinstance(m, nn.Linear) and "blocks." in name}
    assert lora.adapters(model).keys() == expected
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    pairs = {f"{name}.lora_{which}" for name in expected for which in "ab"}
    heads = {name for name, _ in make().named_parameters() if not name.startswith(model.pretrained)}
    assert learning == pairs | heads


def test_of_a_head_only_what_is_new_learns():
    model = make_classifier(transform_is_trained=True)
    learning = {name for name, p in lora.adapted(model, 2).named_parameters() if p.requires_grad}
    assert {name for name in learning if "lora" not in name} == {"classifier.weight", "classifier.bias"}
    model = make_classifier(transform_is_trained=False)
    learning = {name for name, p in lora.adapted(model, 2).named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"encoder", "transform", "classifier"}


def make_classifier(transform_is_trained):
    model = SequenceClassifier(bert_config(), "ab")
    model.transform_is_trained = transform_is_trained
    return model


@every_model
def test_gradients_are_those_of_the_product(make):
    """dL/dA and dL/dB by the chain rule from the gradient of the merged weight; the base has none."""
    model = shaken(make())
    merged = lora.merged(model)
    for each in (model, merged):
        tokens, packing = packed(sequences((5, 3)))
        labels = torch.tensor([0, 2]) if isinstance(model, SequenceClassifier) else None
        targets = tokens % 3 if isinstance(model, TokenClassifier) else tokens.roll(-1)
        each.loss(batch_of(tokens, packing, targets, labels), 0.5).sum().backward()
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())
    for name, layer in lora.adapters(model).items():
        whole = merged.get_submodule(name).weight.grad
        torch.testing.assert_close(layer.lora_a.grad, layer.scale * layer.lora_b.t() @ whole, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(layer.lora_b.grad, layer.scale * whole @ layer.lora_a.t(), rtol=1e-8, atol=1e-9)


def test_the_base_is_within_the_model():
    model = shaken(gpt())
    before = outputs(model)
    with lora.base(model) as start:
        assert torch.equal(outputs(start), outputs(gpt()))
        assert torch.equal(outputs(ready(start)), outputs(ready(gpt())))
        assert torch.equal(outputs(lora.merged(start)), outputs(gpt()))
    assert torch.equal(outputs(model), before)
    with pytest.raises(KeyError), lora.base(model):
        raise KeyError
    assert torch.equal(outputs(model), before)


def test_a_merged_model_shares_what_has_no_pair():
    model = shaken(gpt(bias=True))
    merged = lora.merged(model)
    shared = {name for name, p in merged.named_parameters() if p is dict(model.named_parameters())[name]}
    adapted = {f"{name}.weight" for name in lora.adapters(model)}
    assert shared == {name for name, _ in gpt(bias=True).named_parameters()} - adapted
    assert merged.output.weight is merged.tokens.weight
    assert not lora.adapters(merged)
    assert lora.adapters(model)
    assert torch.equal(outputs(copy.deepcopy(model)), outputs(model))


def test_frozen_layers_get_no_pair():
    model = gpt()
    model.blocks[0].requires_grad_(False)
    assert all(name.startswith("blocks.1.") for name in lora.adapters(lora.adapted(model, 2)))


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_a_rank_that_cannot_be(rank):
    with pytest.raises(ValueError, match=f"rank {rank} is not between 1 and 16"):
        lora.adapted(gpt(), rank)


def test_without_pairs_nothing_changes():
    model = GPT(gpt_config())
    assert torch.equal(outputs(lora.merged(model)), outputs(model))
    assert lora.merged(model).tokens.weight is model.tokens.weight

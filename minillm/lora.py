"""LoRA: what a published model learns is a product of two thin matrices beside each of its own, which stay as they are.

    y = x (W + s · B A)ᵀ        W (O, I) frozen, A (r, I) and B (O, r) learned, s = alpha / r

(Hu et al. 2021, arXiv:2106.09685.) B begins at 0, so that the model begins as it was. Gradients and the optimiser's
state exist for the pairs alone, which are a hundredth of the model. All linear layers of all blocks have one, those of
the MLPs included, without which less is learned than by training everything; and the learning rate is ten times as high
(Schulman et al. 2025, "LoRA Without Regret").

Letters: N tokens (packed), I inputs, O outputs, r rank.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.layers import Linear

ALPHA = 32.0  # so that one learning rate suits all ranks
LR_FACTOR = 10.0  # times the learning rate that suits all weights


class Adapted(Linear):
    """A linear layer with a pair beside its weight. Queries, keys and values, where they are one product, share A."""

    def __init__(self, linear: Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.is_on = alpha / rank, True
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.uniform_(self.lora_a, -(linear.in_features**-0.5), linear.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.is_on:
            return y
        return torch.addmm(y, self.scale * F.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype).t())

    @torch.no_grad()
    def merged(self) -> Linear:
        """The linear layer that computes the same."""
        plain = Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        if self.is_on:
            plain.weight = nn.Parameter(torch.addmm(self.weight, self.lora_b, self.lora_a, alpha=self.scale))
        return plain


def adapted(model: nn.Module, rank: int, alpha: float = ALPHA) -> nn.Module:
    """The same model, with a pair beside every linear layer of its blocks that is not frozen. Nothing else learns but
    what a head has that did not come with a checkpoint.

    ValueError for a rank that is none, or as large as the layers are.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Linear) and "blocks." in name}
    layers = {name: layer for name, layer in layers.items() if layer.weight.requires_grad}
    most = min((min(layer.weight.shape) for layer in layers.values()), default=0)
    if not 0 < rank <= most:
        raise ValueError(f"rank {rank} is not between 1 and {most}, the width of the narrowest layer that can learn")
    for name, parameter in model.named_parameters():
        if name.startswith(model.pretrained):
            parameter.requires_grad_(False)
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Adapted(layer, rank, alpha))
    return model


def adapters(model: nn.Module) -> dict[str, Adapted]:
    """The layers with a pair, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def merged(model: nn.Module) -> nn.Module:
    """A model without pairs that computes the same. What has none is shared with it, or is the same model."""
    if not adapters(model):
        return model
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for name, layer in adapters(twin).items():
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, layer.merged())
    return twin


@contextmanager
def base(model: nn.Module) -> Iterator[nn.Module]:
    """Within it the model is the one that it began as: the reference of a preference or a KL, at no memory."""
    layers = adapters(model).values()
    for layer in layers:
        layer.is_on = False
    try:
        yield model
    finally:
        for layer in layers:
            layer.is_on = True

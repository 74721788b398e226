"""Optimisers: which rule moves which parameters. Their learning rates follow session.py's schedule."""

from collections.abc import Callable

import torch
from torch import nn

from minillm.errors import UserError

Optimizers = list[torch.optim.Optimizer]


def muon(model: nn.Module, lr: float, embedding_lr: float) -> Optimizers:
    """Muon for the matrices of the blocks, AdamW for everything else: for supervised learning from scratch.

    Muon (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982) orthogonalises the momentum of a matrix, so that
    every direction of it learns at the same speed. It is meant for hidden matrices only, and for clean gradients: under
    REINFORCE, where a step is mostly noise, it moves as far on noise as on signal.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=embedding_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def adamw(model: nn.Module, lr: float, embedding_lr: float) -> Optimizers:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with one rate for the blocks, one for everything else.

    Its step shrinks as the gradients of successive steps disagree. No weight decay.
    """
    blocks = [p for name, p in model.named_parameters() if "blocks." in name]
    chosen = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": blocks, "lr": lr}, {"params": rest, "lr": embedding_lr}]
    return [torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def adamw_under_head(model: nn.Module, lr: float, head_lr: float) -> Optimizers:
    """For classifiers: AdamW with one rate for the encoder and one for its head, which often starts from nothing. What
    came with a checkpoint between the two, as BERT's pooler does, learns like the encoder.

    Weight decay is for matrices alone. UserError for a model without a head.
    """
    if not any(name.startswith("encoder.") for name, _ in model.named_parameters()):
        raise UserError("--optimizer adamw-head is for classifiers; this model has no head of its own")
    pretrained = ("encoder.", "transform.") if model.transform_is_trained else ("encoder.",)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith(pretrained), parameter.ndim == 2), []).append(parameter)
    options = [
        {"params": parameters, "lr": lr if is_pretrained else head_lr, "weight_decay": 0.01 if is_matrix else 0.0}
        for (is_pretrained, is_matrix), parameters in groups.items()
    ]
    return [torch.optim.AdamW(options, betas=(0.9, 0.98), fused=True)]


OPTIMIZERS: dict[str, Callable[[nn.Module, float, float], Optimizers]] = {
    "muon": muon,
    "adamw": adamw,
    "adamw-head": adamw_under_head,
}

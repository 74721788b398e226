"""Optimisers, their schedule, and the budget it follows."""

import time

import torch
from torch import nn


def muon(model: nn.Module, lr: float, embedding_lr: float) -> list[torch.optim.Optimizer]:
    """For supervised learning: Muon for the matrices of the blocks, AdamW for everything else.

    Muon (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982) orthogonalises the momentum of a matrix, so that
    every direction of it learns at the same speed. It is meant for hidden matrices only.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=embedding_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def adamw(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """For reinforcement learning: AdamW for all parameters.

    A policy gradient is mostly noise. Muon gives every step the same size, noise or not, and the policy collapses;
    AdamW's step shrinks as the gradients of successive steps disagree.
    """
    return [torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def adamw_under_head(model: nn.Module, lr: float, head_lr: float) -> list[torch.optim.Optimizer]:
    """For classifiers: AdamW with one rate for the encoder and one for its head, which often starts from nothing.
    Weight decay is for matrices alone.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("encoder."), parameter.ndim == 2), []).append(parameter)
    options = [
        {"params": parameters, "lr": lr if in_encoder else head_lr, "weight_decay": 0.01 if is_matrix else 0.0}
        for (in_encoder, is_matrix), parameters in groups.items()
    ]
    return [torch.optim.AdamW(options, betas=(0.9, 0.98), fused=True)]


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale every learning rate to `factor` times its initial value."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = factor * group["initial_lr"]


def schedule(progress: float, warmup: float) -> float:
    """Share of the peak learning rate at a point of the training from 0 to 1: linear up, linear down to 0."""
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1 - progress) / (1 - warmup))


class Budget:
    """How much of a training is over, counted in steps or in wall-clock minutes."""

    def __init__(self, minutes: float | None, steps: int | None, spent_seconds: float = 0.0):
        self.minutes, self.steps = minutes, steps
        self.start = time.monotonic() - spent_seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def progress(self, step: int) -> float:
        """From 0 to 1 and beyond."""
        return step / self.steps if self.steps else self.seconds / (60 * self.minutes)

"""Optimisers: which rule moves which parameters. Their learning rates follow session.py's schedule."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minillm.errors import UserError
from minillm.wording import counted

Optimizers = list[torch.optim.Optimizer]
Named = Iterable[tuple[str, nn.Parameter]]


def muon(
    model: nn.Module, lr: float, embedding_lr: float, weight_decay: float | None = None, beta2: float | None = None
) -> Optimizers:
    """Muon for the matrices of the blocks, AdamW for everything else: for supervised learning from scratch.

    Muon (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982) orthogonalises the momentum of a matrix, so that
    every direction of it learns at the same speed. It is meant for hidden matrices only, and for clean gradients: under
    REINFORCE, where a step is mostly noise, it moves as far on noise as on signal.
    """
    decay = weight_decay or 0.0
    matrices = {name: p for name, p in learning(model) if p.ndim == 2 and "blocks." in name}
    rest = groups(((name, p) for name, p in learning(model) if name not in matrices), "", embedding_lr, 0.0, decay)
    first = [Muon([*matrices.values()], lr, decay, model.compute_dtype)] if matrices else []
    return first + ([torch.optim.AdamW(rest, betas=(0.9, beta2 or 0.95), fused=True)] if rest else [])


def adamw(
    model: nn.Module, lr: float, embedding_lr: float, weight_decay: float | None = None, beta2: float | None = None
) -> Optimizers:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with one rate for the blocks, one for everything else.

    Its step shrinks as the gradients of successive steps disagree, of more of them the nearer `beta2` is to 1, which
    is 0.95 unless another is given. No weight decay unless it is asked for.
    """
    found = groups(learning(model), ("blocks.", "encoder.blocks."), lr, embedding_lr, weight_decay or 0.0)
    return [torch.optim.AdamW(found, betas=(0.9, beta2 or 0.95), fused=True)]


def adamw_under_head(
    model: nn.Module, lr: float, head_lr: float, weight_decay: float | None = None, beta2: float | None = None
) -> Optimizers:
    """For classifiers: AdamW with one rate for the encoder and one for its head, which often starts from nothing. What
    came with a checkpoint between the two, as BERT's pooler does, learns like the encoder.

    Weight decay is 0.01 unless another is asked for. UserError for a model without a head.
    """
    if not any(name.startswith("encoder.") for name, _ in model.named_parameters()):
        raise UserError("--optimizer adamw-head is for classifiers; this model has no head of its own")
    found = groups(learning(model), model.pretrained, lr, head_lr, 0.01 if weight_decay is None else weight_decay)
    return [torch.optim.AdamW(found, betas=(0.9, beta2 or 0.98), fused=True)]


def learning(model: nn.Module) -> Named:
    """The parameters that learn: all but what `freeze` or LoRA holds fast."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def groups(parameters: Named, main: str | tuple[str, ...], lr: float, other_lr: float, decay: float) -> list[dict]:
    """By learning rate, that of names which begin with `main` first, and by whether they decay: matrices do, embeddings
    among them, but no biases and norms."""
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        found.setdefault((name.startswith(main), decay if parameter.ndim == 2 else 0.0), []).append(parameter)
    return [
        {"params": found[is_main, own], "lr": lr if is_main else other_lr, "weight_decay": own}
        for is_main, own in sorted(found, reverse=True)
    ]


OPTIMIZERS: dict[str, Callable[..., Optimizers]] = {
    "muon": muon,
    "adamw": adamw,
    "adamw-head": adamw_under_head,
}


def optimizers_of(model: nn.Module, args: Any) -> Optimizers:
    """Those that the options of `options.Optimisation` ask for, and behind them, under --ema, the average of the
    weights."""
    chosen = OPTIMIZERS[args.optimizer](model, args.lr, args.embedding_lr, args.weight_decay, args.beta2)
    return [*chosen, Average(model, args.ema)] if vars(args).get("ema") else chosen


def freeze(model: nn.Module, count: int) -> None:
    """Embeddings and the first `count` blocks stay as they are; no gradients are computed for them.

    ValueError where there are fewer blocks.
    """
    if count > (most := model.config.num_layers):
        raise ValueError(f"the model has {counted(most, 'block')}, of which no {count} can stay as they are")
    embeddings = ("tokens.", "positions.", "segments.", "embedding_norm.")
    frozen = (*embeddings, *(f"blocks.{i}." for i in range(count)))
    for name, parameter in model.named_parameters():
        if name.removeprefix("encoder.").startswith(frozen):
            parameter.requires_grad_(False)


class Muon(torch.optim.Optimizer):
    """The momentum of each matrix, with all its singular values made alike, moves it:

        momentum ← 0.95 · momentum + gradient
        matrix ← (1 − lr · decay) · matrix − 0.2 · lr · √(longer side) · polar(gradient + 0.95 · momentum)

    The factor makes a step as long as AdamW's (arXiv:2502.16982). The rule is that of torch.optim.Muon, which always
    orthogonalises in bfloat16, in a tenth of the speed where the processor has none, and one matrix after the other;
    here it is done in the precision of the activations, all matrices of a shape at once.
    """

    MOMENTUM = 0.95

    def __init__(self, matrices: list[nn.Parameter], lr: float, decay: float, dtype: torch.dtype | None):
        super().__init__(matrices, {"lr": lr, "weight_decay": decay})
        self.dtype = dtype or matrices[0].dtype

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in group["params"]:
            if matrix.grad is not None:
                alike[matrix.shape].append(matrix)
        for shape, matrices in alike.items():
            directions = polar(torch.stack([self.direction(matrix) for matrix in matrices]).to(self.dtype))
            for matrix, direction in zip(matrices, directions, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-0.2 * group["lr"] * max(shape) ** 0.5)

    def direction(self, matrix: nn.Parameter) -> Tensor:
        """Its momentum, with a look ahead (Nesterov)."""
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"].mul_(self.MOMENTUM).add_(matrix.grad)
        return matrix.grad + self.MOMENTUM * momentum


def polar(x: Tensor) -> Tensor:
    """(n, r, c): about U Vᵀ of each matrix U S Vᵀ, all singular values between 0.7 and 1.2, by five steps of a
    Newton-Schulz iteration with the coefficients of Jordan et al. 2024, which are steep at 0 and not exact at 1."""
    if x.shape[1] > x.shape[2]:
        return polar(x.mT).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Average(torch.optim.Optimizer):
    """The moving average of the weights over the steps, which is better than any of them (Polyak and Juditsky 1992;
    Tarvainen and Valpola 2017, arXiv:1703.01780):

        average ← d · average + (1 − d) · weights        d = min(decay, (1 + t) / (10 + t)) in step t

    so that what the weights began as is soon forgotten. It stands behind the optimisers, moves nothing itself, and is
    saved with their state.
    """

    def __init__(self, model: nn.Module, decay: float):
        # No rate moves it; a session sets one for all optimisers.
        super().__init__([p for _, p in learning(model)], {"lr": 0.0, "steps": 0})
        self.decay = decay

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        group["steps"] += 1
        decay = min(self.decay, (1 + group["steps"]) / (10 + group["steps"]))
        for parameter in group["params"]:
            state = self.state[parameter]
            state.setdefault("average", parameter.clone()).lerp_(parameter, 1 - decay)

    def swap(self) -> None:
        """The model gets the average, which gets the model's weights, until the next call."""
        for parameter, state in self.state.items():
            parameter.data, state["average"] = state["average"], parameter.data


TENSORS = {torch.optim.AdamW: 2, Muon: 1, Average: 1}  # of a parameter's size, that their state has for each


def state_bytes(optimizers: Optimizers) -> int:
    """What they will hold behind their first step."""
    return sum(
        TENSORS[type(optimizer)] * parameter.numel() * parameter.element_size()
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )


def swap_average(optimizers: Optimizers) -> None:
    """The model and the average of its weights, where there is one, change places."""
    for optimizer in optimizers:
        if isinstance(optimizer, Average):
            optimizer.swap()

"""One model in parts: torchrun --nproc-per-node 2 train_sft.py --shard …

PyTorch's fully_shard (FSDP2; Zhao et al. 2023, arXiv:2304.11277) leaves each rank its part of every weight, of its
gradient and of the optimiser's state. The weights of a block are put together while it computes and dropped behind it;
gradients are added up over all ranks, each of which keeps its part of the sum.

The first rank looks at the dev set and writes the run, and for that alone has the whole model beside its parts: the
weights, not what AdamW holds for each, which is three times as much.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from minillm.batching import Batch
from minillm.errors import UserError
from minillm.ranks import Team, heard

T = TypeVar("T")


class Sharded(nn.Module):
    """Has the loss of a model, as `objective.Model` says, but one whose gradients are the sum over all ranks; of that
    model a rank has its part, `model`."""

    def __init__(self, whole: nn.Module, team: Team):
        """The first rank's `whole` stays one, to be filled by `gather`; that of the others becomes their part."""
        super().__init__()
        self.is_first = team.is_first
        self.model = copy.deepcopy(whole) if team.is_first else whole
        mesh = init_device_mesh(next(whole.parameters()).device.type, (team.size,))
        for block in getattr(self.model, "encoder", self.model).blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for part in self.modules():
            if isinstance(part, FSDPModule):  # the sum, not the mean: what it is divided by stands in the weights
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)

    def forward(self, batch: Batch, *args: Any) -> Tensor:
        losses = self.model.loss(batch, *args)
        return losses * 0 if batch.is_spare else losses

    def loss(self, *args: Any) -> Tensor:
        with heard():
            return self(*args)

    def passes(self, things: Iterable[T]) -> Iterable[T]:
        """These things, each for a backward pass. All of them add up what they found: what waited would be whole."""
        return things

    @torch.no_grad()
    def gather(self, whole: nn.Module) -> None:
        """Puts the parts of all ranks together, and on the first into its model."""
        to = dict(whole.named_parameters())
        for name, parameter in self.model.named_parameters():
            full = parameter.full_tensor()
            if self.is_first:
                to[name].copy_(full)

    def local(self) -> Iterator[Tensor]:
        """What this rank has of each weight."""
        return (parameter.to_local() for parameter in self.model.parameters())

    def split(self, like: Tensor, whole: Tensor) -> Tensor:
        """This rank's part of a tensor that is divided like another, which has its shape."""
        if not isinstance(like, DTensor) or whole.shape != like.shape:
            return whole
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def whole(self, part: Tensor) -> Tensor:
        """A tensor of which each rank has a part, on the host of the first; nothing on the others."""
        if not isinstance(part, DTensor):
            return part
        full = part.full_tensor()
        return full.cpu() if self.is_first else full.new_empty(0)


def sharded(model: nn.Module, team: Team | None, args: Any) -> Sharded:
    """The model in parts. UserError where there is one process, and for options that need what no rank has."""
    if team is None:
        raise UserError("--shard divides a model over several processes: start them with torchrun")
    if args.optimizer == "muon":
        raise UserError(
            "--shard leaves each rank a part of a matrix, and muon needs all of it: give --optimizer adamw and an --lr"
        )
    for name in ("ema", "until", "compile"):
        if vars(args)[name]:
            raise UserError(f"--shard and --{name} exclude each other: leave one out")
    if vars(args.options).get("method") == "kto":
        raise UserError("--shard and --method kto exclude each other: kto asks the model for the KL in every step")
    return Sharded(model, team)

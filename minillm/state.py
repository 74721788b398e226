"""The exact state of a training in one safetensors file, from which it goes on as if it had never stopped.

It holds the weights that learn, the optimisers, how far the training is, and every generator of random numbers:
Python's, numpy's, torch's on the CPU and on every GPU. The file is replaced whole, or not at all.

What else a resumed run takes up: its options (start.resumed), the shape of its model and its tokenizer
(start.resume_start), its log up to the checkpoint (run.cut_log), its place in the data (batching.Corpus.step, which
knows the order of every epoch from the seed alone). That files and data are those it began with: origin.py.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minillm.errors import UserError
from minillm.files import fields_from, read_state, read_tensors, write_tensors
from minillm.wording import counted

FORMAT = 5  # of the file; one of another number is refused
WEIGHTS = "model."
SCORE = "best"  # of the best weights so far, beside them in their file


@dataclass
class Progress:
    """How far a training is; saved with every checkpoint."""

    step: int = 0
    evaluations: int = 0
    records: int = 0  # lines of the log; those beyond are written again
    seconds: float = 0.0  # of the training, from its first step on, which a budget of minutes counts
    of_steps: float = 0.0  # of them, those within steps
    process_seconds: float = 0.0  # of all processes that worked on it, from their beginning on
    best: float | None = None  # the highest score that `keep_if_best` saw
    worse: int = 0  # looks at the dev set since then
    is_over: bool = False  # what remains is to score
    numbers: dict[str, float] = field(default_factory=dict)  # what a script remembers, by name
    totals: dict[str, float] = field(default_factory=dict)  # of what is counted, such as tokens
    lengths: dict[str, float] = field(default_factory=dict)  # how many documents of each were learned from
    targets: float = 0.0  # in them; both of this rank's share
    files: dict[str, str] = field(default_factory=dict)  # digests of what it began with, by name
    data: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # of the task, as it began

    def look(self, score: float) -> None:
        """Counts a look at the dev set, of which a higher score is better."""
        self.worse += 1
        if self.best is None or score > self.best:
            self.best, self.worse = score, 0

    @classmethod
    def of(cls, saved: Mapping[str, Any], path: Path) -> "Progress":
        """From what stands in the checkpoint `path`. UserError."""
        if lacking := vars(cls()).keys() - saved.keys():
            raise UserError(f"{path} is no checkpoint of this training: it lacks {min(lacking)!r}")
        return cls(**fields_from(cls, saved, path))


class Undivided:
    """How the tensors of a model lie that is no sharding.Sharded: all of each on every rank."""

    @staticmethod
    def whole(part: Tensor) -> Tensor:
        return part

    @staticmethod
    def split(like: Tensor, whole: Tensor) -> Tensor:
        return whole


def save(
    path: Path | None,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Mapping,
    division: Any = Undivided,
) -> None:
    """`progress` is what JSON can hold: step, seconds, and whatever else the session needs to go on. UserError.

    Of a divided model all ranks save, and one of them has a path.
    """
    tensors = {WEIGHTS + name: tensor for name, tensor in weights_of(model).items()}
    states = [detach_tensors(o.state_dict(), f"optimizer.{i}", tensors) for i, o in enumerate(optimizers)]
    generators = save_generators(tensors)
    tensors = {name: division.whole(tensor) for name, tensor in tensors.items()}
    if path:
        state = {"format": FORMAT, "optimizers": states, "generators": generators, "progress": dict(progress)}
        write_tensors(path, tensors, state)


def load(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], division: Any = Undivided
) -> dict[str, Any]:
    """Puts model, optimisers and generators into the saved state; returns the saved `progress`. UserError."""
    state = read_state(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path} was written by another version of this program, which goes on with its own runs only; "
            "start a new run, with --init if the old one is finished"
        )
    tensors = read_tensors(path)
    try:
        weights = {name.removeprefix(WEIGHTS): x for name, x in tensors.items() if name.startswith(WEIGHTS)}
        load_weights(model, weights, division)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(attach_tensors(saved, tensors))
            for parameter, own in optimizer.state.items():
                own |= {name: division.split(parameter, x) for name, x in own.items() if isinstance(x, Tensor)}
        load_generators(state["generators"], tensors)
        return dict(state["progress"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{path} is no checkpoint of this training: {error}") from None


def require_ranks(progress: Progress, ranks: int) -> None:
    """UserError where other than so many processes began a training: each draws random numbers of its own."""
    if (began := progress.numbers.get("ranks", 1)) != ranks:
        how = f"torchrun --nproc-per-node {began:.0f}" if began > 1 else "python"
        raise UserError(
            f"this run was begun by {counted(round(began), 'process', 'processes')}, not by {ranks}; go on with {how}"
        )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, by name, a tied one once: those that are frozen are in START, see run.py."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor], division: Any = Undivided) -> None:
    """The reverse; ValueError unless both have the same names and shapes."""
    parameters = weights_of(model)
    if parameters.keys() != weights.keys():
        raise ValueError(f"{min(parameters.keys() ^ weights.keys())!r} is on one side only")
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise ValueError(f"{name!r} has shape {tuple(weights[name].shape)}, not {tuple(parameter.shape)}")
        parameter.copy_(division.split(parameter, weights[name]))


def read_weights(path: Path, model: nn.Module) -> None:
    """Those of a file of `weights_of` a model of this shape. UserError."""
    try:
        load_weights(model, read_tensors(path))
    except ValueError as error:
        raise UserError(f"{path} is of another model: {error}") from None


def read_score(path: Path) -> float:
    """Of the best weights so far. UserError if they are spoiled."""
    read_tensors(path)
    try:
        return float(read_state(path)[SCORE])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no weights of this training: {error}") from None


# ---- generators of random numbers ----------------------------------------------------------------


def save_generators(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """torch's go into `tensors`; the others are returned as JSON can hold them."""
    tensors["rng.cpu"] = torch.get_rng_state()
    for i in range(torch.cuda.device_count()):
        tensors[f"rng.cuda.{i}"] = torch.cuda.get_rng_state(i)
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [kind, keys.tolist(), *rest]}


def load_generators(saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors["rng.cpu"])
    for i in range(torch.cuda.device_count()):
        if (state := tensors.get(f"rng.cuda.{i}")) is not None:
            torch.cuda.set_rng_state(state, i)
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


# ---- trees with tensors in them ------------------------------------------------------------------


def detach_tensors(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON can hold it; its tensors go into `tensors`, with their path in the tree as the name."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[key, detach_tensors(value, f"{name}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [detach_tensors(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]
    return tree


def attach_tensors(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `detach_tensors`, but for tuples, which come back as lists."""
    if isinstance(tree, list):
        return [attach_tensors(value, tensors) for value in tree]
    if isinstance(tree, dict) and "tensor" in tree:
        return tensors[tree["tensor"]].clone()
    if isinstance(tree, dict):
        return {key: attach_tensors(value, tensors) for key, value in tree["dict"]}
    return tree

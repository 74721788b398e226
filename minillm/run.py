"""A run folder: all that a training leaves behind, and the only way in and out of it.

model.safetensors        the weights, and
config.json              the architecture, as checkpoint.py writes them
tokenizer.json           the vocabulary, or whichever files its tokenizer is made of
args.json                the command that made it
log.jsonl                one line a step, one an evaluation
checkpoint.safetensors   weights, optimiser state and progress, for --resume
metrics.json             the final figures; a run that has them is finished
curves.png               the log as a picture
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minillm.errors import UserError
from minillm.files import Tensors, read_json, read_state, write_json, write_tensors, write_text
from minillm.gpt import GPT
from minillm.published import checkpoint
from minillm.tasks import Task, tokens_needed
from minillm.tokenizer import SymbolTokenizer, Tokenizer

Args = TypeVar("Args")  # the options of a script, a dataclass


class Run:
    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def vacant(cls, folder: Path | None, default_name: str) -> "Run":
        """Where a new run may be made; without a folder `runs/NAME`, `runs/NAME-2`, … Never where something is."""
        if folder is None:
            numbered = (
                Path("runs") / f"{default_name}{suffix}" for suffix in ["", *(f"-{n}" for n in range(2, 10**6))]
            )
            folder = next(path for path in numbered if not path.exists())
        run = cls(folder)
        if folder.is_file():
            raise UserError(f"--out {folder} is a file; name a new folder")
        if run.is_finished:
            raise UserError(f"--out {folder} already holds a finished run; name another folder or remove it")
        if run.path("checkpoint.safetensors").exists():
            raise UserError(f"--out {folder} holds an unfinished run; go on with --resume {folder} or remove it")
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--out {folder} is not empty and not a run; name another folder")
        return run

    @classmethod
    def create(cls, folder: Path | None, default_name: str) -> "Run":
        """A new run folder, where `vacant` says."""
        run = cls.vacant(folder, default_name)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder --out {run.folder}: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run."""
        run = cls(folder)
        if not folder.is_dir():
            raise UserError(f"there is no run folder {folder}")
        for name in ("config.json", "args.json"):
            if not run.path(name).exists():
                raise UserError(f"{folder} is not a run: it has no {name}")
        return run

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def is_finished(self) -> bool:
        return self.path("metrics.json").exists()

    # What the run is

    def describe(self, model: nn.Module, tokenizer: Tokenizer, args: Any) -> None:
        """What is known before the first step."""
        write_json(self.path("config.json"), checkpoint.describe(model))
        tokenizer.save(self.folder)
        self.describe_args(args)

    def describe_args(self, args: Any) -> None:
        fields = {k: v and str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        write_json(self.path("args.json"), fields)

    def tokenizer(self) -> SymbolTokenizer:
        return SymbolTokenizer.load(self.path("tokenizer.json"))

    def read_json(self, name: str) -> dict[str, Any]:
        return read_json(self.path(name))

    # Weights and checkpoints

    def save_model(self, model: nn.Module) -> None:
        checkpoint.save(model, self.folder)

    def load_model(self, task: Task | None = None) -> GPT:
        """The model, in evaluation mode; with a task, checked to share its symbols and to have room for it."""
        if self.path("checkpoint.safetensors").exists() and not self.path("model.safetensors").exists():
            raise UserError(f"{self.folder} is not finished; go on with --resume {self.folder} first")
        saved = checkpoint.open_checkpoint(self.folder)
        limit = f"max_seq_len={saved.config.max_seq_len} of {self.folder}"
        if task and self.tokenizer().symbols != task.tokenizer.symbols:
            raise UserError(f"{self.folder} was trained on other symbols than those of --task {task.name} here")
        if task and (needed := tokens_needed(task)) > saved.config.max_seq_len:
            raise UserError(f"{limit} is too short: a prompt with its answer takes up to {needed} tokens")
        return saved.load("lm")

    def save_checkpoint(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], progress: dict) -> None:
        """`progress` is what JSON can hold: step, seconds, and whatever else the script needs to go on."""
        tensors = {f"model.{name}": tensor for name, tensor in weights_of(model).items()}
        tensors["rng"] = torch.get_rng_state()
        states = [detach_tensors(o.state_dict(), f"optimizer.{i}", tensors) for i, o in enumerate(optimizers)]
        write_tensors(self.path("checkpoint.safetensors"), tensors, {"optimizers": states, "progress": progress})

    def load_checkpoint(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict:
        """Put model, optimisers and torch's generator into the saved state; returns the saved `progress`."""
        path = self.path("checkpoint.safetensors")
        tensors, state = dict(Tensors([path])), read_state(path)
        prefix = "model."
        weights = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        checkpoint.copy_weights(model, weights, path)
        try:
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(attach_tensors(saved, tensors))
            torch.set_rng_state(tensors["rng"])
            return state["progress"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no checkpoint of this training: {error}") from None

    # What happened

    def log(self, **record: Any) -> None:
        try:
            with self.path("log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path('log.jsonl')}: {error.strerror}") from None

    def read_log(self) -> list[dict[str, Any]]:
        if not self.path("log.jsonl").exists():
            return []
        lines = self.path("log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be torn

    def cut_log(self, last_step: int) -> None:
        """Forget what came after the checkpoint from which a run goes on."""
        kept = [record for record in self.read_log() if record["step"] <= last_step]
        write_text(self.path("log.jsonl"), "".join(json.dumps(record) + "\n" for record in kept))

    def finish(self, metrics: Mapping[str, float]) -> None:
        write_json(self.path("metrics.json"), dict(metrics))


def resumed(args: Args) -> Args:
    """The options that the interrupted run --resume was started with."""
    run = Run.open(args.resume)
    if run.is_finished:
        raise UserError(f"{args.resume} is finished; to train its model further use --init {args.resume}")
    saved = run.read_json("args.json")
    paths = {name: Path(saved[name]) for name in ("out", "init", "train", "dev", "test") if saved.get(name)}
    names = {field.name for field in dataclasses.fields(args)}
    if saved.keys() != names:
        raise UserError(f"{args.resume} is a run of another script; resume it with the script that made it")
    return dataclasses.replace(type(args)(**{**saved, **paths}), resume=args.resume)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, a tied one once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


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

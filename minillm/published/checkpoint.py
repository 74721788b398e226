"""Models in and out of files: in the layout of Hugging Face where one of its families is what we have, else in our own.

What differs from family to family is data, in families/. Nothing here runs code that comes with a model.
"""

import logging
import re
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm.embedder import SentenceEmbedder
from minillm.errors import UserError, require_path
from minillm.files import Tensors, read_json, write_json, write_tensors
from minillm.heads import TokenClassifier
from minillm.inference import ready
from minillm.process import return_freed_memory
from minillm.published import sentences
from minillm.published.families import FAMILIES
from minillm.published.families.base import Family, Fields, Head
from minillm.published.families.gpt import OWN
from minillm.published.gguf_model import open_gguf
from minillm.published.hub import download
from minillm.published.weights import WEIGHTS, allocate, copy_weights, sources, theirs_of, weight_files

log = logging.getLogger("minillm")

PROBLEMS = {"classify": ("single_label_classification",), "multi": ("multi_label_classification",)}  # by head


# ---- in ------------------------------------------------------------------------------------------


def resolve(name: str | Path) -> Path:
    """Where a model lies: a folder, a .gguf file, or the id of a model on the hub, which is downloaded once.

    UserError if there is none of that name.
    """
    path = Path(name)
    if not str(name).strip() or len(str(name)) > 4000:
        raise UserError(f"{str(name)[:20]!r} is no name of a model; give a folder, a .gguf file or an id of the hub")
    require_path(path, "the model")
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise UserError(f"{path} is one file; name the folder that it lies in, or a .gguf file")
    if path.suffix == ".gguf" or not re.fullmatch(r"([\w.-]+/)?[\w.-]+", str(name)):
        raise UserError(f"there is no folder or .gguf file {name}, and it is no id of the hub such as owner/name")
    if len(path.parts) > 1 and (path.parts[0] == "runs" or path.parent.is_dir()):  # hardly an id, then
        raise UserError(f"there is no folder {name}")
    return download(str(name))


@dataclass(frozen=True)
class Checkpoint:
    """What a model is, with its tensors, none of which has been read yet."""

    path: Path
    fields: dict[str, Any]  # config.json
    tensors: Mapping[str, Tensor]  # by their names; each is read when it is asked for

    @property
    def where(self) -> Path:
        """The file that `fields` are from."""
        return self.path / "config.json" if self.path.is_dir() else self.path

    @cached_property
    def family(self) -> Family:
        if "architecture" in self.fields:
            return OWN
        model_type = self.fields.get("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise UserError(f"{self.where}: model_type={model_type!r} is not supported, only {known}")
        return FAMILIES[model_type]

    @cached_property
    def config(self) -> Any:
        if method := self.fields.get("quantization_config"):
            kind = method.get("quant_method") if isinstance(method, dict) else method
            raise UserError(f"{self.path}: quantization_config {kind!r} is not supported; use the model before it")
        try:
            return self.family.config_from(Fields(self.fields))
        except (ValueError, TypeError, ArithmeticError) as error:
            raise UserError(f"{self.where}: {error}") from None

    @property
    def architecture(self) -> Any:
        """What config.json calls the model; None where it doesn't say."""
        name = self.fields.get("architecture") or self.fields.get("architectures") or None
        return name[0] if isinstance(name, list) else name

    @cached_property
    def head_name(self) -> str:
        """What config.json says it is, or else the tensors, as one of the family's heads."""
        if self.architecture is None:
            return self.family.head_in(self.tensors)
        known: dict[str, str] = {}
        for key, head in self.family.heads.items():
            for name in (head.architecture, *head.also):
                known.setdefault(name, key)  # where two share a name, the first counts
        if not isinstance(self.architecture, str) or self.architecture not in known:
            raise UserError(f"{self.where}: architecture {self.architecture} is not supported, only {', '.join(known)}")
        name = known[self.architecture]
        return "multi" if name == "classify" and self.problem_type == self.family.heads["multi"].problem_type else name

    @property
    def problem_type(self) -> Any:
        """How config.json says that a classifier's outputs are to be read; None where it doesn't."""
        return self.fields.get("problem_type")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of a classifier's outputs, in their order; empty where config.json has none."""
        if (names := self.fields.get("id2label")) is None:
            return ()
        try:
            by_id = {int(i): name for i, name in names.items()}
        except (ValueError, AttributeError) as error:
            raise UserError(f"{self.where}: id2label is no table of classes: {error}") from None
        classes = [by_id.get(i) for i in range(len(names))]
        classes = [str(name) if isinstance(name, int) else name for name in classes]
        if not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
            raise UserError(f"{self.where}: id2label does not give the numbers from 0 on a name of their own each")
        return tuple(classes)

    @property
    def has_one_output(self) -> bool:
        """Whether a classifier gives every text a number, and not the probabilities of classes."""
        return len(self.classes or self.numbered_classes(self.family.heads["classify"])) == 1

    def matching_classes(self, classes: Sequence[str]) -> tuple[str, ...] | None:
        """These classes in the order of the checkpoint's outputs; None if it has others, or none. Of a single output
        the name says nothing."""
        try:
            if len(classes) == len(self.classes) == 1:
                return tuple(classes)
            return self.classes if sorted(self.classes) == sorted(classes) else None
        except UserError:
            return None

    @cached_property
    def sequence_classes(self) -> tuple[str, ...]:
        """Of a tagger that also says of what class a whole sequence is, in the order of its outputs; else empty."""
        names = self.fields.get("sequence_classes", [])
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not is_list or len(set(names)) < len(names):
            raise UserError(f"{self.where}: sequence_classes={names!r} is no list of different names")
        return tuple(names)

    def matching_sequence_classes(self, classes: Sequence[str]) -> tuple[str, ...] | None:
        """As `matching_classes`."""
        try:
            return self.sequence_classes if sorted(self.sequence_classes) == sorted(classes) else None
        except UserError:
            return None

    def load(
        self,
        head: str | None = None,
        classes: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        sequence_classes: Sequence[str] = (),
        may_be_new: bool = False,
    ) -> nn.Module:
        """The model, on the CPU, in evaluation mode, its parameters in `dtype`.

        head      "lm", "mlm", "classify", "score", "reward", "tag", "embed" or "encoder", as far as the family has it;
                  None: what config.json says
        classes   the classes of a new classifier. It starts from random numbers, which is logged, unless the checkpoint
                  has one for these very classes.
        sequence_classes    with `classes`, those of a new tagger's whole sequences, likewise
        may_be_new    whether a head without classes may start so, too, where the checkpoint has none

        At any time only the model and one tensor are in memory. UserError if a tensor is missing, left over or of
        another shape, or if config.json asks for what we don't have.
        """
        kind, config = head or self.head_name, self.config
        if kind not in self.family.heads:
            if kind == "lm":
                raise UserError(f"{self.path}: this is a BERT, which writes no texts: that takes a GPT")
            raise UserError(f"{self.path}: this is a GPT, and the head {kind!r} takes a BERT")
        if config.num_layers > len(self.tensors):
            raise UserError(f"{self.where}: {config.num_layers} layers, but there are only {len(self.tensors)} tensors")
        spec = self.family.heads[kind]
        options = self.options(kind, classes, sequence_classes)
        with torch.device("meta"):  # shapes without memory: there is no initialisation to wait for
            model = spec.model(config, **options)
        new = self.new_parameters(model, spec) if classes or may_be_new else set()
        if new:
            model = spec.model(config, **options)
            log.warning("%s: new, from random numbers: %s", self.path, ", ".join(sorted(new)))
        if hasattr(model, "transform_is_trained"):
            transform = {name for name, _ in model.named_parameters() if name.startswith("transform.")}
            model.transform_is_trained = bool(transform) and not transform & new
            model.head_is_trained = "classifier.weight" not in new
        self.fill(model, spec, new, dtype)
        return model.eval()

    def options(self, kind: str, classes: Sequence[str] | None, sequence_classes: Sequence[str]) -> dict[str, Any]:
        """What a model for `kind` is made of besides its config."""
        if kind == "embed":
            return sentences.read_recipe(self.path)
        spec = self.family.heads[kind]
        if not spec.has_classes:
            return {}
        names = tuple(classes or self.classes or self.numbered_classes(spec))
        if not names:
            raise UserError(f"{self.path} names no classes: it is no classifier yet")
        if kind in PROBLEMS and not classes:
            self.check_problem(kind, len(names))
        if kind == "tag":
            return {"classes": names, "sequence_classes": tuple(sequence_classes) if classes else self.sequence_classes}
        return {"classes": names}

    def fill(self, model: nn.Module, spec: Head, new: Collection[str], dtype: torch.dtype) -> None:
        try:
            allocate(model, dtype)
        except RuntimeError as error:
            raise UserError(f"{self.where}: there is no memory for a model of these sizes: {error}") from None
        tensors = self.tensors
        if isinstance(model, SentenceEmbedder) and model.projections:
            tensors = ChainMap(sentences.projection_tensors(self.path), tensors)
        copy_weights(model, tensors, self.path, self.family, spec, new)

    def new(self, head: str | None = None) -> nn.Module:
        """A model of this shape, from random numbers; of which head is as in `load`."""
        spec = self.family.heads[head or self.head_name]
        outputs = (self.classes,) if spec.has_classes else ()
        more = (self.sequence_classes,) if self.head_name == "tag" else ()
        model = spec.model(self.config, *outputs, *more)
        if hasattr(model, "transform_is_trained"):
            model.transform_is_trained = self.fields.get("transform_is_trained") is True
        return model

    def new_parameters(self, model: nn.Module, spec: Head) -> set[str]:
        """Those of a new head that the checkpoint doesn't have, or has for other classes."""
        found = {self.family.plain(name) for name in self.tensors}
        own = [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
        theirs = {name: map(self.family.plain, sources(name, self.family, spec)[1]) for name in own}
        absent = {name for name in own if not found.issuperset(theirs[name])}
        if not spec.has_classes:
            return absent
        outdated = ["classifier."] if model.classes != self.matching_classes(model.classes) else []
        if isinstance(model, TokenClassifier) and model.sequence_classes != self.matching_sequence_classes(
            model.sequence_classes
        ):
            outdated.append("sequence_classifier.")
        return absent | {name for name in own if name.startswith(tuple(outdated))}

    def numbered_classes(self, spec: Head) -> tuple[str, ...]:
        """LABEL_0, LABEL_1, … for the outputs of a classifier without names, as transformers calls them."""
        sought = self.family.plain(sources("classifier.weight", self.family, spec)[1][0])
        found = next((name for name in self.tensors if self.family.plain(name) == sought), None)
        return () if found is None else tuple(f"LABEL_{i}" for i in range(len(self.tensors[found])))

    def check_problem(self, kind: str, num_outputs: int) -> None:
        """UserError unless the outputs mean what is asked for. A single one may also be a score."""
        known = PROBLEMS[kind] + (("regression",) if kind == "classify" and num_outputs == 1 else ())
        if self.problem_type not in (None, *known):
            raise UserError(
                f"{self.where}: problem_type={self.problem_type!r} is not supported, only {' or '.join(known)}"
            )


def open_checkpoint(path: Path) -> Checkpoint:
    """A folder in Hugging Face's layout, a run, or a GGUF file. UserError, in one sentence, for what it isn't."""
    if path.suffix == ".gguf":
        return Checkpoint(path, *open_gguf(path))
    if not (path / "config.json").is_file():
        raise UserError(f"{path} holds no model: it has no config.json")
    return Checkpoint(path, read_json(path / "config.json"), Tensors(weight_files(path)))


def load(
    path: Path,
    head: str | None = None,
    classes: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    sequence_classes: Sequence[str] = (),
) -> nn.Module:
    """The model of a checkpoint, see `Checkpoint.load`."""
    return open_checkpoint(path).load(head, classes, dtype, sequence_classes)


def load_ready(
    saved: Checkpoint, dtype: torch.dtype, quantize: str | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """The GPT of a checkpoint, ready to generate in that dtype; the weights as they were loaded are freed."""
    model = saved.load("lm", dtype=torch.float32 if quantize else dtype).to(device)
    model = ready(model, quantize)
    return_freed_memory()
    return model


# ---- out -----------------------------------------------------------------------------------------


def family_of(model: nn.Module) -> tuple[Family, Head]:
    """The first family whose config.json can say all that the model is."""
    for family in (*FAMILIES.values(), OWN):
        head = family.head_of(model)
        if head and family.covers(model.config):
            return family, head
    raise TypeError(f"{type(model).__name__} of {model.config} has no form in files")


def describe(model: nn.Module, **more: Any) -> dict[str, Any]:
    """config.json; `more` are entries that other libraries ask for, such as eos_token_id."""
    family, head = family_of(model)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if family is OWN:
        fields = {"architecture": head.architecture, **family.config_to(model.config)}
    else:
        fields = {"architectures": [head.architecture], "model_type": family.model_type, "dtype": dtype}
        fields |= family.config_to(model.config)
    if head.has_classes:
        fields["id2label"] = {str(i): name for i, name in enumerate(model.classes)}
        fields["label2id"] = {name: i for i, name in enumerate(model.classes)}
        if head.problem_type:
            fields["problem_type"] = head.problem_type
        if isinstance(model, TokenClassifier) and model.sequence_classes:
            fields["sequence_classes"] = list(model.sequence_classes)
    if getattr(model, "transform_is_trained", False):
        fields["transform_is_trained"] = True  # for a run that goes on
    return {**fields, **more}


def save(model: nn.Module, folder: Path, **more: Any) -> None:
    """config.json and model.safetensors, for `load` and, if it is of one of their families, for transformers.

    `more` goes into config.json, such as eos_token_id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", describe(model, **more))
    tensors = theirs_of(model, *family_of(model))
    if isinstance(model, SentenceEmbedder):
        tensors = sentences.write_recipe(model, folder, tensors)
    write_tensors(folder / WEIGHTS, tensors)

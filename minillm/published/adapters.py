"""What LoRA has learned, in and out of the files of peft: adapter_model.safetensors and adapter_config.json.

peft knows a pair by the name of the layer in transformers: base_model.model.NAME.lora_A.weight (r, I) and lora_B.weight
(O, r). Where one product of ours is several of theirs, such as queries, keys and values, each gets the same A and its
rows of B. What was learned in full, as a new classifier, is there whole, and its module among `modules_to_save`.
"""

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm.errors import UserError
from minillm.files import Tensors, read_json, write_json, write_tensors
from minillm.gpt import GPT
from minillm.heads import SequenceClassifier, TokenClassifier
from minillm.lora import adapters
from minillm.published.checkpoint import Checkpoint, family_of
from minillm.published.families.base import Family, Fields, Head
from minillm.published.weights import listed, shares, sources
from minillm.wording import counted

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
TASKS = {GPT: "CAUSAL_LM", SequenceClassifier: "SEQ_CLS", TokenClassifier: "TOKEN_CLS"}  # as peft calls them
HEADS = {"CAUSAL_LM": "lm", "SEQ_CLS": "classify", "TOKEN_CLS": "tag"}  # as published/families does
# Entries of adapter_config.json by which the product of a pair is what it is here, whatever they say. Any other that
# is set asks for a variant.
HARMLESS = {
    *("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "init_lora_weights"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode", "fan_in_fan_out"),
    *("megatron_core", "qalora_group_size"),
}


# ---- out -----------------------------------------------------------------------------------------


def save(model: nn.Module, folder: Path, base: str | None) -> None:
    """The pairs of a model that was `lora.adapted`, and what of its head was learned. `base`: what it began as."""
    family, head = family_of(model)
    tensors: dict[str, Tensor] = {}
    modules = set()
    for name, layer in adapters(model).items():
        rule, theirs = sources(f"{name}.weight", family, head)
        for module, rows in zip(theirs, shares(rule, model.config, layer.lora_b.detach()), strict=True):
            module = module.removesuffix(".weight")
            tensors |= {PREFIX + module + A: layer.lora_a.detach().clone(), PREFIX + module + B: rows.clone()}
        modules.update(module.rpartition("*.")[2] for module in rule.theirs)
    whole = learned_whole(model, family, head)
    folder.mkdir(exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors | {PREFIX + name: tensor for name, tensor in whole.items()})
    rank, scale = len(layer.lora_a), layer.scale
    settings = {
        "peft_type": "LORA",
        "task_type": next((name for kind, name in TASKS.items() if isinstance(model, kind)), None),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": round(scale * rank, 6),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": rule.transpose,
        "target_modules": sorted(modules),
        "modules_to_save": sorted({family.plain(name).split(".")[0] for name in whole}) or None,
    }
    write_json(folder / CONFIG, settings)


def learned_whole(model: nn.Module, family: Family, head: Head) -> dict[str, Tensor]:
    """A head of which something was learned, by their names."""
    own = {name: p for name, p in model.named_parameters() if hasattr(model, "encoder") and name[:8] != "encoder."}
    if not any(parameter.requires_grad for parameter in own.values()):
        return {}
    return {sources(name, family, head)[1][0]: parameter.detach().clone() for name, parameter in own.items()}


# ---- in ------------------------------------------------------------------------------------------


@torch.no_grad()
def merged(path: Path, base: Checkpoint, classes: Sequence[str] = ()) -> nn.Module:
    """The model of `base`, in float32, with the adapter of the folder `path` in its weights: W + alpha / r · B A.

    classes   names for the outputs of a classifier that is the adapter's own; without them those that the base has, or
              numbers

    UserError for an adapter that is no plain LoRA, or not of this base: each of its tensors is accounted for.
    """
    settings, tensors = read_settings(path), Tensors([path / WEIGHTS])
    left = {base.family.plain(name.removeprefix(PREFIX)): name for name in tensors}
    whole = {name: tensors[full] for name, full in left.items() if not name.endswith((A, B))}
    kind = HEADS.get(settings.get("task_type")) or base.head_name
    if kind not in base.family.heads:
        raise UserError(f"{path} is for {kind!r}, which is nothing that {base.path} can do")
    spec = base.family.heads[kind]
    model = completed(base, spec, whole, classes).load(kind)
    for name, parameter in model.named_parameters():
        rule, theirs = sources(name, base.family, spec)
        for their_name, part in zip(theirs, shares(rule, model.config, parameter), strict=True):
            module = base.family.plain(their_name).removesuffix(".weight")
            if {module + A, module + B} <= left.keys():
                add_product(part, *(tensors[left.pop(module + end)] for end in (A, B)), settings, f"{path}: {module}")
    if unknown := left.keys() - whole.keys():
        raise UserError(f"{path} holds {listed(list(unknown))}, beside which {base.path} has no weight of its own")
    return model


def read_settings(path: Path) -> dict[str, Any]:
    """adapter_config.json. UserError where it asks for what is no plain LoRA."""
    settings = read_json(path / CONFIG)
    where, fields = path / CONFIG, Fields(settings)
    try:
        fields.expect("peft_type", "LORA")
        fields.expect("bias", "none")
        fields.expect("init_lora_weights", True, False, "gaussian", "orthogonal", "eva")  # others change the base
        fields.size("r")
        fields.number("lora_alpha")
        fields.flag("use_rslora", False)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if variants := sorted(key for key, value in settings.items() if value and key not in HARMLESS):
        raise UserError(
            f"{where}: {variants[0]} is set, which is a LoRA that cannot be merged here; merge it with peft"
        )
    return settings


def completed(base: Checkpoint, spec: Head, whole: dict[str, Tensor], classes: Sequence[str]) -> Checkpoint:
    """The base with what was learned whole in place of its own, and with names for the outputs of a classifier."""
    names = {base.family.plain(name): name for name in base.tensors}
    tensors = ChainMap({names.get(name, name): tensor for name, tensor in whole.items()}, base.tensors)
    fields = dict(base.fields)
    classifier = base.family.plain(sources("classifier.weight", base.family, spec)[1][0])
    if spec.has_classes and classifier in whole:
        count = len(whole[classifier])
        own = base.classes if len(base.classes) == count else [f"LABEL_{i}" for i in range(count)]
        if len(classes or own) != count:
            outputs, names = counted(count, "output"), counted(len(classes), "name")
            raise UserError(f"the classifier of the adapter has {outputs}, but there are {names}")
        fields["id2label"] = dict(enumerate(classes or own))
    return replace(base, fields=fields, tensors=tensors)


def add_product(part: Tensor, a: Tensor, b: Tensor, settings: dict[str, Any], where: str) -> None:
    """part (O, I) += s · b (O, r) a (r, I). UserError."""
    if a.ndim != 2 or b.ndim != 2 or (len(b), *a.shape) != (len(part), b.shape[1], part.shape[1]):
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise UserError(f"{where} has a pair of shapes {shapes}, which is not for a weight of {tuple(part.shape)}")
    rank = len(a) ** 0.5 if settings.get("use_rslora") else len(a)  # arXiv:2312.03732
    part.addmm_(b.float(), a.float(), alpha=settings["lora_alpha"] / rank)
    if not part.isfinite().all():
        raise UserError(f"{where} holds NaN or infinite values")

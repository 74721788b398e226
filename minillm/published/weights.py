"""The tensors of a checkpoint into the parameters of a model, and back: every one is accounted for.

What they are called, and how they lie there, is a family's table, see families/base.py.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm.errors import UserError
from minillm.files import read_json
from minillm.published.families.base import Family, Head, Rule

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # names the file of each tensor where there are several
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
            raise UserError(f"{folder / INDEX} names no files of this folder in its weight_map")
        return [folder / name for name in sorted(set(names.values()))]
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        raise UserError(
            f"{folder} has its weights only as a pickle ({pickles[0]}), which can run any code when it is opened; "
            "convert it with transformers, if you trust it: AutoModel.from_pretrained(…).save_pretrained(…)"
        )
    raise UserError(f"{folder} has no weights: there is no {WEIGHTS}")


def allocate(model: nn.Module, dtype: torch.dtype) -> None:
    """Gives every parameter memory, without values where it had none, and keeps shared ones shared."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for names in places.values():
        old = model.get_parameter(names[0])
        new = nn.Parameter(torch.empty_like(old, dtype=dtype, device="cpu") if old.is_meta else old.detach().to(dtype))
        for name in names:
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, new)


def sources(parameter: str, family: Family, head: Head) -> tuple[Rule, list[str]]:
    """How a parameter of ours is made from theirs, whose names have their prefix where such files have one."""
    name = parameter.removeprefix("encoder.")
    rule = family.rule(name, head)
    prefix = "" if head.is_bare or rule in head.rules else family.prefix
    return rule, [prefix + theirs for theirs in rule.names(name)]


def shares(rule: Rule, config: Any, parameter: Tensor) -> list[Tensor]:
    """The parameter as views, one for each of theirs that it is stacked from."""
    count = len(rule.theirs)
    return list(parameter.split(list(rule.rows(config)) if rule.rows else len(parameter) // count))


@torch.no_grad()
def copy_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    family: Family,
    head: Head,
    new: Collection[str] = (),
) -> None:
    """Fills all parameters but the `new` ones, one tensor at a time. Every tensor is accounted for: UserError."""
    try:
        left = family.by_plain_name(tensors)
    except ValueError as error:
        raise UserError(f"{path} {error}") from None
    needed = dict(model.named_parameters())
    steps = []  # (its parameter is needed, its rule, where it goes, what it is called there)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        rule, theirs = sources(name, family, head)
        for source, part in zip(theirs, shares(rule, model.config, parameter), strict=True):
            found = left.pop(family.plain(source), None)
            if name not in new:
                steps.append((name in needed, rule, part, source, found))
    missing = [source for is_needed, _, _, source, found in steps if is_needed and found is None]
    unexpected = [name for name in left.values() if not family.is_known(name, head)]
    if missing:
        raise UserError(f"{path} lacks {listed(missing)}, which this architecture needs")
    if unexpected:
        raise UserError(f"{path} holds {listed(unexpected)}, which this architecture does not have")
    wrong = []
    for is_needed, rule, part, source, found in steps:
        if found is not None:
            wrong += copy_tensor(tensors[found], part, rule, source, is_needed)
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}")


def copy_tensor(tensor: Tensor, part: Tensor, rule: Rule, name: str, is_needed: bool) -> list[str]:
    """Into the part of a parameter that it belongs to; or what is wrong with it."""
    if rule.transpose and part.ndim == 2:
        part = part.T
    if not tensor.is_floating_point():
        return [f"{name!r} is of {tensor.dtype}, not floating point"]
    if tensor.shape != part.shape:
        return [f"{name!r} has shape {tuple(tensor.shape)}, but this architecture needs {tuple(part.shape)}"]
    if is_needed:
        part.copy_(tensor)
        if not all(extreme.isfinite() for extreme in part.aminmax()):
            return [f"{name!r} holds NaN or infinite values"]
    elif not torch.equal(tensor.to(part), part):
        return [f"{name!r} should be tied to another tensor, but has other values"]
    return []


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, sorted(names)[:3])) + more


def theirs_of(model: nn.Module, family: Family, head: Head) -> dict[str, Tensor]:
    """The parameters as the model's family calls and stores them, a tied one once."""
    tensors = {}
    for name, parameter in model.named_parameters():
        rule, theirs = sources(name, family, head)
        for target, part in zip(theirs, shares(rule, model.config, parameter.detach()), strict=True):
            tensors[target] = part.T.contiguous() if rule.transpose and part.ndim == 2 else part.clone()
    return tensors | {second: tensors[first].clone() for second, first in family.twins.items() if first in tensors}

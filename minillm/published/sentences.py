"""How a text becomes one embedding, in the files of sentence-transformers that lie beside a checkpoint.

modules.json                          what hidden states go through: encoder, pooling, projections, normalisation
1_Pooling/config.json                 which tokens an embedding is made of
2_Dense/config.json                   a projection, its weights beside it
sentence_bert_config.json             how many tokens of a text are read; early files are called after other families;
                                      where it doesn't say, the tokenizer's own limit counts
config_sentence_transformers.json     how many columns an embedding keeps, and how two are compared
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.embedder import PROJECTION_ACTIVATIONS, Projection, SentenceEmbedder
from minillm.errors import UserError
from minillm.files import Tensors, read_json, write_json, write_tensors
from minillm.published.families.base import Fields
from minillm.published.weights import WEIGHTS, weight_files

POOLING = "1_Pooling"
COMPARISON = "config_sentence_transformers.json"
LIMITS = tuple(f"sentence_{f}_config.json" for f in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta"))
MODES = {  # theirs, before and since their version 5 → ours
    "mean_tokens": "mean",
    "mean": "mean",
    "cls_token": "first",
    "cls": "first",
    "lasttoken": "last",
}
DENSE = {"in_features", "out_features", "bias", "activation_function", "use_residual"}
INPUTS = {"module_input_name", "module_output_name"}  # what a module reads and writes
PARAMETER = "projections."  # how `SentenceEmbedder` calls those of the projections


# ---- in ------------------------------------------------------------------------------------------


def read_recipe(folder: Path) -> dict[str, Any]:
    """The options of `SentenceEmbedder` in a checkpoint; empty where the files have nothing about it.

    UserError where they ask for what it doesn't do.
    """
    recipe: dict[str, Any] = {}
    if modules := read_modules(folder):
        recipe["normalise"] = modules[-1][0] == "Normalize"
        recipe["projections"] = [read_dense(path) for kind, path in modules if kind == "Dense"]
    if modules or (folder / POOLING / "config.json").is_file():
        recipe["pooling"] = read_pooling(folder / POOLING / "config.json")
    if path := next((folder / name for name in LIMITS if (folder / name).is_file()), None):
        recipe |= read_limit(path)
    return recipe | read_comparison(folder / COMPARISON)


@contextmanager
def fields_of(path: Path) -> Iterator[Fields]:
    """What is in a file. A ValueError about it becomes a UserError that names the file."""
    values = read_json(path) if path.is_file() else {}
    try:
        yield Fields(values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_modules(folder: Path) -> list[tuple[str, Path]]:
    """What hidden states go through, and the folder that describes it; empty where there is no such file."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules = [module if isinstance(module, dict) else {} for module in read_json(path, list)]
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    places = [folder / str(module.get("path", "")) for module in modules]
    middle = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
        raise UserError(
            f"{path}: embeddings that go through {', '.join(kinds) or 'nothing'} are not supported, "
            "only through Transformer, Pooling, any number of Dense and perhaps Normalize"
        )
    if (where := modules[1].get("path")) != POOLING:
        raise UserError(f"{path}: a description of the pooling in {where!r} is not supported, only in {POOLING!r}")
    for kind, place in zip(kinds[2:], places[2:], strict=True):
        if place.parent != folder:
            raise UserError(f"{path}: a description of {kind} in {place} is not supported, only in a folder beside it")
        check_keys(place / "config.json", INPUTS | (DENSE if kind == "Dense" else set()))
    return list(zip(kinds, places, strict=True))


def check_keys(path: Path, known: set[str]) -> None:
    """UserError for others, and for a module that reads or writes anything but the embedding."""
    with fields_of(path) as fields:
        for key in fields.values.keys() - known:
            raise ValueError(f"{key!r} is unknown")
        for key in INPUTS:
            fields.expect(key, "sentence_embedding")


def read_dense(folder: Path) -> Projection:
    with fields_of(folder / "config.json") as fields:
        fields.expect("use_residual", False)
        named = str(fields.get("activation_function", "torch.nn.modules.activation.Tanh"))
        activation = named.rpartition(".")[2]
        if not named.startswith("torch.") or activation not in PROJECTION_ACTIVATIONS:
            known = ", ".join(PROJECTION_ACTIVATIONS)
            raise ValueError(f"activation_function={named!r} is not supported, only torch's {known}")
        return Projection(fields.count("out_features"), fields.flag("bias", True), activation)


def projection_tensors(folder: Path) -> dict[str, Tensor]:
    """By the names that `SentenceEmbedder` has for them."""
    places = [path for kind, path in read_modules(folder) if kind == "Dense"]
    return {
        f"{PARAMETER}{i}.{name.removeprefix('linear.')}": tensor
        for i, place in enumerate(places)
        for name, tensor in Tensors(weight_files(place)).items()
    }


def read_limit(path: Path) -> dict[str, Any]:
    with fields_of(path) as fields:
        limit = fields.get("max_seq_length")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise ValueError(f"max_seq_length={limit!r} is no number of tokens")
        return {"max_seq_len": limit, "lower_case": fields.flag("do_lower_case", False)}


def read_comparison(path: Path) -> dict[str, Any]:
    with fields_of(path) as fields:
        if (prompt := fields.get("default_prompt_name")) is not None:
            raise ValueError(f"a prompt put before every text, here {prompt!r}, is not supported")
        fields.expect("similarity_fn_name", "cosine", "dot")
        width = fields.count("truncate_dim", 0)
        if width < 0 or fields.get("truncate_dim") == 0:
            raise ValueError(f"truncate_dim={width} is no number of columns")
        return {"similarity": fields.get("similarity_fn_name", "cosine"), "width": width or None}


def read_pooling(path: Path) -> str:
    fields = read_json(path)
    modes = {name.removeprefix("pooling_mode_") for name, on in fields.items() if on is True}
    modes = {str(fields["pooling_mode"])} if "pooling_mode" in fields else modes - {"include_prompt"}
    if len(modes) != 1 or not modes <= MODES.keys():
        raise UserError(
            f"{path}: embeddings by pooling {' and '.join(sorted(modes)) or 'nothing'} are not supported, "
            "only the mean over the tokens, the first or the last of them"
        )
    return MODES[modes.pop()]


# ---- out -----------------------------------------------------------------------------------------


def write_recipe(model: SentenceEmbedder, folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The files from which sentence-transformers, and `read_recipe`, know how to make the same embeddings.

    Returns those of the tensors that are not written with them.
    """
    kinds = ["Transformer", "Pooling", *["Dense"] * len(model.steps), *["Normalize"] * model.normalise]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i > 0)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    modes = {
        f"pooling_mode_{theirs}": MODES[theirs] == model.pooling for theirs in ("cls_token", "mean_tokens", "lasttoken")
    }
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    write_json(folder / "modules.json", modules)
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": model.config.width, **modes})
    write_json(folder / LIMITS[0], {"max_seq_length": model.limit, "do_lower_case": model.lower_case})
    write_json(folder / COMPARISON, {"similarity_fn_name": model.similarity, "truncate_dim": model.width})
    for i, path in enumerate(paths[2 : 2 + len(model.steps)]):
        write_dense(model, i, folder / path, tensors)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PARAMETER)}


def write_dense(model: SentenceEmbedder, index: int, folder: Path, tensors: dict[str, Tensor]) -> None:
    step, layer, prefix = model.steps[index], model.projections[index], f"{PARAMETER}{index}."
    where = "linear" if step.activation == "Identity" else "activation"
    fields = {"in_features": layer.in_features, "out_features": step.width, "bias": step.bias}
    fields["activation_function"] = f"torch.nn.modules.{where}.{step.activation}"
    write_json(folder / "config.json", fields)
    own = {name.replace(prefix, "linear."): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    write_tensors(folder / WEIGHTS, own)

"""How a text becomes one embedding, in the files of sentence-transformers that lie beside a checkpoint.

modules.json                  what hidden states go through: the encoder, the pooling, the normalisation
1_Pooling/config.json         which tokens an embedding is made of
sentence_bert_config.json     how many tokens of a text are read; early files are called after other families
"""

from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.files import read_json, write_json
from minillm.heads import SentenceEmbedder

POOLING = "1_Pooling"
LIMITS = tuple(f"sentence_{family}_config.json" for family in ("bert", "roberta", "distilbert", "xlm-roberta"))
MODES = {  # theirs, before and since their version 5 → ours
    "mean_tokens": "mean",
    "mean": "mean",
    "cls_token": "first",
    "cls": "first",
    "lasttoken": "last",
}
MODULES = ("Transformer", "Pooling", "Normalize")


def read_recipe(folder: Path) -> dict[str, Any]:
    """The options of `SentenceEmbedder` in a checkpoint; empty where the files have nothing about it.

    UserError where they ask for what it doesn't do.
    """
    check_modules(folder / "modules.json")
    check_prompts(folder / "config_sentence_transformers.json")
    recipe: dict[str, Any] = {}
    path = folder / POOLING / "config.json"
    if path.is_file() or (folder / "modules.json").is_file():
        recipe["pooling"] = read_pooling(path)
    if path := next((folder / name for name in LIMITS if (folder / name).is_file()), None):
        recipe |= read_limit(path)
    return recipe


def check_modules(path: Path) -> None:
    if not path.is_file():
        return
    modules = [module if isinstance(module, dict) else {} for module in read_json(path, list)]
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds not in (list(MODULES), list(MODULES[:2])):  # without the last one cosines are the same
        steps = ", ".join(kinds) or "nothing"
        raise UserError(f"{path}: embeddings that go through {steps} are not supported, only {', '.join(MODULES)}")
    if (where := modules[1].get("path")) != POOLING:
        raise UserError(f"{path}: a description of the pooling in {where!r} is not supported, only in {POOLING!r}")


def check_prompts(path: Path) -> None:
    if path.is_file() and (name := read_json(path).get("default_prompt_name")) is not None:
        raise UserError(f"{path}: a prompt put before every text, here {name!r}, is not supported")


def read_limit(path: Path) -> dict[str, Any]:
    fields = read_json(path)
    limit = fields.get("max_seq_length")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise UserError(f"{path}: max_seq_length={limit!r} is no number of tokens")
    return {"max_seq_len": limit, "lower_case": fields.get("do_lower_case") is True}


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


def write_recipe(model: SentenceEmbedder, folder: Path) -> None:
    """The files from which sentence-transformers, and `read_recipe`, know how to make the same embeddings."""
    paths = ("", POOLING, "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(MODULES, paths, strict=True))
    ]
    modes = {
        f"pooling_mode_{theirs}": MODES[theirs] == model.pooling for theirs in ("cls_token", "mean_tokens", "lasttoken")
    }
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    write_json(folder / "modules.json", modules)
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": model.config.width, **modes})
    write_json(folder / LIMITS[0], {"max_seq_length": model.max_seq_len, "do_lower_case": model.lower_case})

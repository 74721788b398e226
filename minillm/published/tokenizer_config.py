"""What the files beside a vocabulary say of it: its kind, its control tokens, how texts are prepared and cut.

tokenizer_config.json     all of it; chat_template.jinja beside it where the template is a file of its own
special_tokens_map.json   in early files the roles of control tokens
added_tokens.json         in early files the tokens behind those of the vocabulary
generation_config.json    which tokens begin and end a text; else config.json, whose model_type also tells the kind

Where two of them differ, what counts is what counts in transformers.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.files import read_json, read_text
from minillm.published.sentences import LIMITS, read_limit

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # of control tokens
EXTRA = ("additional_special_tokens", "extra_special_tokens")
BERT = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
ROBERTA = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
ROBERTA |= {f"{role}_token": f"<{role}>" for role in ("unk", "pad", "mask")}
GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
DEFAULTS: dict[str, dict[str, str]] = {  # the roles where no file says otherwise, by the kind of tokenizer
    "BertTokenizer": BERT,
    "DistilBertTokenizer": BERT,
    "RobertaTokenizer": ROBERTA,
    "GPT2Tokenizer": GPT2,
}
WORDPIECE = ("BertTokenizer", "DistilBertTokenizer")
BYTE_LEVEL = ("GPT2Tokenizer", "RobertaTokenizer")
LIBRARY = "PreTrainedTokenizerFast"  # whatever tokenizer.json says; there is none that is slow
KINDS = {  # by model_type, for files that name none
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "roberta": "RobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "modernbert": LIBRARY,
}
MISNAMED = ("qwen2", "modernbert")  # whose files are known to name a wrong one

# Of folders without tokenizer.json, in which these keys alone say how a text is read. Any other is refused.
UNDERSTOOD = {
    *(f"{role}_token" for role in ROLES),
    *EXTRA,
    *("added_tokens_decoder", "chat_template", "chat_control_tokens", "tokenizer_class"),
    *("model_max_length", "max_len", "truncation_side", "model_input_names"),
}
WORDPIECE_KEYS = {"do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize", "never_split"}
BYTE_LEVEL_KEYS = {"add_prefix_space", "add_bos_token", "add_eos_token"}
HARMLESS = {  # what they say makes no difference to the ids of a text
    *("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "processor_class"),
    *("use_fast", "from_slow", "backend", "is_local", "local_files_only", "init_inputs", "transformers_version"),
    *("padding_side", "pad_token_type_id", "pad_to_multiple_of"),
    *("max_length", "stride", "truncation_strategy"),  # what one use of the model asked for
    *("clean_up_tokenization_spaces", "spaces_between_special_tokens", "errors", "trim_offsets"),  # of decoding
    *("split_special_tokens", "response_template", "response_schema", "verbose"),
}


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json and what else is about it: the kind as `tokenizer_class`, roles, chat template, limit."""
    config: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists() and "added_tokens_decoder" not in config:  # which came later than the map
            config |= read_json(folder / name)
    if (folder / "chat_template.jinja").exists():
        config["chat_template"] = read_text(folder / "chat_template.jinja")
    if kind := kind_of(folder, config):
        config = DEFAULTS.get(kind, {}) | config | {"tokenizer_class": kind}
    if limit := sentence_limit(folder):
        config["model_max_length"] = limit
    return config


def kind_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """transformers' class for these files; None where neither they nor the model's config.json tell."""
    model = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    model_type = model.get("model_type")
    by_model = KINDS.get(model_type) if isinstance(model_type, str) else None
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    if not isinstance(named, str | None):
        raise UserError(f"{folder / 'tokenizer_config.json'}: tokenizer_class={named!r} is no text")
    if model_type in MISNAMED or named is None:
        return by_model
    return named if named == LIBRARY else named.removesuffix("Fast")


def sentence_limit(folder: Path) -> int | None:
    """The tokens of a text that sentence-transformers reads, whatever tokenizer_config.json says."""
    path = next((folder / name for name in LIMITS if (folder / name).is_file()), None)
    return path and read_limit(path)["max_seq_len"]


def check_keys(config: Mapping[str, Any], own: set[str], path: Path) -> None:
    """UserError for a key that is not known to be honoured, or not to matter."""
    names = {key for key, value in config.items() if key.endswith("_token") and not isinstance(value, bool)}
    if unknown := sorted(config.keys() - UNDERSTOOD - HARMLESS - own - names):
        raise UserError(
            f"{path.parent / 'tokenizer_config.json'}: {unknown[0]}={config[unknown[0]]!r} is not supported; "
            "a tokenizer.json beside it would say how a text is read"
        )


def flag(config: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise UserError(f"tokenizer_config.json: {key}={value!r} is not true or false")
    return default if value is None else value


def choice(config: Mapping[str, Any], key: str, *values: Any) -> Any:
    """One of these values, the first if there is none."""
    value = config.get(key)
    if value is not None and value not in values:
        raise UserError(f"tokenizer_config.json: {key}={value!r} is not supported, only {', '.join(map(repr, values))}")
    return values[0] if value is None else value


def texts_in(config: Mapping[str, Any], key: str, default: Sequence[str] = ()) -> Sequence[str]:
    texts = default if config.get(key) is None else config[key]
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"tokenizer_config.json: {key}={texts!r} is no list of texts")
    return texts


def limit_of(config: Mapping[str, Any]) -> int | None:
    """The most tokens of a text that is to be cut; None, or a number beyond all bounds: as many as the model reads."""
    limit = config.get("model_max_length", config.get("max_len"))
    if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool) or not limit >= 1):
        raise UserError(f"tokenizer_config.json: model_max_length={limit!r} is no number of tokens")
    return int(limit) if limit is not None and limit < 1e20 else None


# ---- control tokens and others that are added --------------------------------------------------------


def name_of(config: Mapping[str, Any], role: str) -> str | None:
    """How the control token of a role is written: a text, or an object with the text in it."""
    name = config.get(f"{role}_token")
    name = name.get("content") if isinstance(name, dict) else name
    if name is not None and not is_text(name):
        raise UserError(f"tokenizer_config.json or special_tokens_map.json: {role}_token={name!r} is no text")
    return name


def special_tokens(config: Mapping[str, Any]) -> Iterator[str | dict[str, Any]]:
    """Those that a file names: of the roles, then all others."""
    for role in ROLES:
        if name_of(config, role) is not None:
            yield config[f"{role}_token"]
    for key in EXTRA:
        more = config.get(key) or []
        if not isinstance(more, list | dict):
            raise UserError(f"tokenizer_config.json: {key}={more!r} is no list of tokens")
        yield from more.values() if isinstance(more, dict) else more
    others = config.keys() - {f"{role}_token" for role in ROLES}
    yield from (config[key] for key in sorted(others) if key.endswith("_token") and isinstance(config[key], str))


def added_tokens(folder: Path, config: Mapping[str, Any]) -> list[tuple[int | None, dict[str, Any]]]:
    """Tokens that are found in a text before it is cut: their numbers, as far as a file gives them, and properties."""
    special = [properties(each, folder) | {"special": True} for each in special_tokens(config)]
    names = {each["content"] for each in special}
    found: list[tuple[int | None, dict[str, Any]]] = []
    if "added_tokens_decoder" in config:
        table = config["added_tokens_decoder"]
        if not isinstance(table, dict) or not all(key.isdecimal() for key in table):
            raise UserError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is no table by number")
        found = [(int(key), properties(token, folder)) for key, token in table.items()]
    elif (path := folder / "added_tokens.json").exists():
        for name, i in read_json(path).items():
            if not isinstance(i, int) or isinstance(i, bool):
                raise UserError(f"{path} gives {name!r} no number")
            found.append((i, {"content": name, "normalized": name not in names}))
    found = [(i, token | {"special": token.get("special", False) or token["content"] in names}) for i, token in found]
    known = {token["content"] for _, token in found}
    return sorted(found, key=lambda each: each[0]) + [(None, each) for each in special if each["content"] not in known]


def properties(token: Any, folder: Path) -> dict[str, Any]:
    """What the library's AddedToken takes. UserError for anything else."""
    token = {"content": token} if isinstance(token, str) else token
    kinds = {"content": str, **dict.fromkeys(("special", "lstrip", "rstrip", "normalized", "single_word"), bool)}
    if isinstance(token, dict):
        token = {key: value for key, value in token.items() if key not in ("__type", "id")}
        if is_text(token.get("content")) and all(isinstance(value, kinds.get(key, ())) for key, value in token.items()):
            return token
    raise UserError(f"{folder / 'tokenizer_config.json'} or a file beside it: {token!r} describes no token")


def is_text(value: Any) -> bool:
    """Not empty, and no halves of characters, which JSON can hold."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= letter <= "\udfff" for letter in value)


def ids_of(folder: Path, role: str) -> list[int]:
    """The ids of the tokens that end or begin a text ("eos", "bos") by generation_config.json or else config.json."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder / name).get(f"{role}_token_id") if (folder / name).exists() else None
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
                raise UserError(f"{folder / name}: {role}_token_id={ids} are no numbers of tokens")
            return ids
    return []

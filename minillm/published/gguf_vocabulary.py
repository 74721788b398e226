"""The tokenizer of a GGUF file, made of the vocabulary in its metadata.

tokenizer.ggml.model   "gpt2": byte-level BPE with its merges; "llama": SentencePiece, with a score for each token
tokenizer.ggml.pre     by what rule the text is cut before byte-level BPE; a file has only the name of the rule

What else is said of how a text is read is refused by name, such as tokenizer.ggml.add_eos_token=true.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.errors import UserError, need
from minillm.published.gguf import GGUF
from minillm.published.subwords import Subwords

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens besides parts of plain text
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}  # sic
STOPS = ("eos", "eot", "eom")  # the ends of a text, of a turn and of a message
# The same by their names: not every file says which of its control tokens they are.
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<EOT>")

UNDERSTOOD = {"model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_space_prefix"}
HARMLESS = {"added_tokens", "token_type_count", "tokenizer.huggingface.json"}  # what they say stands elsewhere, too
NO_MATTER = ("_token_id", "_token_ids")  # endings of keys that name a token for one use or another

CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
QWEN2 = LLAMA3.replace("{1,3}", "")  # a digit at a time
DIGITS = r"\p{N}"
CUTS: dict[str, tuple[str, ...]] = {  # one after the other
    "gpt-2": (GPT2,),
    "smollm": (DIGITS, GPT2),
    "llama-bpe": (LLAMA3,),
    "llama3": (LLAMA3,),
    "llama-v3": (LLAMA3,),
    "qwen2": (QWEN2,),
    "deepseek-r1-qwen": (QWEN2,),
}


def read_vocabulary(path: Path) -> Subwords:
    """UserError where the file has no vocabulary, or one of a kind that is not supported."""
    library = need("tokenizers", "text", f"reading the vocabulary of {path}")
    file = GGUF(path)
    about = {key.removeprefix("tokenizer.ggml."): v for key, v in file.metadata.items() if key.startswith("tokenizer.")}
    tokens, model = about.get("tokens"), about.get("model")
    if not tokens:
        raise UserError(f"{path} holds no vocabulary: it has no tokenizer.ggml.tokens")
    if model not in ("gpt2", "llama"):
        raise UserError(f"{path}: a vocabulary of kind {model!r} is not supported, only 'gpt2' and 'llama'")
    check_keys(about, path)
    build = byte_level if model == "gpt2" else sentencepiece
    try:
        backend = build(library, tokens, about)
    except Exception as error:  # the library raises nothing narrower for merges that lead to no token
        raise UserError(f"{path}: its vocabulary is incomplete or wrong ({error})") from None
    control, user_defined = added_tokens(tokens, about.get("token_type", []))
    for names, kind, add in (
        (control, CONTROL, backend.add_special_tokens),
        (user_defined, USER_DEFINED, backend.add_tokens),
    ):
        add([library.AddedToken(name, normalized=False, special=kind == CONTROL) for name in names])
    config = {
        f"{role}_token": tokens[about[f"{word}_token_id"]]
        for role, word in ROLES.items()
        if about.get(f"{word}_token_id", len(tokens)) < len(tokens)
    }
    if about.get("add_bos_token", model == "llama" or CUTS.get(about.get("pre")) == (LLAMA3,)):
        begin_with(library, backend, config.get("bos_token"))
    if template := about.get("tokenizer.chat_template"):
        config["chat_template"] = template
    ends = [about.get(f"{name}_token_id", len(tokens)) for name in STOPS]
    stops = [i for i in ends if i < len(tokens)] + [tokens.index(name) for name in control if name in ENDS]
    return Subwords(backend, {"tokenizer_class": "PreTrainedTokenizerFast", **config}, stops)


def check_keys(about: Mapping[str, Any], path: Path) -> None:
    """UserError for a key that is neither understood nor without effect."""
    for key, value in about.items():
        is_known = key in UNDERSTOOD | HARMLESS or key.endswith(NO_MATTER) or key.startswith("tokenizer.chat_template")
        if not is_known and value not in (False, 0, ""):
            name = key if key.startswith("tokenizer.") else f"tokenizer.ggml.{key}"
            raise UserError(f"{path}: {name}={str(value)[:60]} is not supported")


def added_tokens(tokens: Sequence[str], kinds: Sequence[int]) -> tuple[list[str], list[str]]:
    """Control tokens, among them every one that ends a turn, and the others that no text is cut within."""
    kind_of = dict(zip(tokens, kinds, strict=False))
    control = [name for name, kind in kind_of.items() if kind == CONTROL or (kind == USER_DEFINED and name in ENDS)]
    return control, [name for name, kind in kind_of.items() if kind == USER_DEFINED and name not in ENDS]


def byte_level(library: Any, tokens: Sequence[str], about: Mapping[str, Any]) -> Any:
    cuts = CUTS.get(about.get("pre"))
    if cuts is None:
        raise ValueError(f"tokenizer.ggml.pre={about.get('pre')!r} is not supported, only {', '.join(CUTS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in about["merges"]]
    ids = {token: i for i, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token whole, even where the merges would not lead to it.
    backend = library.Tokenizer(library.models.BPE(ids, merges, ignore_merges=cuts == (LLAMA3,)))
    if cuts == (QWEN2,):
        backend.normalizer = library.normalizers.NFC()
    steps = [library.pre_tokenizers.Split(library.Regex(cut), "isolated") for cut in cuts]
    to_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = library.pre_tokenizers.Sequence([*steps, to_bytes])
    backend.decoder = library.decoders.ByteLevel()
    return backend


def sentencepiece(library: Any, tokens: Sequence[str], about: Mapping[str, Any]) -> Any:
    """Merges in the order of the scores of what they lead to; what is in no token becomes bytes."""
    scores, ids = about["scores"], {token: i for i, token in enumerate(tokens)}
    splits = ((token, token[:cut], token[cut:]) for token in tokens for cut in range(1, len(token)))
    merges = [(ids[token], left, right) for token, left, right in splits if left in ids and right in ids]
    merges.sort(key=lambda merge: (-scores[merge[0]], ids[merge[1]], ids[merge[2]]))
    pairs = [(left, right) for _, left, right in merges]
    unknown = tokens[about.get("unknown_token_id", 0)]
    backend = library.Tokenizer(library.models.BPE(ids, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    begin = [library.normalizers.Prepend("▁")] if about.get("add_space_prefix", True) else []
    backend.normalizer = library.normalizers.Sequence([*begin, library.normalizers.Replace(" ", "▁")])
    steps = [library.decoders.Replace("▁", " "), library.decoders.ByteFallback(), library.decoders.Fuse()]
    backend.decoder = library.decoders.Sequence([*steps, *([library.decoders.Strip(" ", 1, 0)] if begin else [])])
    return backend


def begin_with(library: Any, backend: Any, name: str | None) -> None:
    """Every text begins with this control token."""
    if name is None:
        raise UserError("the vocabulary asks for a token at the beginning of a text but names none")
    backend.post_processor = library.processors.TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A $B:1", special_tokens=[(name, backend.token_to_id(name))]
    )

"""The tokenizers of published checkpoints, each read from its files without a network; vocabularies.py chooses.

tokenizer.json           everything, for the `tokenizers` library: byte-level BPE, WordPiece, SentencePiece
vocab.json, merges.txt   GPT-2's byte-level BPE (in its first release encoder.json, vocab.bpe) as a `tiktoken.Encoding`
vocab.txt                BERT's WordPiece

Byte-level BPE: Radford et al. 2019; WordPiece: Devlin et al. 2018.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from minillm.errors import UserError, need
from minillm.files import read_json, read_text, write_json, write_text
from minillm.tokenizer import BytePairs, Stream, Tokenizer, shorten

GPT2_FILES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
# Contractions, words, numbers and signs, each with the space before it; of spaces in a row all but the last together.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "GPT2TokenizerTorch", None)
LONGEST_WORD = 100  # letters; longer ones are unknown to WordPiece, as BERT's authors had it
BERT_ROLES = ("pad", "unk", "cls", "sep", "mask")
BERT_CONFIG = {"tokenizer_class": "BertTokenizer", **{f"{role}_token": f"[{role.upper()}]" for role in BERT_ROLES}}


class Subwords(Tokenizer):
    """What a `tokenizers.Tokenizer` does; `config` is the content of tokenizer_config.json."""

    def __init__(self, backend: Any, config: Mapping[str, Any], stops: Sequence[int] = ()):
        self.backend, self.config = backend, config
        backend.no_truncation()  # files often keep what one use of the model asked for
        backend.no_padding()
        backend.encode_special_tokens = True
        added = backend.get_added_tokens_decoder()
        self.control = {token.content: i for i, token in added.items() if token.special}
        self.vocab_size = max([backend.get_vocab_size(), *(i + 1 for i in added)])
        self.mask = self.id_of("mask")
        named = self.id_of("eos"), *stops, self.id_of("sep")
        ends = [i for i in named if i is not None]
        if not ends:
            raise UserError("the tokenizer names no token that ends a text: its tokenizer_config.json has no eos_token")
        self.end, self.stops = ends[0], frozenset([ends[0], *stops])

    def id_of(self, role: str) -> int | None:
        """The control token of a role: bos, eos, unk, sep, pad, cls, mask."""
        name = name_of(self.config, role)
        return None if name is None else self.backend.token_to_id(name)

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def parse(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._encode(text, control=True)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode([i for i in ids if i < self.vocab_size], skip_special_tokens=True)

    def wrap(self, *texts: str, limit: int | None = None, control: bool = False) -> tuple[list[int], list[int]]:
        parts = [self._encode(text, control) for text in texts]
        room = None if limit is None else limit - self.backend.num_special_tokens_to_add(len(texts) > 1)
        for part, size in zip(parts, shorten([*map(len, parts)], room), strict=True):
            part.truncate(size)
        whole = self.backend.post_process(*parts)
        return whole.ids, whole.type_ids

    def _encode(self, text: str, control: bool) -> Any:
        self.backend.encode_special_tokens = not control
        try:
            return self.backend.encode(text, add_special_tokens=False)
        finally:
            self.backend.encode_special_tokens = True

    def stream(self) -> Stream:
        """SentencePiece spells what is in no token as bytes, <0x00> to <0xFF>; control tokens amid them count not."""
        alone = (self.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return Stream(self.decode, {*(i for i in alone if i is not None), *self.control.values()})

    def save(self, folder: Path) -> None:
        write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", self.config)
        if self.stops != {self.end}:
            write_json(folder / "generation_config.json", {"eos_token_id": sorted(self.stops)})


def read_library_file(path: Path) -> Subwords:
    library = need("tokenizers", "text", f"reading {path}")
    config = read_config(path.parent)
    try:
        backend = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"cannot read {path}: {error}") from None
    return Subwords(backend, config, read_stops(path.parent))


def read_wordpiece(path: Path) -> Subwords:
    """BERT's, from a list of tokens, one a line; lower case unless tokenizer_config.json says otherwise."""
    config = BERT_CONFIG | read_config(path.parent)
    tokens = read_text(path).removesuffix("\n").split("\n")  # other signs for line ends are tokens
    ids = {token: i for i, token in enumerate(tokens)}
    for role in BERT_ROLES:
        if (name := name_of(config, role)) not in ids:
            raise UserError(f"{path} lacks {name}, so it is no vocabulary of a BERT")
    return Subwords(wordpiece(ids, config), config, read_stops(path.parent))


def learn_wordpiece(texts: Sequence[str], vocab_size: int) -> Subwords:
    """A vocabulary of at most so many tokens for models that start from nothing, in lower case.

    The library numbers letters within words (##a) in an order that changes from process to process, and breaks ties
    by number. Naming them beforehand, as if they were special, makes the same texts the same vocabulary.
    """
    library = need("tokenizers", "text", "learning a vocabulary")
    special = [name_of(BERT_CONFIG, role) for role in BERT_ROLES]
    learner = wordpiece({name: i for i, name in enumerate(special)}, BERT_CONFIG)
    letters = sorted({letter for text in texts for letter in "".join(learner.normalizer.normalize_str(text).split())})
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*special, *(f"##{letter}" for letter in letters)],
        initial_alphabet=letters,
        show_progress=False,
    )
    short = [without_long_words(learner, text) for text in texts]  # before the learner is locked
    learner.train_from_iterator(short, trainer)
    return Subwords(wordpiece(learner.get_vocab(with_added_tokens=False), BERT_CONFIG), BERT_CONFIG)


def without_long_words(tokenizer: Any, text: str) -> str:
    """A vocabulary is learned in a time that grows with the square of a word's length, and such words stay unknown."""
    words = []
    for piece in text.split():
        if len(piece) <= LONGEST_WORD:
            words.append(piece)
        else:  # it may be many words, as between signs and in languages that leave no blanks
            parts = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(piece))
            words += [part for part, _ in parts if len(part) <= LONGEST_WORD]
    return " ".join(words)


def wordpiece(ids: Mapping[str, int], config: Mapping[str, Any]) -> Any:
    """The longest token that fits first, a word at a time; text read as [CLS] a [SEP] or [CLS] a [SEP] b [SEP]."""
    library = need("tokenizers", "text", "reading WordPiece")
    names = {role: name_of(config, role) for role in BERT_ROLES}
    choices = {name: config.get(name) for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
    for name, value in choices.items():
        if not isinstance(value, bool | None):
            raise UserError(f"tokenizer_config.json: {name}={value!r} is not true or false")
    cls, sep = names["cls"], names["sep"]
    backend = library.Tokenizer(
        library.models.WordPiece(ids, unk_token=names["unk"], max_input_chars_per_word=LONGEST_WORD)
    )
    backend.normalizer = library.normalizers.BertNormalizer(
        lowercase=choices["do_lower_case"] is not False,
        strip_accents=choices["strip_accents"],
        handle_chinese_chars=choices["tokenize_chinese_chars"] is not False,
    )
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    backend.decoder = library.decoders.WordPiece()
    backend.post_processor = library.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    backend.add_special_tokens(list(names.values()))
    return backend


def read_gpt2(vocabulary: Path, merges: Path) -> BytePairs:
    """Byte-level BPE for tiktoken, in which the id of a token also says how early its merge comes."""
    config = read_config(vocabulary.parent)
    if (name := config.get("tokenizer_class")) not in GPT2_CLASSES:
        raise UserError(f"{vocabulary} alone does not say how {name} cuts a text; a tokenizer.json beside it would")
    ids, text = read_json(vocabulary), read_text(merges)
    if strange := [token for token, i in ids.items() if not isinstance(i, int)]:
        raise UserError(f"{vocabulary} gives {strange[0]!r} no number")
    merged = [line.replace(" ", "", 1) for line in text.split("\n") if line and not line.startswith("#version")]
    letters = letters_of_bytes()
    if missing := [token for token in [*letters, *merged] if token not in ids]:
        raise UserError(f"{vocabulary} lacks {missing[0]!r}, which {merges} needs")
    if strange := [token for token in merged if not letters.keys() >= set(token)]:
        raise UserError(f"{merges} makes {strange[0]!r} of what are no bytes, so it is not of GPT-2's kind")
    order = [ids[token] for token in merged]
    if order != sorted(set(order)):
        raise UserError(f"{vocabulary} numbers tokens in another order than {merges}, so it is not of GPT-2's kind")
    ranks = {bytes(letters[letter] for letter in token): ids[token] for token in [*letters, *merged]}
    special = {token: ids[token] for token in ids.keys() - {*letters, *merged}}
    if (added := vocabulary.parent / "added_tokens.json").exists():
        special |= read_json(added)
    if (end := name_of(config, "eos") or "<|endoftext|>") not in special:
        raise UserError(f"{vocabulary} lacks {end}, the token that ends a text")
    encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    files = {"vocab.json": ids | special, "merges.txt": text, "tokenizer_config.json": config}
    return BytePairs(encoding, end, files, config, read_stops(vocabulary.parent))


def letters_of_bytes() -> dict[str, int]:
    """The printable letter that stands for each byte in GPT-2's files: itself, or else the next one from Ā on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with the names of special_tokens_map.json and the template of chat_template.jinja in it."""
    config = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            config |= read_json(folder / name)
    if (folder / "chat_template.jinja").exists():
        config["chat_template"] = read_text(folder / "chat_template.jinja")
    return config


def read_stops(folder: Path) -> list[int]:
    """The ids that end a text according to generation_config.json or else config.json."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder / name).get("eos_token_id") if (folder / name).exists() else None
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
                raise UserError(f"{folder / name}: eos_token_id={ids} are no numbers of tokens")
            return ids
    return []


def name_of(config: Mapping[str, Any], role: str) -> str | None:
    """How the control token of a role is written: a text, or an object with the text in it."""
    name = config.get(f"{role}_token")
    name = name.get("content") if isinstance(name, dict) else name
    if name is not None and not isinstance(name, str):
        raise UserError(f"tokenizer_config.json or special_tokens_map.json: {role}_token={name!r} is no text")
    return name

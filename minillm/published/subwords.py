"""The tokenizers of published checkpoints, each read from its files without a network; vocabularies.py chooses.

tokenizer.json           everything, for the `tokenizers` library: byte-level BPE, WordPiece, SentencePiece
vocab.json, merges.txt   byte-level BPE of GPT-2 (in its first release encoder.json, vocab.bpe) and of RoBERTa
vocab.txt                BERT's WordPiece

The files beside them are tokenizer_config.py's. Byte-level BPE: Radford et al. 2019; WordPiece: Devlin et al. 2018.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minillm.errors import UserError, need
from minillm.files import read_json, read_text, write_json, write_text
from minillm.published import tokenizer_config
from minillm.published.tokenizer_config import BERT, BYTE_LEVEL, GPT2, WORDPIECE, choice, flag, name_of, texts_in
from minillm.tokenizer import Stream, Tokenizer, shorten

BYTE_LEVEL_FILES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
PREFIXES = {"LlamaTokenizer": "\u2581", **dict.fromkeys((*BYTE_LEVEL, "Qwen2Tokenizer"), "\u0120")}  # a blank in tokens
UNHEARD_OF = "\ue000"  # a letter for private use, in no vocabulary
LONGEST_WORD = 100  # letters; longer ones are unknown to WordPiece, as BERT's authors had it


class Subwords(Tokenizer):
    """What a `tokenizers.Tokenizer` does; `config` is what read_config makes of the files beside it."""

    def __init__(self, backend: Any, config: Mapping[str, Any], stops: Sequence[int] = (), begin: int | None = None):
        """`stops` and `begin`: what ends and begins a text, where it is not (only) what `config` calls eos and bos."""
        self.backend, self.config = backend, config
        backend.no_truncation()  # files often keep what one use of the model asked for
        backend.no_padding()
        backend.encode_special_tokens = True
        named = self.id_of("eos"), *stops, self.id_of("sep")
        ends = [i for i in named if i is not None]
        if not ends:
            raise UserError("the tokenizer names no token that ends a text: its tokenizer_config.json has no eos_token")
        self.end, self.stops = ends[0], frozenset([ends[0], *stops])
        make_special(backend, self.stops)
        added = backend.get_added_tokens_decoder()
        self.added = {token.content: i for i, token in added.items()}
        self.control = {token.content: i for i, token in added.items() if token.special}
        self.vocab_size = max(backend.get_vocab().values()) + 1  # numbers may be left out
        self.mask = self.id_of("mask")
        self.begin = self.id_of("bos") if begin is None else begin
        self.limit = tokenizer_config.limit_of(config) or sys.maxsize
        self.cut_side = choice(config, "truncation_side", "right", "left")
        self.has_segments = "token_type_ids" in texts_in(config, "model_input_names", ["token_type_ids"])

    def id_of(self, role: str) -> int | None:
        """The control token of a role: bos, eos, unk, sep, pad, cls, mask."""
        name = name_of(self.config, role)
        return None if name is None else self.backend.token_to_id(name)

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def parse(self, text: str, control: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._encode(text, control)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode([i for i in ids if i < self.vocab_size], skip_special_tokens=True)

    def wrap(self, *texts: str, limit: int | None = None, control: bool = False) -> tuple[list[int], list[int]]:
        parts = [self._encode(text, control) for text in texts]
        room = None
        if limit is not None:
            room = min(limit, self.limit) - self.backend.num_special_tokens_to_add(len(texts) > 1)
        for part, size in zip(parts, shorten([*map(len, parts)], room), strict=True):
            part.truncate(size, direction=self.cut_side)
        whole = self.backend.post_process(*parts)
        return whole.ids, whole.type_ids if self.has_segments else [0] * len(whole.ids)

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
        ids = {"eos_token_id": sorted(self.stops)} if self.stops != {self.end} else {}
        ids |= {"bos_token_id": self.begin} if self.begin != self.id_of("bos") else {}
        if ids:
            write_json(folder / "generation_config.json", ids)


def make_special(backend: Any, ids: Iterable[int]) -> None:
    """What ends a text is no part of it, even if a file added it as if it were."""
    added = backend.get_added_tokens_decoder()
    for token in (added[i] for i in ids if i in added):
        token.special = True
        backend.add_tokens([token])


# ---- from files --------------------------------------------------------------------------------------


def read_library_file(path: Path) -> Subwords:
    """tokenizer.json, in which the options of tokenizer_config.json overrule what is fixed, as in transformers."""
    library = need("tokenizers", "text", f"reading {path}")
    config = tokenizer_config.read_config(path.parent)
    with complaints(path):
        backend = library.Tokenizer.from_file(str(path))
    kind = config.get("tokenizer_class")
    if kind in (*WORDPIECE, "MPNetTokenizer") and isinstance(backend.model, library.models.WordPiece):
        backend.normalizer = bert_normalizer(library, config)
    if kind in BYTE_LEVEL and isinstance(backend.pre_tokenizer, library.pre_tokenizers.ByteLevel):
        backend.pre_tokenizer.add_prefix_space = flag(config, "add_prefix_space", False)
    check_prefix(backend, config, path)
    return with_added_tokens(backend, config, path)


def check_prefix(backend: Any, config: Mapping[str, Any], path: Path) -> None:
    """UserError where tokenizer_config.json wants a blank before every text, or none, and tokenizer.json the opposite:
    the classes that heed it make another tokenizer then."""
    mark = PREFIXES.get(config.get("tokenizer_class"))
    wanted = flag(config, "add_prefix_space", None)
    if mark is None or wanted is None or backend.token_to_id(mark) is None:
        return
    with complaints(path):
        has = "".join(backend.encode("a", add_special_tokens=False).tokens).startswith(mark)
    if wanted != has:
        does = "puts one there" if has else "puts none there"
        raise UserError(
            f"{path.parent / 'tokenizer_config.json'}: add_prefix_space={wanted} is about a blank before every text, "
            f"but tokenizer.json {does}; remove that entry if the model was trained so"
        )


def read_wordpiece(path: Path) -> Subwords:
    """BERT's, from a list of tokens, one a line; lower case unless tokenizer_config.json says otherwise."""
    config = BERT | tokenizer_config.read_config(path.parent)
    require_kind(config, WORDPIECE, path)
    tokenizer_config.check_keys(config, tokenizer_config.WORDPIECE_KEYS, path)
    choice(config, "do_basic_tokenize", True)
    choice(config, "never_split", None, [])
    tokens = read_text(path).removesuffix("\n").split("\n")  # other signs for line ends are tokens
    ids = {token.rstrip(): i for i, token in enumerate(tokens)}  # of a token that is there twice the last counts
    require(config, ("pad", "unk", "cls", "sep", "mask"), ids, path)
    return with_added_tokens(wordpiece(ids, config), config, path)


def read_byte_level(vocabulary: Path, merges: Path) -> Subwords:
    """GPT-2's, or RoBERTa's where config.json or tokenizer_config.json says so."""
    library = need("tokenizers", "text", f"reading {vocabulary}")
    config = GPT2 | tokenizer_config.read_config(vocabulary.parent)
    require_kind(config, BYTE_LEVEL, vocabulary)
    tokenizer_config.check_keys(config, tokenizer_config.BYTE_LEVEL_KEYS, vocabulary)
    is_roberta = config.get("tokenizer_class") == "RobertaTokenizer"
    ids, pairs = read_pairs(vocabulary, merges)
    require(config, ("pad", "unk", "cls", "sep", "mask") if is_roberta else ("eos",), ids, vocabulary)
    with complaints(vocabulary):
        backend = library.Tokenizer(library.models.BPE(ids, pairs))
    prefix = flag(config, "add_prefix_space", False)
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = library.decoders.ByteLevel()
    made = with_added_tokens(backend, config, vocabulary)
    if is_roberta:
        sep, cls = ((name_of(config, role), made.id_of(role)) for role in ("sep", "cls"))
        backend.post_processor = library.processors.RobertaProcessing(sep, cls, add_prefix_space=prefix)
    else:
        around = {role: flag(config, f"add_{role}_token", False) for role in ("bos", "eos")}
        surround(library, backend, *(name_of(config, role) if is_on else None for role, is_on in around.items()))
    return made


def read_pairs(vocabulary: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The numbers of all tokens, and which two become one, the first pair first. UserError where a byte has none."""
    ids = read_json(vocabulary)
    lines = [line for line in read_text(merges).split("\n") if line and not line.startswith("#version")]
    pairs = [tuple(line.split(" ")) for line in lines]
    if strange := [token for token, i in ids.items() if not isinstance(i, int) or isinstance(i, bool)]:
        raise UserError(f"{vocabulary} gives {strange[0]!r} no number")
    if strange := [line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2]:
        raise UserError(f"{merges}: {strange[0]!r} are not two parts with a blank between them")
    letters = letters_of_bytes()
    if missing := [token for token in [*letters, *map("".join, pairs)] if token not in ids]:
        raise UserError(f"{vocabulary} lacks {missing[0]!r}, which {merges} needs")
    if strange := [pair for pair in pairs if not letters.keys() >= set("".join(pair))]:
        raise UserError(f"{merges} makes {''.join(strange[0])!r} of what are no bytes, so it is not of GPT-2's kind")
    return ids, pairs


def require_kind(config: Mapping[str, Any], kinds: Sequence[str], path: Path) -> None:
    if (kind := config.get("tokenizer_class", kinds[0])) not in kinds:
        raise UserError(f"{path} alone does not say how {kind} cuts a text; a tokenizer.json beside it would")


def require(config: Mapping[str, Any], roles: Sequence[str], ids: Mapping[str, int], path: Path) -> None:
    """UserError for a control token that no file has: without its number it means nothing to the model."""
    added = {token["content"] for i, token in tokenizer_config.added_tokens(path.parent, config) if i is not None}
    for role in roles:
        if (name := name_of(config, role)) not in ids and name not in added:
            raise UserError(f"{path} lacks {name}, the {role} token: it is no vocabulary of this kind")


def with_added_tokens(backend: Any, config: Mapping[str, Any], path: Path) -> Subwords:
    """The tokenizer with the tokens that the files beside it add. UserError if one would have another number there."""
    library = need("tokenizers", "text", f"reading {path}")
    tokens = tokenizer_config.added_tokens(path.parent, config)
    with complaints(path):
        backend.add_tokens([library.AddedToken(**token) for _, token in tokens])
        backend.encode("a", UNHEARD_OF)  # what is wrong with a file may not show before
    for i, token in tokens:
        found = backend.token_to_id(token["content"])
        if i not in (None, found):
            raise UserError(f"{path}: a file beside it calls {token['content']!r} token {i}, but here it is {found}")
    begin = next(iter(tokenizer_config.ids_of(path.parent, "bos")), None)
    return Subwords(backend, config, tokenizer_config.ids_of(path.parent, "eos"), begin)


@contextmanager
def complaints(path: Path) -> Iterator[None]:
    """The library's errors as a UserError. It raises nothing narrower, and Rust's panics are not even Exceptions."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(f"cannot read {path}: {error}") from None


def surround(library: Any, backend: Any, begin: str | None, end: str | None = None) -> None:
    """Every text gets these control tokens around it; the second of two is segment 1."""
    single, second = (
        " ".join([*([f"{begin}:{i}"] if begin else []), f"${'AB'[i]}:{i}", *([f"{end}:{i}"] if end else [])])
        for i in range(2)
    )
    names = [(name, backend.token_to_id(name)) for name in (begin, end) if name]
    backend.post_processor = library.processors.TemplateProcessing(
        single=single, pair=f"{single} {second}", special_tokens=names
    )


# ---- their parts -------------------------------------------------------------------------------------


def learn_vocabulary(texts: Sequence[str], vocab_size: int) -> Subwords:
    """For models that start from nothing, in lower case: the words that occur more than once where they are few and
    make up most of the texts, any other being [UNK]; else pieces of words.

    Of few texts, pieces of rare words are no more than noise; in many, or where words hardly recur, they say much.
    """
    special = list(BERT.values())
    reader = wordpiece({name: i for i, name in enumerate(special)}, BERT)
    normal = map(reader.normalizer.normalize_str, texts)
    counts = Counter(word for text in normal for word, _ in reader.pre_tokenizer.pre_tokenize_str(text))
    words = sorted(word for word, count in counts.items() if count > 1 and word not in special)
    if len(words) + len(special) > vocab_size or sum(map(counts.get, words)) < counts.total() / 2:
        return learn_wordpiece(texts, vocab_size)
    config = {"tokenizer_class": "BertTokenizer", **BERT}
    return Subwords(wordpiece({name: i for i, name in enumerate([*special, *words])}, config), config)


def learn_wordpiece(texts: Sequence[str], vocab_size: int) -> Subwords:
    """A vocabulary of at most so many tokens for models that start from nothing, in lower case.

    The library numbers letters within words (##a) in an order that changes from process to process, and breaks ties
    by number. Naming them beforehand, as if they were special, makes the same texts the same vocabulary.
    """
    library = need("tokenizers", "text", "learning a vocabulary")
    special = list(BERT.values())
    learner = wordpiece({name: i for i, name in enumerate(special)}, BERT)
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
    config = {"tokenizer_class": "BertTokenizer", **BERT}
    return Subwords(wordpiece(learner.get_vocab(with_added_tokens=False), config), config)


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
    names = {role: name_of(config, role) for role in ("pad", "unk", "cls", "sep", "mask")}
    backend = library.Tokenizer(
        library.models.WordPiece(ids, unk_token=names["unk"], max_input_chars_per_word=LONGEST_WORD)
    )
    backend.normalizer = bert_normalizer(library, config)
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    backend.decoder = library.decoders.WordPiece()
    backend.add_special_tokens(list(names.values()))
    cls, sep = names["cls"], names["sep"]
    backend.post_processor = library.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in (cls, sep)],
    )
    return backend


def bert_normalizer(library: Any, config: Mapping[str, Any]) -> Any:
    return library.normalizers.BertNormalizer(
        lowercase=flag(config, "do_lower_case", True),
        strip_accents=flag(config, "strip_accents", None),
        handle_chinese_chars=flag(config, "tokenize_chinese_chars", True),
    )


def letters_of_bytes() -> dict[str, int]:
    """The printable letter that stands for each byte in GPT-2's files: itself, or else the next one from Ā on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

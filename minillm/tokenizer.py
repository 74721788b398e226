"""Text to token ids and back: what every tokenizer can do, and the one whose tokens are given symbols.

A vocabulary of symbols is a `tiktoken.Encoding`, so nothing is fetched. published/ has the tokenizers of published
checkpoints, and `vocabularies.load_tokenizer`, which reads whichever a folder or a file holds.
"""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import tiktoken

from minillm.errors import UserError
from minillm.files import read_json, write_json

END = "<|end|>"  # closes every answer of a task; the only special token of a SymbolTokenizer


class Stream:
    """Ids one at a time to text piece by piece; the pieces together are what `decode` makes of all ids.

    A token may be a part of a character: what cannot be told yet is held back until it can, at the latest at `close`.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], bytes_alone: Collection[int] = ()):
        """`bytes_alone`: tokens that are a byte each, so that whole characters may still be a part of another one."""
        self.decode, self.bytes_alone = decode, bytes_alone
        self.ids: list[int] = []  # those of the last piece, for the next one may join it in a special way, and newer
        self.known = 0  # how many of them were printed
        self.held = ""  # what the newer ones say so far

    def follow(self, ids: Sequence[int]) -> "Stream":
        """Go on behind these ids, whose text is known already."""
        self.ids, self.known = list(ids[-1:]), len(ids[-1:])
        return self

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; often one word, sometimes nothing."""
        self.ids.append(token)
        text, held = self._new(), self.held
        # A token without text ends nothing; \ufffd is the sign for bytes that are no character, or none yet.
        if token in self.bytes_alone or text == held or text.endswith("\ufffd"):
            self.held = text
            return ""
        self.ids, self.known, self.held = self.ids[self.known :], len(self.ids) - self.known, ""
        return text

    def close(self) -> str:
        """What was held back: no more tokens come, so bytes that are no character stay the sign for it."""
        text = self._new()
        self.ids, self.known, self.held = [], 0, ""
        return text

    def _new(self) -> str:
        return self.decode(self.ids)[len(self.decode(self.ids[: self.known])) :]


class Tokenizer(Protocol):
    """Ids are at least 0 and less than `vocab_size`. `control` tokens are those that no plain text ever becomes."""

    vocab_size: int
    end: int  # closes an answer
    stops: frozenset[int]  # all that do so in this checkpoint; `end` is one of them
    mask: int | None  # what a masked language model fills in
    begin: int | None  # what stands before a text, or alone where there is none yet
    limit: int  # the most tokens that `wrap` keeps of a text where it is to cut at all
    control: Mapping[str, int]  # how they are written, for `parse`
    added: Mapping[str, int]  # all that are found in a text before it is cut: those, and others that plain text becomes
    config: Mapping[str, Any]  # what tokenizer_config.json says, above all the chat template

    def encode(self, text: str) -> list[int]:
        """Plain text: nothing is added, and what looks like a control token is text like any other."""

    def parse(self, text: str, control: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Text in which control tokens count as such, if they are to, and from which character to which each token
        reaches."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without control tokens; ids beyond the vocabulary (tables are padded) have none."""

    def wrap(self, *texts: str, limit: int | None = None, control: bool = False) -> tuple[list[int], list[int]]:
        """One text or two as the model was trained to read them ([CLS] a [SEP] b [SEP]): ids and segments.

        Cut to `limit` tokens, or fewer if the vocabulary's own limit is lower, by shortening the longer text; with
        `control`, [MASK] and the like count as such.
        """

    def prompt(self, text: str) -> list[int]:
        """A text to go on with, as the model was trained to read beginnings: behind a token for it, if it has one."""
        return self.wrap(text)[0]

    def stream(self) -> Stream:
        return Stream(self.decode)

    def save(self, folder: Path) -> None:
        """Writes the files from which `load_tokenizer(folder)` makes the same tokenizer."""


class SymbolTokenizer(Tokenizer):
    """One token for each symbol that `pattern` cuts from a text, and END.

    Unlike byte-level BPE it knows no text beyond its symbols: `encode` raises ValueError naming a stranger.
    """

    mask = begin = None
    limit = sys.maxsize
    config: Mapping[str, Any] = {}

    def __init__(self, name: str, pattern: str, symbols: Sequence[str]):
        self.name, self.pattern, self.symbols = name, pattern, list(symbols)
        self.encoding = tiktoken.Encoding(
            name,
            pat_str=pattern,
            mergeable_ranks={symbol.encode(): rank for rank, symbol in enumerate(self.symbols)},
            special_tokens={END: len(self.symbols)},
        )
        self.end, self.vocab_size = len(self.symbols), len(self.symbols) + 1
        self.stops, self.control = frozenset([self.end]), {END: self.end}
        self.added = self.control
        # tiktoken panics on what it does not know, so strangers are looked for before it sees the text.
        self.pieces, self.known = re.compile(pattern).findall, frozenset(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Raises ValueError when a symbol of the text is not in the vocabulary."""
        stranger = next((piece for piece in self.pieces(text) if piece not in self.known), None)
        if stranger is not None:
            raise ValueError(f"the symbol {stranger!r} in {text!r} is not in the vocabulary {self.name!r}")
        return self.encoding.encode_ordinary(text)

    def parse(self, text: str, control: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """There is no text in which END counts as such; see `encode`."""
        ends = list(accumulate(map(len, self.pieces(text))))
        return self.encode(text), list(zip([0, *ends], ends, strict=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids up to the first END."""
        ids = list(ids)
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        return self.encoding.decode([i for i in ids if i < self.end])

    def wrap(self, *texts: str, limit: int | None = None, control: bool = False) -> tuple[list[int], list[int]]:
        """There is no text in which END counts as such, so `control` makes no difference."""
        parts = [self.encode(text) for text in texts]
        parts = [part[:size] for part, size in zip(parts, shorten([*map(len, parts)], limit), strict=True)]
        return [i for part in parts for i in part], [segment for segment, part in enumerate(parts) for _ in part]

    def save(self, folder: Path) -> None:
        fields = {"name": self.name, "pattern": self.pattern, "symbols": self.symbols}
        write_json(folder / "tokenizer.json", fields)

    @classmethod
    def load(cls, path: Path) -> "SymbolTokenizer":
        fields = read_json(path)
        symbols = fields.get("symbols")
        if fields.keys() != {"name", "pattern", "symbols"} or not isinstance(symbols, list):
            raise UserError(f"{path} describes no tokenizer: it must hold a name, a pattern and a list of symbols")
        if not symbols or not all(isinstance(each, str) and each for each in symbols):
            raise UserError(f"{path} describes no tokenizer: its symbols are no texts")
        try:
            return cls(**fields)
        except (TypeError, ValueError, re.error) as error:
            raise UserError(f"{path} describes no tokenizer: {error}") from None


def read_texts(
    tokenizer: Tokenizer,
    texts: Iterable[Sequence[str]],
    vocab_size: int,
    limit: int | None = None,
    control: bool = False,
) -> list[tuple[list[int], list[int]]]:
    """Ids and segments of each text or pair, see `Tokenizer.wrap`, for a model that knows so many tokens. UserError."""
    try:
        wrapped = [tokenizer.wrap(*each, limit=limit, control=control) for each in texts]
    except ValueError as error:  # a vocabulary of symbols
        raise UserError(f"this model does not read such a text: {error}") from None
    if (largest := max((i for ids, _ in wrapped for i in ids), default=0)) >= vocab_size:
        raise UserError(
            f"the vocabulary gives a text the token {largest}, but the model only has {vocab_size}: "
            "they do not belong together"
        )
    return wrapped


def shorten(sizes: Sequence[int], limit: int | None) -> Sequence[int]:
    """The sizes of one text or two, cut to `limit` in sum: the longer one first, then both to half of it."""
    if limit is None or sum(sizes) <= limit:
        return sizes
    limit = max(limit, 0)
    if len(sizes) == 1:
        return [limit]
    shorter = min(*sizes, limit // 2)
    return [limit - shorter, shorter] if sizes[0] > sizes[1] else [shorter, limit - shorter]


def beginning(text: str, stop: str) -> int:
    """How many of the last letters of the text are the beginning of `stop`, at most all but one of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

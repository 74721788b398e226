"""Text to token ids and back. A vocabulary of symbols is a `tiktoken.Encoding`, so nothing is fetched."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tiktoken

END = "<|end|>"  # closes every answer; the only special token


class SymbolTokenizer:
    """One token for each symbol that `pattern` cuts from a text, and END.

    Unlike byte-level BPE it knows no text beyond its symbols: `encode` raises ValueError naming a stranger.
    """

    def __init__(self, name: str, pattern: str, symbols: Sequence[str]):
        self.name, self.pattern, self.symbols = name, pattern, list(symbols)
        self.encoding = tiktoken.Encoding(
            name,
            pat_str=pattern,
            mergeable_ranks={symbol.encode(): rank for rank, symbol in enumerate(self.symbols)},
            special_tokens={END: len(self.symbols)},
        )
        # tiktoken panics on what it does not know, so strangers are looked for before it sees the text.
        self.pieces, self.known = re.compile(pattern).findall, frozenset(self.symbols)
        self.end = self.encoding.encode_single_token(END)

    @property
    def vocab_size(self) -> int:
        return self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """Raises ValueError when a symbol of the text is not in the vocabulary."""
        stranger = next((piece for piece in self.pieces(text) if piece not in self.known), None)
        if stranger is not None:
            raise ValueError(f"the symbol {stranger!r} in {text!r} is not in the vocabulary {self.name!r}")
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids up to the first END."""
        ids = list(ids)
        return self.encoding.decode(ids[: ids.index(self.end)] if self.end in ids else ids)

    def save(self, path: Path) -> None:
        """Writes JSON that `load` reads."""
        fields = {"name": self.name, "pattern": self.pattern, "symbols": self.symbols}
        path.write_text(json.dumps(fields, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "SymbolTokenizer":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

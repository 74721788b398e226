"""Which tokenizer a checkpoint brings along: a run's, one of the published kinds, or the one within a GGUF file."""

from pathlib import Path

from minillm.errors import UserError
from minillm.files import read_json
from minillm.published.gguf_vocabulary import read_vocabulary
from minillm.published.subwords import BYTE_LEVEL_FILES, read_byte_level, read_library_file, read_wordpiece
from minillm.tokenizer import SymbolTokenizer, Tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, a run or a GGUF file. Raises UserError where there is none or a wrong one."""
    if path.is_file():
        return read_vocabulary(path)
    if (file := path / "tokenizer.json").exists():  # of the `tokenizers` library, or a run's: one token a symbol
        return SymbolTokenizer.load(file) if "symbols" in read_json(file) else read_library_file(file)
    for vocabulary, merges in BYTE_LEVEL_FILES.items():
        if (path / vocabulary).exists() and (path / merges).exists():
            return read_byte_level(path / vocabulary, path / merges)
    if (path / "vocab.txt").exists():
        return read_wordpiece(path / "vocab.txt")
    raise UserError(f"{path} holds no tokenizer: no tokenizer.json, no vocab.json with merges.txt, no vocab.txt")

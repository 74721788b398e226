"""Models in GGUF files, as llama.cpp writes them: one file with metadata, vocabulary and, mostly, quantised weights.

header    "GGUF", version, how many tensors, how many entries of metadata; little-endian
metadata  key, type, value
table     name, shape (fastest dimension first), type and place of each tensor
data      the tensors, each at a multiple of the alignment

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. What model it is, gguf_model.py says, its vocabulary
gguf_vocabulary.py.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from minillm.errors import UserError, need

STRING, ARRAY = 8, 9
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # type of a metadata value → as `struct` calls it


@dataclass(frozen=True)
class Entry:
    """One tensor as it lies in the file."""

    shape: tuple[int, ...]  # slowest dimension first, as PyTorch has it
    type: int
    offset: int  # from the beginning of the data


class GGUF:
    """Metadata and table of a file; no tensor is read."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self._read(Cursor(file, path))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except (struct.error, UnicodeDecodeError, EOFError, RecursionError) as error:
            raise UserError(f"{path} is damaged or cut off ({error}); copy or download it again") from None

    def _read(self, cursor: "Cursor") -> None:
        if cursor.take(4) != b"GGUF":
            raise UserError(f"{self.path} is no GGUF file: it does not begin with the letters GGUF")
        version, num_tensors, num_entries = cursor.numbers("IQQ")
        if version not in (2, 3):
            raise UserError(f"{self.path} is GGUF of version {version}, and only 2 and 3 are supported")
        self.metadata = {cursor.string(): cursor.value(*cursor.numbers("I")) for _ in range(num_entries)}
        self.table: dict[str, Entry] = {}
        for _ in range(num_tensors):
            name, (num_dims,) = cursor.string(), cursor.numbers("I")
            shape = cursor.numbers(f"{num_dims}Q")[::-1]
            self.table[name] = Entry(shape, *cursor.numbers("IQ"))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise EOFError(f"general.alignment={alignment!r} is no size")
        self.data = -(-cursor.position // alignment) * alignment
        self.size = cursor.size

    def read(self, name: str) -> Tensor:
        """One tensor, dequantised to float32, in the layout of the file."""
        library = need("gguf", "gguf", f"reading {self.path}")
        entry = self.table[name]
        try:
            kind = library.GGMLQuantizationType(entry.type)
            block, size = library.GGML_QUANT_SIZES[kind]
            *rows, columns = entry.shape
            num_bytes = math.prod(entry.shape) // block * size
            if self.data + entry.offset + num_bytes > self.size:  # before memory is asked for
                raise UserError(f"{self.path} is cut off within {name!r}; copy or download it again")
            with self.path.open("rb") as file:
                file.seek(self.data + entry.offset)
                data = np.frombuffer(file.read(num_bytes), np.uint8)
            values = library.quants.dequantize(data.reshape(*rows, columns // block * size), kind)
        except (ValueError, KeyError, NotImplementedError):
            what = f"{name!r} has shape {entry.shape} and type {entry.type}"
            raise UserError(f"{self.path}: {what}, which the gguf library cannot dequantise") from None
        return torch.from_numpy(values if values.flags.writeable else values.copy())


class Cursor:
    """Reads on from where it is; EOFError at the end."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.position, self.size = file, path, 0, path.stat().st_size

    def take(self, size: int) -> bytes:
        if self.position + size > self.size:
            raise EOFError(f"it ends at byte {self.size}, amid its metadata")
        self.position += size
        return self.file.read(size)

    def numbers(self, format: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}")))

    def string(self) -> str:
        return self.take(*self.numbers("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise EOFError(f"there is metadata of type {kind}, which does not exist")
        kind, count = self.numbers("IQ")
        if kind in NUMBERS:
            return np.frombuffer(self.take(count * struct.calcsize(NUMBERS[kind])), f"<{NUMBERS[kind]}").tolist()
        return [self.value(kind) for _ in range(count)]

"""Texts, JSON and safetensors: written whole or not at all, read a tensor at a time, named where they are spoiled."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minillm.errors import UserError


def read_text(path: Path) -> str:
    """UTF-8, without a mark of the byte order. UserError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def read_json(path: Path, kind: type = dict) -> Any:
    """What the file holds: an object, or a list where that is asked for. UserError."""
    try:
        fields = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(fields, kind):
        raise UserError(f"{path} holds no JSON {'object' if kind is dict else kind.__name__}")
    return fields


def write_text(path: Path, text: str) -> None:
    """UserError if it cannot be written, here and below."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, fields: Any) -> None:
    write_text(path, json.dumps(fields, indent=1, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Any = None) -> None:
    """A safetensors file with JSON beside the tensors."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, {"format": "pt", "state": json.dumps(state)})


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to take the place of `path`, which stays as it was if that fails: UserError."""
    temporary = path.with_suffix(".partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def read_state(path: Path) -> Any:
    """The JSON beside the tensors."""
    try:
        with opened(path) as file:
            return json.loads((file.metadata() or {}).get("state", "null"))
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from None


class Tensors(Mapping[str, Tensor]):
    """The tensors of one or more safetensors files, each read when it is asked for."""

    def __init__(self, paths: Iterable[Path]):
        self.files: dict[str, Path] = {}
        for path in paths:
            with opened(path) as file:
                names = file.keys()
            if both := self.files.keys() & set(names):
                raise UserError(f"{path} and {self.files[min(both)]} both hold {min(both)!r}")
            self.files.update(dict.fromkeys(names, path))

    def __getitem__(self, name: str) -> Tensor:
        # Opened anew for each: what was read of an open file stays mapped, and would count as memory in use.
        with opened(self.files[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; if it is damaged, copy or download it again") from None

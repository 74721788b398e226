"""Texts, JSON and safetensors: written whole or not at all, read a tensor at a time, named where they are spoiled."""

import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minillm.errors import UserError

PARTIAL = ".partial"  # ends the names of folders in which files are still being written
CHECKSUM = "crc32"


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


def fields_from(kind: type, saved: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What JSON holds of a dataclass, as its fields were: a path became a text, a tuple a list. UserError for a value
    of another type, or of no field."""
    hints = get_type_hints(kind)
    values = {}
    for name, value in saved.items():
        value = Path(value) if isinstance(value, str) and Path in get_args(hints.get(name)) else value
        value = tuple(value) if isinstance(value, list) and get_origin(hints.get(name)) is tuple else value
        if name not in hints or not fits(value, hints[name]):
            raise UserError(f"{where} is spoiled: {name!r} cannot be {value!r}")
        values[name] = value
    return values


def fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the type: numbers, texts, paths, None, dictionaries and tuples of them."""
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(fits(each, kinds[1]) for each in value.values())
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(each, kinds[0]) for each in value)
    return isinstance(value, Path) or type(value) in kinds or (type(value) is int and float in kinds)


def write_text(path: Path, text: str) -> None:
    """UserError if it cannot be written, here and below."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, fields: Any) -> None:
    write_text(path, json.dumps(fields, indent=1, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Any = None) -> None:
    """A safetensors file. With JSON beside the tensors, there is a checksum of both, too, see `read_tensors`; without,
    the same tensors are always the same bytes (several entries come in any order)."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    beside = {"format": "pt"}
    if state is not None:
        text = json.dumps(state)
        beside |= {"state": text, CHECKSUM: checksum(contiguous, text)}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, beside)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to take the place of `path`, which stays as it was if that fails: UserError.

    The disk has it before it has the name, so that a machine that goes down leaves the old file or the new one.
    """
    # A folder for it alone: no two processes share it, and what a library writes beside it first, as safetensors does,
    # goes with it.
    room = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    temporary = room / path.name
    try:
        room.mkdir()
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        shutil.rmtree(room, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Has the disk keep which names are in a folder, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Of tensors in memory of their own and a text. It finds what a disk has spoiled, not what somebody has forged."""
    value = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"


def read_state(path: Path) -> Any:
    """The JSON beside the tensors."""
    try:
        with opened(path) as file:
            return json.loads((file.metadata() or {}).get("state", "null"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file that has JSON beside them. UserError if anything in it has changed since it was written."""
    tensors = dict(Tensors([path]))
    with opened(path) as file:
        beside = file.metadata() or {}
    if beside.get(CHECKSUM) != checksum(tensors, beside.get("state", "")):
        raise UserError(f"{path} is damaged: it is not what was written, as its checksum says")
    return tensors


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


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of the lines that they are."""
    value = hashlib.sha256()
    for part in parts:
        value.update(part + b"\n")
    return value.hexdigest()

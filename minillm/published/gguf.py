"""Models in GGUF files, as llama.cpp writes them: one file with metadata, vocabulary and, mostly, quantised weights.

header    "GGUF", version, how many tensors, how many entries of metadata; little-endian
metadata  key, type, value
table     name, shape (fastest dimension first), type and place of each tensor
data      the tensors, each at a multiple of the alignment

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. The tensors are given names and layout of Hugging Face,
so that nothing else need know of this format. Letters: H heads, D head dim, C width.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from minillm.errors import UserError, need
from minillm.layers import Llama3Scaling

STRING, ARRAY = 8, 9
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # type of a metadata value → as `struct` calls it

DECODER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
    "blk.*.attn_q_norm": "model.layers.*.self_attn.q_norm",
    "blk.*.attn_k_norm": "model.layers.*.self_attn.k_norm",
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
}
GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.*.attn_norm": "transformer.h.*.ln_1",
    "blk.*.attn_qkv": "transformer.h.*.attn.c_attn",
    "blk.*.attn_output": "transformer.h.*.attn.c_proj",
    "blk.*.ffn_norm": "transformer.h.*.ln_2",
    "blk.*.ffn_up": "transformer.h.*.mlp.c_fc",
    "blk.*.ffn_down": "transformer.h.*.mlp.c_proj",
}
DECODER_KEYS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
GPT2_KEYS = {
    "n_positions": "context_length",
    "n_layer": "block_count",
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}


@dataclass(frozen=True)
class Kind:
    """What an architecture of GGUF is called elsewhere."""

    architecture: str
    keys: Mapping[str, str]  # entry of config.json ← key of metadata, without the architecture before it
    names: Mapping[str, str]  # name of a module → Hugging Face's


KINDS = {
    "llama": Kind("LlamaForCausalLM", DECODER_KEYS, DECODER_NAMES),
    "qwen2": Kind("Qwen2ForCausalLM", DECODER_KEYS, DECODER_NAMES),
    "qwen3": Kind("Qwen3ForCausalLM", DECODER_KEYS, DECODER_NAMES),
    "gpt2": Kind("GPT2LMHeadModel", GPT2_KEYS, GPT2_NAMES),
}
REFUSED = ("expert_count", "attention.sliding_window", "attention.logit_softcapping", "rope.scaling.factor")


def open_gguf(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """What config.json would say, and the tensors by Hugging Face's names, float32, each read when it is asked for.

    UserError, in one sentence, for a file that is damaged, of another architecture or quantised in an unknown way.
    """
    file = GGUF(path)
    try:
        return file.config(), GGUFTensors(file)
    except (TypeError, ZeroDivisionError, IndexError) as error:
        raise UserError(f"{path}: its metadata describes no model that is supported ({error})") from None


# ---- the file ------------------------------------------------------------------------------------


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

    @property
    def kind(self) -> Kind:
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in KINDS:
            raise UserError(f"{self.path}: architecture {name!r} is not supported, only {', '.join(KINDS)}")
        return KINDS[name]

    def get(self, key: str, default: Any = None) -> Any:
        """A value of metadata that belongs to the architecture."""
        return self.metadata.get(f"{self.metadata['general.architecture']}.{key}", default)

    def config(self) -> dict[str, Any]:
        """config.json in Hugging Face's words."""
        if (parts := self.metadata.get("split.count", 1)) != 1:
            raise UserError(
                f"{self.path} is one of {parts} parts of a model (split.count={parts}); "
                "join them with llama.cpp first: llama-gguf-split --merge FIRST-PART WHOLE"
            )
        kind = self.kind
        for key in REFUSED:
            if self.get(key):
                raise UserError(f"{self.path}: {key}={self.get(key)} is not supported")
        fields = {ours: self.get(key) for ours, key in kind.keys.items() if self.get(key) is not None}
        if kind.keys is DECODER_KEYS:
            fields |= self._decoder_config(fields)
        if "token_embd.weight" not in self.table:
            raise UserError(
                f"{self.path} holds no 'token_embd.weight', so it is no language model or only a part of one"
            )
        return {
            "model_type": self.metadata["general.architecture"],
            "architectures": [kind.architecture],
            "vocab_size": self.table["token_embd.weight"].shape[0],
            "tie_word_embeddings": "output.weight" not in self.table,
            "bos_token_id": self.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.metadata.get("tokenizer.ggml.eos_token_id"),
            **fields,
        }

    def _decoder_config(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What has no key of its own."""
        head_dim = fields.get("head_dim") or self.get("embedding_length", 0) // self.get("attention.head_count", 1)
        if self.get("rope.dimension_count", head_dim) != head_dim:
            raise UserError(f"{self.path}: rope.dimension_count is not the head dim {head_dim}, which is not supported")
        more: dict[str, Any] = {"head_dim": head_dim}
        if self.metadata["general.architecture"] == "llama":
            more["attention_bias"] = "blk.0.attn_q.bias" in self.table
            more["mlp_bias"] = "blk.0.ffn_up.bias" in self.table
        if "rope_freqs.weight" in self.table:
            more["rope_scaling"] = self._rope_scaling(fields.get("rope_theta", 10_000.0), head_dim)
        return more

    def _rope_scaling(self, theta: float, head_dim: int) -> dict[str, Any]:
        """Llama 3's, of which the file only has the result: by how much each pair of dimensions is slowed down."""
        slowed = self.read("rope_freqs.weight").double()
        speeds = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        scaling = Llama3Scaling(
            slowed.max().item(), low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192
        )
        if slowed.shape != speeds.shape or not torch.allclose(speeds / slowed, scaling(speeds), rtol=1e-4):
            raise UserError(f"{self.path}: its rope_freqs are not those of Llama 3, and others are not supported")
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }

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


# ---- its tensors, in other words -----------------------------------------------------------------


class GGUFTensors(Mapping[str, Tensor]):
    """The tensors by Hugging Face's names and in its layout, each read when it is asked for."""

    def __init__(self, file: GGUF):
        self.file = file
        self.places = {self._name(name): name for name in file.table if name != "rope_freqs.weight"}

    def _name(self, name: str) -> str:
        """A name that is not in the table of the architecture stays, so that it will be named as left over."""
        module, _, kind = name.rpartition(".")
        layer = re.search(r"\d+", module)
        found = self.file.kind.names.get(re.sub(r"\d+", "*", module))
        return f"{found.replace('*', layer[0] if layer else '')}.{kind}" if found else name

    def __getitem__(self, name: str) -> Tensor:
        place = self.places[name]
        tensor = self.file.read(place)
        if self.file.metadata["general.architecture"] == "llama" and re.search(r"attn_[qk]\.", place):
            heads = self.file.get("attention.head_count")
            return unpermuted(tensor, self.file.get("attention.head_count_kv", heads) if "attn_k" in place else heads)
        if ".c_" in name and name.endswith("weight"):  # GPT-2 keeps these the other way round
            return tensor.T
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def unpermuted(tensor: Tensor, num_heads: int) -> Tensor:
    """(H·D, …) with the two halves of each head apart again: llama.cpp turns pairs of neighbours, Llama halves."""
    if num_heads < 1 or len(tensor) % (2 * num_heads):
        return tensor  # whose shape does not fit the heads: the check of shapes reports it
    return tensor.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)

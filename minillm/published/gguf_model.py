"""The model in a GGUF file, in the words of Hugging Face, so that nothing else need know of the format.

What the metadata says of an architecture is understood, or without effect, or refused.

Letters: H heads, D head dim.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minillm.errors import UserError
from minillm.layers import Llama3Scaling
from minillm.published.gguf import GGUF

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
NONE = (0, 1)  # of a factor that is off by either
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what an architecture's metadata may say besides, as it changes nothing
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": NONE,
    "residual_scale": NONE,
    "embedding_scale": NONE,
    "expert_count": (0,),
    "expert_used_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "rope.scaling.attn_factor": NONE,
    "rope.scaling.yarn_attn_factor": NONE,
    "rope.scaling.yarn_log_multiplier": (0,),
}
ROPE = ("rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
ROPE += ("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")
HARMLESS = ("tensor_data_layout", "rope.scaling.finetuned")  # where a file came from


def open_gguf(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """What config.json would say, and the tensors by Hugging Face's names, float32, each read when it is asked for.

    UserError, in one sentence, for a file that is damaged, of another architecture or quantised in an unknown way.
    """
    description = Description(GGUF(path))
    try:
        return description.config(), GGUFTensors(description)
    except (TypeError, ZeroDivisionError, IndexError) as error:
        raise UserError(f"{path}: its metadata describes no model that is supported ({error})") from None


# ---- what it is ----------------------------------------------------------------------------------


class Description:
    """The metadata of a file, as config.json would have it."""

    def __init__(self, file: GGUF):
        self.file, self.path, self.table, self.metadata = file, file.path, file.table, file.metadata
        if (parts := self.metadata.get("split.count", 1)) != 1:
            raise UserError(
                f"{self.path} is one of {parts} parts of a model (split.count={parts}); "
                "join them with llama.cpp first: llama-gguf-split --merge FIRST-PART WHOLE"
            )
        self.architecture = self.metadata.get("general.architecture")
        if not isinstance(self.architecture, str) or self.architecture not in KINDS:
            raise UserError(
                f"{self.path}: architecture {self.architecture!r} is not supported, only {', '.join(KINDS)}"
            )
        self.kind = KINDS[self.architecture]

    def get(self, key: str, default: Any = None) -> Any:
        """A value of metadata that belongs to the architecture."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def config(self) -> dict[str, Any]:
        """config.json in Hugging Face's words."""
        if "token_embd.weight" not in self.table:
            raise UserError(
                f"{self.path} holds no 'token_embd.weight', so it is no language model or only a part of one"
            )
        fields = {ours: self.get(key) for ours, key in self.kind.keys.items() if self.get(key) is not None}
        vocab_size = self.table["token_embd.weight"].shape[0]
        self._check_keys(vocab_size)
        if self.kind.keys is DECODER_KEYS:
            fields |= self._decoder_config()
        return {
            "model_type": self.architecture,
            "architectures": [self.kind.architecture],
            "vocab_size": vocab_size,
            "tie_word_embeddings": "output.weight" not in self.table,
            "bos_token_id": self.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.metadata.get("tokenizer.ggml.eos_token_id"),
            **fields,
        }

    @cached_property
    def head_dim(self) -> int:
        shared_out = self.get("embedding_length", 0) // self.get("attention.head_count", 1)
        return self.get("attention.key_length") or shared_out

    def _check_keys(self, vocab_size: int) -> None:
        """UserError for what the file says of its architecture that is neither understood nor without effect."""
        understood = {*self.kind.keys.values(), *HARMLESS, *(ROPE if self.kind.keys is DECODER_KEYS else ())}
        neutral = NEUTRAL | {
            "vocab_size": (vocab_size,),
            "attention.value_length": (self.head_dim,),
            "rope.dimension_count": (self.head_dim,),
            "rope.scaling.yarn_ext_factor": (1 if self.get("rope.scaling.type") == "yarn" else 0,),
            "attention.scale": (0, float(np.float32(self.head_dim**-0.5))),
        }
        prefix = f"{self.architecture}."
        for name in self.metadata:
            key = name.removeprefix(prefix)
            if key != name and key not in understood and self.metadata[name] not in neutral.get(key, ()):
                raise UserError(f"{self.path}: {name}={self.metadata[name]!r} is not supported")

    def _decoder_config(self) -> dict[str, Any]:
        """What has no key of its own."""
        more: dict[str, Any] = {"head_dim": self.head_dim}
        if self.architecture == "llama":
            more["attention_bias"] = "blk.0.attn_q.bias" in self.table
            more["mlp_bias"] = "blk.0.ffn_up.bias" in self.table
        if scaling := self._scaling():
            more["rope_scaling"] = scaling
        if "rope_freqs.weight" in self.table:
            if scaling:
                raise UserError(f"{self.path}: rope.scaling beside rope_freqs.weight is not supported")
            more["rope_scaling"] = self._llama3_scaling(self.get("rope.freq_base", 10_000.0))
        return more

    def _scaling(self) -> dict[str, Any]:
        """What the keys say, as llama.cpp reads them: without a type a factor is linear, and 0 is none."""
        kind = self.get("rope.scaling.type", "linear")
        factor = self.get("rope.scaling.factor") or self.get("rope.scale_linear") or 0.0
        if kind == "none" or (kind == "linear" and factor in NONE):
            return {}
        if kind not in ("linear", "yarn") or not factor:
            raise UserError(f"{self.path}: rope.scaling.type={kind!r} with factor {factor} is not supported")
        return {
            "rope_type": kind,
            "factor": factor,
            "original_max_position_embeddings": self.get("rope.scaling.original_context_length") or None,
            "beta_fast": self.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": self.get("rope.scaling.yarn_beta_slow"),
        }

    def _llama3_scaling(self, theta: float) -> dict[str, Any]:
        """Llama 3's, of which the file only has the result: by how much each pair of dimensions is slowed down."""
        slowed = self.file.read("rope_freqs.weight").double()
        speeds = theta ** -(torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
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


# ---- its tensors, in other words -----------------------------------------------------------------


class GGUFTensors(Mapping[str, Tensor]):
    """The tensors by Hugging Face's names and in its layout, each read when it is asked for."""

    def __init__(self, described: Description):
        self.described = described
        self.places = {self._name(name): name for name in described.table if name != "rope_freqs.weight"}

    def _name(self, name: str) -> str:
        """A name that is not in the table of the architecture stays, so that it will be named as left over."""
        module, _, kind = name.rpartition(".")
        layer = re.search(r"\d+", module)
        found = self.described.kind.names.get(re.sub(r"\d+", "*", module))
        return f"{found.replace('*', layer[0] if layer else '')}.{kind}" if found else name

    def __getitem__(self, name: str) -> Tensor:
        place = self.places[name]
        tensor = self.described.file.read(place)
        if self.described.architecture == "llama" and re.search(r"attn_[qk]\.", place):
            heads = self.described.get("attention.head_count")
            kv_heads = self.described.get("attention.head_count_kv", heads)
            return unpermuted(tensor, kv_heads if "attn_k" in place else heads)
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

"""GPT: a decoder that predicts the next token.

Letters: B sequences, N tokens (packed), C width, H query heads, G key/value heads, D head dim, V vocabulary.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from kernels import Packing, attention, linear_cross_entropy
from minillm.kv_cache import KVCache
from minillm.layers import (
    MLP,
    Attend,
    Attention,
    LayerNorm,
    Linear,
    RMSNorm,
    RopeScaling,
    Rotation,
    SwiGLU,
    dropout,
    require,
    rope,
)


@dataclass(frozen=True)
class GPTConfig:
    """How the models that people know differ from the defaults:

    GPT-2          positions="learned", bias=True
    Llama, SmolLM2 norm="rmsnorm", mlp="swiglu", num_kv_heads; rope_scaling from Llama 3.1 on
    Qwen2          the same with qkv_bias=True
    Qwen3          the same with qk_norm=True and its own head_dim
    """

    vocab_size: int
    max_seq_len: int
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 0  # fewer than query heads make the KV cache smaller; 0: as many
    head_dim: int = 0  # 0: the width shared out among the heads
    mlp_width: int = 0  # 0: four times the width
    positions: str = "rope"  # "rope" turns queries and keys, "learned" adds a vector to the input
    rope_theta: float = 10_000.0  # pair i of D/2 turns by theta^(−2i/D) radians a token
    rope_scaling: RopeScaling | None = None  # how Llama 3 turns more slowly for longer contexts
    norm: str = "layernorm"  # "layernorm" (GPT-2) or "rmsnorm" (Llama)
    norm_eps: float = 1e-5
    mlp: str = "gelu"  # "gelu" (GPT-2) or "swiglu" (Llama)
    bias: bool = False  # biases in linear layers and layer norms
    qkv_bias: bool = False  # biases of queries, keys and values even where nothing else has any
    qk_norm: bool = False  # RMSNorm of every query and key before it is turned
    tie_embeddings: bool = True  # the output matrix is the embedding matrix
    dropout: float = 0.0  # on the embeddings and on what each layer adds
    attention_dropout: float = 0.0  # on the probabilities of attention

    # As a classifier (heads.py): only the last token has seen the whole sequence; no biases, no segments.
    pooling = "last"
    classifier_bias = False
    num_segments = 0

    def __post_init__(self):
        for name in ("vocab_size", "max_seq_len", "num_layers", "width", "num_heads"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        for name in ("num_kv_heads", "head_dim", "mlp_width"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        require(
            self.head_dim > 0 or self.width % self.num_heads == 0,
            f"width={self.width} is no multiple of num_heads={self.num_heads}",
        )
        for name in ("rope_theta", "norm_eps"):
            require(0 < getattr(self, name) < math.inf, f"{name}={getattr(self, name)} must be positive")
        self._fill("num_kv_heads", self.num_heads)
        self._fill("head_dim", self.width // self.num_heads)
        self._fill("mlp_width", 4 * self.width)
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}",
        )
        require(self.positions in ("rope", "learned"), f"positions={self.positions!r} is not 'rope' or 'learned'")
        require(
            self.positions != "rope" or self.head_dim % 2 == 0,
            f"RoPE needs an even head_dim, not {self.head_dim}",
        )
        require(self.norm in ("layernorm", "rmsnorm"), f"norm={self.norm!r} is not 'layernorm' or 'rmsnorm'")
        require(self.mlp in ("gelu", "swiglu"), f"mlp={self.mlp!r} is not 'gelu' or 'swiglu'")
        for name in ("dropout", "attention_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} is not in [0, 1)")

    def _fill(self, name: str, default: int) -> None:
        """What was left at 0 follows from the other fields: two configs are equal if their models are."""
        object.__setattr__(self, name, getattr(self, name) or default)

    @property
    def classifier_dropout(self) -> float:
        return self.dropout

    def make_encoder(self) -> "GPT":
        return GPT(replace(self, tie_embeddings=True))  # an output matrix of its own would have no use

    def make_sequence_transform(self) -> nn.Module:
        return nn.Identity()

    def make_norm(self) -> nn.Module:
        if self.norm == "rmsnorm":
            return RMSNorm(self.width, eps=self.norm_eps)
        return LayerNorm(self.width, eps=self.norm_eps, bias=self.bias)

    def make_mlp(self) -> nn.Module:
        if self.mlp == "swiglu":
            return SwiGLU(self.width, self.mlp_width, self.bias)
        return MLP(self.width, self.mlp_width, self.bias, approximate="tanh")

    def make_attention(self) -> Attention:
        heads = self.num_heads, self.num_kv_heads, self.head_dim
        qk_norm_eps = self.norm_eps if self.qk_norm else None
        return Attention(self.width, *heads, self.bias, self.qkv_bias, qk_norm_eps)


class Block(nn.Module):
    """Pre-norm: each layer reads a normalised copy and adds to the residual stream, which stays untouched."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn_norm = config.make_norm()
        self.attn = config.make_attention()
        self.mlp_norm = config.make_norm()
        self.mlp = config.make_mlp()
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        x = x + dropout(self.attn(self.attn_norm(x), rotation, attend), self.dropout, self.training)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None  # of the activations; None: as the parameters
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_seq_len, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = config.make_norm()
        self.output = Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.tokens.weight
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """All initialisation, from torch's global generator.

        embeddings, output          N(0, 0.02²)
        products into the layers    N(0, 1/C)
        products onto the stream    0: at the start every block is the identity
        biases                      0
        norms                       1
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.zeros_(block.attn.out.weight)
            nn.init.zeros_(block.mlp.down.weight)
        nn.init.normal_(self.output.weight, std=0.02)

    def forward(self, tokens: Tensor, packing: Packing, cache: KVCache | None = None) -> Tensor:
        """Hidden states (N, C) of packed tokens (N,) int64; `logits` or `loss` turn them into predictions.

        With a cache, the tokens continue the cached sequences and are added to them.
        Raises ValueError when a sequence outgrows `max_seq_len`.
        """
        config = self.config
        extension = cache.extend(packing) if cache else None
        longest = (extension or packing).max_len
        if longest > config.max_seq_len:  # not `require`: torch.compile knows no length to put into a sentence
            raise ValueError(f"a sequence has {longest} tokens but max_seq_len={config.max_seq_len}")
        positions = (extension or packing).positions
        x = self.tokens(tokens)
        if config.positions == "learned":
            x = x + self.positions(positions)
        x = dropout(x.to(self.compute_dtype or x.dtype), config.dropout, self.training)
        rotation = None
        if config.positions == "rope":
            rotation = rope(positions, config.head_dim, config.rope_theta, x.dtype, config.rope_scaling)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, extension.attend(layer) if extension else self.attend(packing))
        return self.final_norm(x)

    def attend(self, packing: Packing) -> Attend:
        """The attention of one layer over whole sequences; in training each layer draws another dropout."""
        p = self.config.attention_dropout if self.training else 0.0
        seed = int(torch.randint(2**31, ())) if p > 0 else 0
        return partial(attention, causal=True, packing=packing, dropout_p=p, dropout_seed=seed)

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, C) → (N, V)."""
        return self.output(hidden)

    def loss(self, hidden: Tensor, targets: Tensor, **options) -> Tensor:
        """−log p(target) of every token, (N,) float32, 0 where the target is −100; see `linear_cross_entropy`."""
        return linear_cross_entropy(hidden, self.output.weight, targets, **options)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` sequences of up to `capacity` tokens."""
        config, weight = self.config, self.tokens.weight
        like = weight.new_empty(0, dtype=self.compute_dtype or weight.dtype)
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        return KVCache(config.num_layers, batch, capacity, *heads, like)

"""ModernBERT: BERT with what was learned since (Warner et al. 2024, arXiv:2412.13663).

Against bert.py: pre-norm and no biases; RoPE instead of a table of positions; a gated MLP; and only every third layer
looks at the whole sequence, the others at a window around each token. There are no segments.

Letters: N tokens (packed), C width, H heads, D head dim.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kernels import Packing, attention
from minillm import layers
from minillm.layers import Attend, Attention, GeGLU, LayerNorm, Rotation, initialise, require, rope, taken


@dataclass(frozen=True)
class ModernBERTConfig:
    vocab_size: int
    max_seq_len: int = 8192
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    mlp_width: int = 0  # 0: one and a half times the width
    global_every: int = 3  # layers 0, 3, 6, … see everything, the others a window
    window: int = 65  # a token sees those less than this away, on both sides
    global_theta: float = 160_000.0  # of RoPE where everything is seen
    local_theta: float = 10_000.0  # of RoPE where a window is seen
    norm_eps: float = 1e-5
    pooling: str = "first"  # what stands for a sequence in a classifier: its "first" token, or the "mean" of all
    classifier_dropout: float = 0.0  # before the last product of a classifier
    tie_embeddings: bool = True  # the output matrix for masked words is the embedding matrix

    def __post_init__(self):
        layers.check_positive(self, "vocab_size", "max_seq_len", "num_layers", "width", "num_heads")
        layers.check_positive(self, "global_every", "window", "global_theta", "local_theta", "norm_eps")
        require(self.mlp_width >= 0, f"mlp_width={self.mlp_width} must not be negative")
        layers.check_multiple(self, "width", "num_heads")
        require(self.head_dim % 2 == 0, f"RoPE needs an even head_dim, not {self.head_dim}")
        layers.check_choice(self, "pooling", ("first", "mean"))
        layers.check_share(self, "classifier_dropout")
        object.__setattr__(self, "mlp_width", self.mlp_width or 3 * self.width // 2)

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


class Block(nn.Module):
    """Pre-norm: each layer reads a normalised copy and adds to the residual stream, which stays untouched."""

    def __init__(self, config: ModernBERTConfig, layer: int):
        super().__init__()
        self.is_global = layer % config.global_every == 0
        # What the first layer reads was normalised already, with the embeddings.
        self.attn_norm = make_norm(config) if layer > 0 else nn.Identity()
        self.attn = Attention(
            config.width, config.num_heads, config.num_heads, config.head_dim, qkv_bias=False, out_bias=False
        )
        self.mlp_norm = make_norm(config)
        self.mlp = GeGLU(config.width, config.mlp_width, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend, at: Tensor | None = None) -> Tensor:
        """(N, C) → (N, C), or of the tokens `at` (M,) alone (M, C)."""
        x = taken(x, at) + self.attn(self.attn_norm(x), rotation, attend, at)
        return x + self.mlp(self.mlp_norm(x))


class ModernBERT(nn.Module):
    """The encoder: tokens to hidden states."""

    def __init__(self, config: ModernBERTConfig):
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None  # of the activations; None: as the parameters
        self.recompute = False  # activations within blocks, instead of keeping them for the backward pass
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.embedding_norm = make_norm(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = make_norm(config)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights and embeddings N(0, 0.02²), products onto the stream smaller as there are more; norms 1."""
        self.apply(initialise)
        for block in self.blocks:
            for onto in (block.attn.out, block.mlp.down):
                onto.weight /= (2 * len(self.blocks)) ** 0.5

    def forward(self, tokens: Tensor, packing: Packing, segments: None = None, at: Tensor | None = None) -> Tensor:
        """Hidden states (N, C) of packed tokens (N,). Where only those `at` (M,) int64 are asked for, (M, C): what is
        behind the last attention is computed for them alone.

        Raises ValueError when a sequence is longer than `max_seq_len`, or for segments, which the model doesn't know.
        """
        config = self.config
        longest = packing.max_len
        require(
            longest <= config.max_seq_len,
            f"a sequence has {longest} tokens but max_seq_len={config.max_seq_len}",
        )
        require(segments is None, "this model knows no segments: leave them out")
        x = self.tokens(tokens)
        x = self.embedding_norm(x.to(self.compute_dtype or x.dtype))
        turn = partial(rope, packing.positions, config.head_dim, dtype=x.dtype)
        attend = partial(attention, packing=packing)
        window = config.window if longest > config.window else None  # one that hides nothing costs nothing
        everywhere = turn(theta=config.global_theta), attend
        nearby = turn(theta=config.local_theta), partial(attend, window=window)
        blocks = layers.recomputed(self.blocks) if self.recompute else self.blocks
        for block, kind, asked in zip(blocks, self.blocks, layers.asked_of(len(blocks), at), strict=True):
            x = block(x, *(everywhere if kind.is_global else nearby), asked)
        return self.final_norm(x)


def make_norm(config: ModernBERTConfig) -> LayerNorm:
    return LayerNorm(config.width, eps=config.norm_eps, bias=False)

"""BERT: an encoder in which every token sees every other (Devlin et al. 2018, arXiv:1810.04805).

MiniLM is a small one. RoBERTa and DistilBERT are the same blocks; how they differ is in the config. The heads are in
heads.py.

Letters: N tokens (packed), C width, H heads, D head dim.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Packing, attention
from minillm import layers
from minillm.layers import MLP, Attend, Attention, LayerNorm, dropout, initialise, require, taken

POOLERS = {"tanh": torch.tanh, "relu": F.relu}


@dataclass(frozen=True)
class BERTConfig:
    vocab_size: int
    max_seq_len: int = 512
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    mlp_width: int = 0  # 0: four times the width
    num_segments: int = 2  # sentence A and sentence B; 0: the model knows no segments (DistilBERT)
    position_offset: int = 0  # rows of the table of positions before that of the first token (RoBERTa: 2)
    norm_eps: float = 1e-12
    activation: str = (
        "gelu-erf"  # of the MLPs and of the head for masked words: "gelu-erf", "gelu" (tanh form) or "relu"
    )
    pooler: str = "tanh"  # between the two products of a sequence classifier; "relu" in DistilBERT
    dropout: float = 0.1  # on the embeddings and on what each layer adds
    attention_dropout: float = 0.0  # on the probabilities of attention
    classifier_dropout: float = 0.1  # before the last product of a classifier
    tie_embeddings: bool = True  # the output matrix for masked words is the embedding matrix

    def __post_init__(self):
        layers.check_positive(self, "vocab_size", "max_seq_len", "num_layers", "width", "num_heads", "norm_eps")
        for name in ("mlp_width", "num_segments", "position_offset"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        layers.check_multiple(self, "width", "num_heads")
        layers.check_choice(self, "activation", tuple(layers.ACTIVATIONS))
        layers.check_choice(self, "pooler", tuple(POOLERS))
        layers.check_share(self, "dropout", "attention_dropout", "classifier_dropout")
        object.__setattr__(self, "mlp_width", self.mlp_width or 4 * self.width)


class Block(nn.Module):
    """Post-norm: each layer adds to its input, and the sum is normalised."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        head_dim = config.width // config.num_heads
        self.attn = Attention(config.width, config.num_heads, config.num_heads, head_dim, qkv_bias=True, out_bias=True)
        self.attn_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, bias=True, activation=config.activation)
        self.mlp_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = config.dropout

    def forward(self, x: Tensor, attend: Attend, at: Tensor | None = None) -> Tensor:
        """(N, C) → (N, C), or of the tokens `at` (M,) alone (M, C)."""
        mixed = self.attn(x, None, attend, at)
        x = self.attn_norm(taken(x, at) + dropout(mixed, self.dropout, self.training))
        return self.mlp_norm(x + dropout(self.mlp(x), self.dropout, self.training))


class BERT(nn.Module):
    """The encoder: tokens to hidden states."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None  # of the activations; None: as the parameters
        self.recompute = False  # activations within blocks, instead of keeping them for the backward pass
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.position_offset + config.max_seq_len, config.width)
        if config.num_segments:
            self.segments = nn.Embedding(config.num_segments, config.width)
        self.embedding_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.apply(initialise)

    def forward(
        self, tokens: Tensor, packing: Packing, segments: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Hidden states (N, C) of packed tokens (N,); segments (N,) are all 0 where not given. Where only those `at`
        (M,) int64 are asked for, (M, C): what is behind the last attention is computed for them alone.

        Raises ValueError when a sequence is longer than `max_seq_len`, or for segments that the model doesn't know.
        """
        config = self.config
        x = self.embed(tokens, packing, segments)
        x = self.embedding_norm(x.to(self.compute_dtype or x.dtype))
        x = dropout(x, config.dropout, self.training)
        blocks = layers.recomputed(self.blocks) if self.recompute else self.blocks
        for block, asked in zip(blocks, layers.asked_of(len(blocks), at), strict=True):
            x = block(x, self.attend(packing), asked)
        return x

    def attend(self, packing: Packing) -> Attend:
        """For one layer: in training each draws another dropout."""
        p = self.config.attention_dropout if self.training else 0.0
        seed = int(torch.randint(2**31, ())) if p > 0 else 0
        return partial(attention, packing=packing, dropout_p=p, dropout_seed=seed)

    def embed(self, tokens: Tensor, packing: Packing, segments: Tensor | None) -> Tensor:
        """The sum of what is known of each token before any looks at another: (N, C)."""
        config = self.config
        longest = packing.max_len
        require(
            longest <= config.max_seq_len,
            f"a sequence has {longest} tokens but max_seq_len={config.max_seq_len}",
        )
        x = self.tokens(tokens) + self.positions(packing.positions + config.position_offset)
        if segments is not None:
            require(config.num_segments > 0, "this model knows no segments: leave them out")
            return x + self.segments(segments)
        return x + self.segments.weight[0] if config.num_segments else x

"""BERT: an encoder in which every token sees every other (Devlin et al. 2018, arXiv:1810.04805).

Letters: B sequences, N tokens (packed), C width, H heads, D head dim, V vocabulary, K classes.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Packing, attention, linear_cross_entropy
from minillm.layers import MLP, Attend, Attention, LayerNorm, Linear, dropout, require


@dataclass(frozen=True)
class BERTConfig:
    vocab_size: int
    max_seq_len: int = 512
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    mlp_width: int = 0  # 0: four times the width
    num_segments: int = 2  # sentence A and sentence B
    norm_eps: float = 1e-12
    dropout: float = 0.1  # on the embeddings, on what each layer adds, and before a classifier

    def __post_init__(self):
        for name in ("vocab_size", "max_seq_len", "num_layers", "width", "num_heads", "num_segments"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        require(self.mlp_width >= 0, f"mlp_width={self.mlp_width} must not be negative")
        require(
            self.width % self.num_heads == 0,
            f"width={self.width} is no multiple of num_heads={self.num_heads}",
        )
        require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1)")

    def make_norm(self) -> LayerNorm:
        return LayerNorm(self.width, eps=self.norm_eps)


class Block(nn.Module):
    """Post-norm: each layer adds to its input, and the sum is normalised."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        head_dim = config.width // config.num_heads
        self.attn = Attention(config.width, config.num_heads, config.num_heads, head_dim, bias=True)
        self.attn_norm = config.make_norm()
        self.mlp = MLP(config.width, config.mlp_width or 4 * config.width, bias=True, approximate="none")
        self.mlp_norm = config.make_norm()
        self.dropout = config.dropout

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = self.attn_norm(x + dropout(self.attn(x, None, attend), self.dropout, self.training))
        return self.mlp_norm(x + dropout(self.mlp(x), self.dropout, self.training))


class BERT(nn.Module):
    """The encoder: tokens to hidden states. The heads below hold one each."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None  # of the activations; None: as the parameters
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.max_seq_len, config.width)
        self.segments = nn.Embedding(config.num_segments, config.width)
        self.embedding_norm = config.make_norm()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.apply(initialise)

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """Hidden states (N, C) of packed tokens (N,); segments (N,) are all 0 where not given."""
        config = self.config
        longest = packing.max_len
        require(
            longest <= config.max_seq_len,
            f"a sequence has {longest} tokens but max_seq_len={config.max_seq_len}",
        )
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = self.tokens(tokens) + self.positions(packing.positions) + self.segments(segments)
        x = self.embedding_norm(x.to(self.compute_dtype or x.dtype))
        x = dropout(x, config.dropout, self.training)
        attend = partial(attention, packing=packing)
        for block in self.blocks:
            x = block(x, attend)
        return x


class MaskedLM(nn.Module):
    """Predicts the token behind a mask."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.bert = BERT(config)
        self.transform = Linear(config.width, config.width)
        self.norm = config.make_norm()
        self.output = Linear(config.width, config.vocab_size)
        self.apply(initialise)
        self.output.weight = self.bert.tokens.weight

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """What the output matrix reads, (N, C); `logits` or `loss` turn it into predictions."""
        return self.norm(F.gelu(self.transform(self.bert(tokens, packing, segments))))

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, C) → (N, V)."""
        return self.output(hidden)

    def loss(self, hidden: Tensor, targets: Tensor, **options) -> Tensor:
        """−log p(target) of every token, (N,) float32, 0 where the target is −100; see `linear_cross_entropy`."""
        return linear_cross_entropy(hidden, self.output.weight, targets, bias=self.output.bias, **options)


class SequenceClassifier(nn.Module):
    """One label a sequence, read from its first token ([CLS]) through BERT's pooler."""

    def __init__(self, config: BERTConfig, num_classes: int):
        super().__init__()
        self.bert = BERT(config)
        self.pooler = Linear(config.width, config.width)
        self.classifier = Linear(config.width, num_classes)
        self.apply(initialise)

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """Logits (B, K)."""
        first = self.bert(tokens, packing, segments)[packing.cu_seqlens[:-1].long()]
        pooled = torch.tanh(self.pooler(first))
        return self.classifier(dropout(pooled, self.bert.config.dropout, self.training))


class TokenClassifier(nn.Module):
    """One label a token."""

    def __init__(self, config: BERTConfig, num_classes: int):
        super().__init__()
        self.bert = BERT(config)
        self.classifier = Linear(config.width, num_classes)
        self.apply(initialise)

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """Logits (N, K)."""
        hidden = self.bert(tokens, packing, segments)
        return self.classifier(dropout(hidden, self.bert.config.dropout, self.training))


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """BERT's: weights and embeddings N(0, 0.02²), biases 0, norms 1."""
    if isinstance(module, Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)

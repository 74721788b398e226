"""What is read from the hidden states of a model: masked tokens, classes, embeddings.

The config says how its family does it: which token stands for a sequence, and what comes before the last product.

Letters: B sequences, N tokens (packed), C width, V vocabulary, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Packing, linear_cross_entropy
from minillm.bert import BERTConfig
from minillm.gpt import GPTConfig
from minillm.layers import Linear, dropout, initialise, require
from minillm.modernbert import ModernBERTConfig

EncoderConfig = BERTConfig | ModernBERTConfig
AnyConfig = EncoderConfig | GPTConfig


class Head(nn.Module):
    """An encoder and what is put on top of it."""

    lower_case = False  # whether texts are to be read in lower case

    def __init__(self, config: AnyConfig):
        super().__init__()
        self.encoder = config.make_encoder()

    @property
    def config(self) -> AnyConfig:
        return self.encoder.config

    @property
    def max_seq_len(self) -> int:
        """Most tokens of a text that are read."""
        return self.config.max_seq_len

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Of the activations; None: as the parameters."""
        return self.encoder.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self.encoder.compute_dtype = dtype

    def encode(self, tokens: Tensor, packing: Packing, segments: Tensor | None) -> Tensor:
        """Hidden states (N, C). Models that know no segments tell the texts of a pair by what stands between them."""
        if segments is not None and self.config.num_segments > 1:
            return self.encoder(tokens, packing, segments)
        return self.encoder(tokens, packing)


class MaskedLM(Head):
    """Predicts the token behind a mask."""

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.transform = config.make_lm_transform().apply(initialise)
        self.output = Linear(config.width, config.vocab_size).apply(initialise)
        self.output.weight = self.encoder.tokens.weight

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """What the output matrix reads, (N, C); `logits` or `loss` turn it into predictions."""
        return self.transform(self.encode(tokens, packing, segments))

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, C) → (N, V)."""
        return self.output(hidden)

    def loss(self, hidden: Tensor, targets: Tensor, **options) -> Tensor:
        """−log p(target) of every token, (N,) float32, 0 where the target is −100; see `linear_cross_entropy`."""
        return linear_cross_entropy(hidden, self.output.weight, targets, bias=self.output.bias, **options)


class SequenceClassifier(Head):
    """One of some classes for every sequence."""

    def __init__(self, config: AnyConfig, classes: Sequence[str]):
        super().__init__(config)
        self.classes = tuple(classes)
        self.transform = config.make_sequence_transform().apply(initialise)
        self.classifier = Linear(config.width, len(classes), config.classifier_bias).apply(initialise)

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """Logits (B, K)."""
        pooled = POOLING[self.config.pooling](self.encode(tokens, packing, segments), packing)
        return self.classifier(dropout(self.transform(pooled), self.config.classifier_dropout, self.training))


class TokenClassifier(Head):
    """One of some classes for every token."""

    def __init__(self, config: EncoderConfig, classes: Sequence[str]):
        super().__init__(config)
        self.classes = tuple(classes)
        self.transform = config.make_token_transform().apply(initialise)
        self.classifier = Linear(config.width, len(classes)).apply(initialise)

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """Logits (N, K)."""
        hidden = self.transform(self.encode(tokens, packing, segments))
        return self.classifier(dropout(hidden, self.config.classifier_dropout, self.training))


class SentenceEmbedder(Head):
    """One direction a sequence; the cosine of two says how alike they mean (Sentence-BERT, arXiv:1908.10084).

    pooling       what of a sequence counts: the "mean" over its tokens, the "first" or the "last" of them
    max_seq_len   most tokens of a text to read, where that is fewer than the encoder could
    lower_case    whether texts are to be read in lower case, whatever the tokenizer does
    """

    def __init__(
        self, config: EncoderConfig, pooling: str = "mean", max_seq_len: int | None = None, lower_case: bool = False
    ):
        super().__init__(config)
        require(pooling in POOLING, f"pooling={pooling!r} is not one of {', '.join(POOLING)}")
        require(max_seq_len is None or max_seq_len > 0, f"max_seq_len={max_seq_len} must be positive")
        self.pooling, self.limit, self.lower_case = pooling, max_seq_len or config.max_seq_len, lower_case

    @property
    def max_seq_len(self) -> int:
        return min(self.limit, self.config.max_seq_len)

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """(B, C) of length 1, in float32 or better."""
        hidden = self.encode(tokens, packing, segments)
        pooled = POOLING[self.pooling](hidden.to(torch.promote_types(hidden.dtype, torch.float32)), packing)
        return F.normalize(pooled, dim=-1)


def first(hidden: Tensor, packing: Packing) -> Tensor:
    """(N, C) → (B, C): the first token of each sequence."""
    return hidden[packing.cu_seqlens[:-1].long()]


def last(hidden: Tensor, packing: Packing) -> Tensor:
    """(N, C) → (B, C): the last token of each sequence."""
    return hidden[packing.cu_seqlens[1:].long() - 1]


def mean(hidden: Tensor, packing: Packing) -> Tensor:
    """(N, C) → (B, C): the mean over each sequence."""
    total = hidden.new_zeros(len(packing.lengths), hidden.shape[1]).index_add(0, packing.sequence, hidden)
    return total / packing.lengths_tensor[:, None]


POOLING = {"first": first, "last": last, "mean": mean}

"""What is read from the hidden states of a model: masked tokens, classes, scores, embeddings.
(GPT's next token is in gpt.py.)

How a family does it, which token stands for a sequence and what comes before the last product, is told by the first
section.

Letters: B sequences, N tokens (packed), C width, V vocabulary, K classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Packing, cross_entropy
from minillm import modernbert
from minillm.batching import Batch
from minillm.bert import BERT, POOLERS, BERTConfig
from minillm.gpt import GPT, GPTConfig
from minillm.layers import ACTIVATIONS, LayerNorm, Linear, Transform, dropout, initialise, require
from minillm.modernbert import ModernBERT, ModernBERTConfig
from minillm.objective import losses_of_tokens

EncoderConfig = BERTConfig | ModernBERTConfig
AnyConfig = EncoderConfig | GPTConfig

ONE_OUTPUT = ("LABEL_0",)  # what transformers calls the output of a model that has one

# ---- how each family does it ---------------------------------------------------------------------


def make_encoder(config: AnyConfig) -> nn.Module:
    if isinstance(config, GPTConfig):
        return GPT(replace(config, tie_embeddings=True))  # an output matrix of its own would have no use
    return BERT(config) if isinstance(config, BERTConfig) else ModernBERT(config)


def make_transform(config: AnyConfig, purpose: str) -> nn.Module:
    """What stands between the hidden states and the last product of an "lm", "sequence" or "token" head."""
    if isinstance(config, ModernBERTConfig):
        return Transform(config.width, F.gelu, modernbert.make_norm(config), bias=False)
    if isinstance(config, BERTConfig) and purpose == "lm":
        return Transform(
            config.width, ACTIVATIONS[config.activation], LayerNorm(config.width, eps=config.norm_eps), bias=True
        )
    if isinstance(config, BERTConfig) and purpose == "sequence":
        return Transform(config.width, POOLERS[config.pooler], norm=None, bias=True)
    return nn.Identity()


def pooling_of(config: AnyConfig) -> str:
    """Which token stands for a sequence: BERT's first, [CLS]; GPT's last, which alone has seen the whole."""
    if isinstance(config, ModernBERTConfig):
        return config.pooling
    return "last" if isinstance(config, GPTConfig) else "first"


def classifier_dropout(config: AnyConfig) -> float:
    return config.dropout if isinstance(config, GPTConfig) else config.classifier_dropout


# ---- the heads -----------------------------------------------------------------------------------


class Head(nn.Module):
    """An encoder and what is put on top of it; what can be trained says what its `losses` are."""

    lower_case = False  # whether texts are to be read in lower case
    head_is_trained = False  # whether the last product came with a checkpoint
    transform_is_trained = False  # whether what is between encoder and last product came with a checkpoint, as BERT's

    def __init__(self, config: AnyConfig):
        super().__init__()
        self.encoder = make_encoder(config)

    @property
    def pretrained(self) -> tuple[str, ...]:
        """How the names of the parameters begin that came with a checkpoint, where the model began as one."""
        return ("encoder.", "transform.") if self.transform_is_trained else ("encoder.",)

    @property
    def config(self) -> AnyConfig:
        return self.encoder.config

    @property
    def outputs(self) -> tuple[tuple[str, ...], ...]:
        """What it is made of besides its config: the names of what it tells apart."""
        return ()

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

    @property
    def recompute(self) -> bool:
        """Activations within blocks, instead of keeping them for the backward pass."""
        return self.encoder.recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self.encoder.recompute = value

    def encode(self, tokens: Tensor, packing: Packing, segments: Tensor | None, at: Tensor | None = None) -> Tensor:
        """Hidden states (N, C), or (M, C) of the tokens `at`. Models that know no segments tell the texts of a pair by
        what stands between them."""
        if segments is not None and isinstance(self.config, BERTConfig) and self.config.num_segments > 1:
            return self.encoder(tokens, packing, segments, at=at)
        return self.encoder(tokens, packing, at=at)

    def pooled(
        self, pooling: str, tokens: Tensor, packing: Packing, segments: Tensor | None, wide: bool = False
    ) -> Tensor:
        """What stands for each sequence, (B, C); `wide`: in float32 or better."""
        at = ENDS[pooling](packing) if pooling in ENDS else None
        hidden = self.encode(tokens, packing, segments, at)
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32)) if wide else hidden
        return mean(hidden, packing) if at is None else hidden

    def loss(
        self,
        batch: Batch,
        weights: Tensor | float | None = None,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """See `objective.Model`: a value for each target, or Σ weight · loss."""
        losses = self.losses(batch, temperature, label_smoothing)
        return losses if weights is None else (weights * losses).sum()

    def losses(self, batch: Batch, temperature: float, label_smoothing: float) -> Tensor:
        """Before they are weighted, in float32 or wider. ValueError for options that they don't know."""
        raise NotImplementedError


class MaskedLM(Head):
    """Predicts the token behind a mask."""

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.transform = make_transform(config, "lm").apply(initialise)
        self.output = Linear(config.width, config.vocab_size).apply(initialise)
        if config.tie_embeddings:
            self.output.weight = self.encoder.tokens.weight

    @property
    def pretrained(self) -> tuple[str, ...]:
        """All of it, where its head did not begin from nothing."""
        return ("",) if self.transform_is_trained else ("encoder.",)

    def forward(
        self, tokens: Tensor, packing: Packing, segments: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """What the output matrix reads, (N, C), or (M, C) of the tokens `at`; `logits` or `loss` turn it into
        predictions."""
        return self.transform(self.encode(tokens, packing, segments, at))

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, C) → (N, V)."""
        return self.output(hidden)

    def loss(
        self,
        batch: Batch,
        weights: Tensor | float | None = None,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """−log p(masked token), see `objective.Model`: one value a token (N,), or Σ weight · loss."""
        hidden = self(batch.tokens, batch.packing, batch.segments, batch.asked)
        weight, bias = self.output.weight, self.output.bias
        return losses_of_tokens(hidden, weight, batch, weights, temperature, label_smoothing, bias)


class SequenceClassifier(Head):
    """One of some classes for every sequence."""

    def __init__(self, config: AnyConfig, classes: Sequence[str]):
        super().__init__(config)
        self.classes = tuple(classes)
        self.transform = make_transform(config, "sequence").apply(initialise)
        self.classifier = Linear(config.width, len(classes), bias=not isinstance(config, GPTConfig)).apply(initialise)

    @property
    def outputs(self) -> tuple[tuple[str, ...], ...]:
        return (self.classes,)

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """Logits (B, K)."""
        pooled = self.pooled(pooling_of(self.config), tokens, packing, segments)
        return self.classifier(dropout(self.transform(pooled), classifier_dropout(self.config), self.training))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) → (B, K): of each class."""
        return logits.softmax(dim=-1)

    def losses(self, batch: Batch, temperature: float, label_smoothing: float) -> Tensor:
        """−log p(class), one value a sequence (B,)."""
        logits = self(batch.tokens, batch.packing, batch.segments)
        return cross_entropy(logits, batch.labels, temperature=temperature, label_smoothing=label_smoothing)


class MultiLabelClassifier(SequenceClassifier):
    """Any number of some classes for every sequence: of each a yes or no, whatever is said of the others."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def losses(self, batch: Batch, temperature: float, label_smoothing: float) -> Tensor:
        """−log p(what is true of all classes) = Σ over classes of −log p(yes) or −log p(no): one value a sequence (B,).
        Label smoothing: the other label of a class is yes for no.

        batch.labels (B, K): 1 for the classes that apply. It is K times what transformers has, the mean over classes.
        """
        logits = self(batch.tokens, batch.packing, batch.segments)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        truth = (1 - label_smoothing) * batch.labels.to(logits.dtype) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(dim=-1)


class Scorer(SequenceClassifier):
    """One number for every sequence, learned from numbers: a classifier with one output, as transformers has it."""

    def __init__(self, config: AnyConfig, classes: Sequence[str] = ONE_OUTPUT):
        require(len(classes) == 1, f"a scorer has one output, not {len(classes)}")
        super().__init__(config, classes)

    def scores(self, batch: Batch) -> Tensor:
        """(B,), in float32 or better."""
        scores = self(batch.tokens, batch.packing, batch.segments).squeeze(-1)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def losses(self, batch: Batch, temperature: float, label_smoothing: float) -> Tensor:
        """(score − label)², one value a sequence (B,). A number has no temperature, and no other labels to be smoothed
        with: ValueError."""
        require(temperature == 1 and label_smoothing == 0, "squared errors know no temperature and no label smoothing")
        return (self.scores(batch) - batch.labels).square()


class RewardModel(Scorer):
    """The same, learned from pairs of sequences of which the first is the better one: P of them in a batch of 2P."""

    def losses(self, batch: Batch, temperature: float, label_smoothing: float) -> Tensor:
        """−log σ((score of the first − score of the second) / temperature), one value a pair (P,).

        −log of the probability that the first wins (Bradley and Terry 1952; for language models Christiano et al.
        2017, arXiv:1706.03741). Label smoothing: the other label is that the second one wins.
        """
        chosen, rejected = self.scores(batch).view(-1, 2).unbind(1)
        margin = (chosen - rejected) / temperature
        return F.softplus(-margin) + label_smoothing / 2 * margin  # softplus(m) = softplus(−m) + m


class TokenClassifier(Head):
    """One of some classes for every token, and where there are `sequence_classes`, one of those for every sequence."""

    def __init__(self, config: AnyConfig, classes: Sequence[str], sequence_classes: Sequence[str] = ()):
        super().__init__(config)
        self.classes, self.sequence_classes = tuple(classes), tuple(sequence_classes)
        self.transform = make_transform(config, "token").apply(initialise)
        self.classifier = Linear(config.width, len(classes)).apply(initialise)
        if sequence_classes:
            self.sequence_classifier = Linear(config.width, len(sequence_classes)).apply(initialise)

    @property
    def outputs(self) -> tuple[tuple[str, ...], ...]:
        return self.classes, self.sequence_classes

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """Logits (N, K)."""
        return self.both(tokens, packing, segments)[0]

    def both(self, tokens: Tensor, packing: Packing, segments: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits of the tokens, (N, K), and of the sequences, (B, K'), where they have classes of their own."""
        p = classifier_dropout(self.config)
        hidden = self.transform(self.encode(tokens, packing, segments))
        logits = self.classifier(dropout(hidden, p, self.training))
        if not self.sequence_classes:
            return logits, None
        pooled = pool(pooling_of(self.config), hidden, packing)
        return logits, self.sequence_classifier(dropout(pooled, p, self.training))

    def losses(self, batch: Batch, temperature: float, label_smoothing: float) -> Tensor:
        """−log p(class): one value a token and behind them, where sequences have classes of their own, one a sequence,
        (N,) or (N + B,)."""
        logits, of_sequences = self.both(batch.tokens, batch.packing, batch.segments)
        options = {"temperature": temperature, "label_smoothing": label_smoothing}
        losses = cross_entropy(logits, batch.targets, **options)
        if of_sequences is not None:
            losses = torch.cat([losses, cross_entropy(of_sequences, batch.labels, **options)])
        return losses


ENDS = {  # of each sequence, (B,): a token that may stand for it
    "first": lambda packing: packing.cu_seqlens[:-1].long(),
    "last": lambda packing: packing.cu_seqlens[1:].long() - 1,
}
POOLING = (*ENDS, "mean")


def pool(pooling: str, hidden: Tensor, packing: Packing) -> Tensor:
    """(N, C) → (B, C)."""
    return mean(hidden, packing) if pooling == "mean" else hidden[ENDS[pooling](packing)]


def mean(hidden: Tensor, packing: Packing) -> Tensor:
    """(N, C) → (B, C): the mean over each sequence."""
    total = hidden.new_zeros(len(packing.lengths), hidden.shape[1]).index_add(0, packing.sequence, hidden)
    return total / packing.lengths_tensor[:, None]

"""One vector for a text: what an encoder's hidden states are pooled, projected and cut to (Sentence-BERT)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Packing
from minillm.heads import POOLING, EncoderConfig, Head
from minillm.layers import Linear, require


@dataclass(frozen=True)
class Projection:
    """A product behind the pooling of a `SentenceEmbedder`."""

    width: int  # of what comes out
    bias: bool = True
    activation: str = "Tanh"  # one of PROJECTION_ACTIVATIONS


class SentenceEmbedder(Head):
    """One vector a sequence; how like two of them are says how alike they mean (Sentence-BERT, arXiv:1908.10084).

    pooling       what of a sequence counts: the "mean" over its tokens, the "first" or the "last" of them
    max_seq_len   most tokens of a text to read, where that is fewer than the encoder could
    lower_case    whether texts are to be read in lower case, whatever the tokenizer does
    projections   what the pooled vector goes through
    normalise     to length 1
    width         only the first so many numbers are kept (Kusupati et al. 2022, arXiv:2205.13147)
    similarity    how vectors are compared: by the "cosine" between them or by their "dot" product
    """

    def __init__(
        self,
        config: EncoderConfig,
        pooling: str = "mean",
        max_seq_len: int | None = None,
        lower_case: bool = False,
        projections: Sequence[Projection] = (),
        normalise: bool = True,
        width: int | None = None,
        similarity: str = "cosine",
    ):
        super().__init__(config)
        require(pooling in POOLING, f"pooling={pooling!r} is not one of {', '.join(POOLING)}")
        require(similarity in ("cosine", "dot"), f"similarity={similarity!r} is not 'cosine' or 'dot'")
        for name, value in (("max_seq_len", max_seq_len), ("width", width)):
            require(value is None or value > 0, f"{name}={value} must be positive")
        self.pooling, self.limit, self.lower_case = pooling, max_seq_len, lower_case
        self.normalise, self.width, self.similarity = normalise, width, similarity
        self.steps = tuple(projections)
        widths = [config.width, *(step.width for step in projections)]
        self.projections = nn.ModuleList(
            Linear(before, step.width, step.bias) for before, step in zip(widths, projections, strict=False)
        )

    @property
    def max_seq_len(self) -> int:
        return min(self.limit or self.config.max_seq_len, self.config.max_seq_len)

    def forward(self, tokens: Tensor, packing: Packing, segments: Tensor | None = None) -> Tensor:
        """(B, C), or of another width, in float32 or better."""
        x = self.pooled(self.pooling, tokens, packing, segments, wide=True)
        for step, projection in zip(self.steps, self.projections, strict=True):
            x = PROJECTION_ACTIVATIONS[step.activation](projection(x))
        x = F.normalize(x, dim=-1) if self.normalise else x
        return x[:, : self.width]


PROJECTION_ACTIVATIONS = {  # as PyTorch calls their modules
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}

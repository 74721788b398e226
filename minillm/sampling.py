"""How the next token is drawn from a model's logits.

Letters: B sequences, V vocabulary, K candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """The settings, in the order in which they act; the defaults draw from the model as it is.

    repetition_penalty   logits of tokens seen before, prompt included, are divided by it where positive and multiplied
                         where negative (Keskar et al. 2019, arXiv:1909.05858)
    temperature          divides the logits; 0 takes the likeliest token
    top_k                only the k likeliest; 0: all
    top_p                only the likeliest that together reach this probability (Holtzman et al. 2020,
                         arXiv:1904.09751)
    min_p                only those at least this share of the likeliest's probability (Nguyen et al. 2024,
                         arXiv:2407.01082)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        for holds, message in (
            (0 <= self.temperature < float("inf"), f"temperature={self.temperature} must be 0 or more"),
            (self.top_k >= 0, f"top_k={self.top_k} must be 0 or more"),
            (0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1"),
            (0 <= self.min_p <= 1, f"min_p={self.min_p} must be between 0 and 1"),
            (
                0 < self.repetition_penalty < float("inf"),
                f"repetition_penalty={self.repetition_penalty} must be above 0",
            ),
        ):
            if not holds:
                raise ValueError(message)


GREEDY = Sampling(temperature=0)


def draw(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token (B,) for each row of logits (B,V), and its log-probability (B,) under what it was drawn from.

    That is the distribution after penalty, temperature and cuts, normalised again; at temperature 0, where it would say
    nothing, the one of temperature 1. In float32, or float64 for such logits. `seen` (B,V) bool are the tokens that
    `repetition_penalty` acts on.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        best, tokens = logits.max(dim=-1)
        return tokens, best - logits.logsumexp(dim=-1)
    logits = logits / sampling.temperature
    logits, candidates = cut(logits, sampling)
    logprobs = torch.log_softmax(logits, dim=-1)
    # The exponential race: argmax p/E with E ~ Exp(1) is a draw from p, and cheaper than multinomial.
    race = torch.empty_like(logprobs).exponential_(generator=generator)
    places = (logprobs - race.log()).argmax(dim=-1, keepdim=True)
    tokens = places if candidates is None else candidates.gather(1, places)
    return tokens[:, 0], logprobs.gather(1, places)[:, 0]


def cut(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The logits (B,K) of what top_k, top_p and min_p leave, −inf for what they cut, and its token ids (B,K).

    None for ids stands for the whole vocabulary in its order.
    """
    V = logits.shape[-1]
    k = min(sampling.top_k or V, V)
    if k == V and sampling.top_p == 1:
        if sampling.min_p > 0:
            least = logits.amax(dim=-1, keepdim=True) + torch.tensor(sampling.min_p).log().item()
            logits = logits.masked_fill(logits < least, -torch.inf)
        return logits, None
    logits, ids = logits.topk(k, dim=-1) if k < V else logits.sort(dim=-1, descending=True)
    probs = logits.softmax(dim=-1)
    cut_off = probs < sampling.min_p * probs[:, :1]
    if sampling.top_p < 1:
        likelier = probs.cumsum(dim=-1) - probs
        cut_off |= likelier >= sampling.top_p
    cut_off[:, 0] = False  # rounding must not take the likeliest
    return logits.masked_fill(cut_off, -torch.inf), ids

"""Beam search: good answers found by going on from the best beginnings, not from the best next token alone.

    score(y) = log p(y | prompt) / |y|^length_penalty

The rules are those of transformers' `generate`, which gives the same answers with the same scores. At every step each
of the W best beginnings of an answer, the beams, is continued by every token. Of all continuations the likeliest that
do not end are the next beams; those that end are answers if they are among the W likeliest. The W best answers are
kept, until no beam can be expected to become a better one.

Letters: B prompts, W beams, V vocabulary, M candidates, T tokens.
"""

from collections.abc import Collection, Container, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import Packing
from minillm.errors import NOT_FINITE, UserError
from minillm.generate import WORTH_THREADS, check, largest, one_thread
from minillm.gpt import GPT
from minillm.tree import Tree

AT_ONCE = 2**20  # logits: so many lie in the processor's cache
MOST_PENALTY = 5  # so that no power of a length is beyond what float32 can hold
STAYING = 0.75  # share of the prompts; leaving means copying the cache of those that stay, so it waits until so few do


@dataclass(frozen=True)
class Beams:
    """The settings of a search.

    width            how many beginnings are continued, and how many answers come of a prompt at most; 1 is greedy
    length_penalty   the power of an answer's length, its end included, that its log-probability is divided by: 0 takes
                     the likeliest, more prefers longer ones (the idea is that of Wu et al. 2016, arXiv:1609.08144,
                     equation 14, whose divisor is another)
    early_stopping   when a prompt that has `width` answers is done: True: at once; False: when the best beam, were it
                     to end now, would be no better than the worst of them; "never": when no beam can become better
    """

    width: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1")
        if not -MOST_PENALTY <= self.length_penalty <= MOST_PENALTY:
            raise ValueError(f"length_penalty={self.length_penalty} must be between -{MOST_PENALTY} and {MOST_PENALTY}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping={self.early_stopping!r} is not True, False or 'never'")


@dataclass(frozen=True)
class Hypothesis:
    tokens: list[int]  # its last is a stop token unless it was cut
    score: float  # log p / length^length_penalty


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | Collection[int] = (),
    beams: Beams = Beams(),
) -> list[list[Hypothesis]]:
    """The best answers found to each prompt, the best one first: `width` of them, or all there are.

    Equal scores go by the beam and then by the id of the token, the lower first. Raises ValueError if a prompt is empty
    or prompt and answer could exceed `max_seq_len`, UserError where a probability is not a number.
    """
    check(prompts, max_new_tokens, model.config.max_seq_len)
    device = model.tokens.weight.device
    stop = torch.tensor([stop] if isinstance(stop, int) else sorted(stop), dtype=torch.int64, device=device)
    cache = Tree.of(model, len(prompts), max(map(len, prompts)))
    packing = Packing.from_lengths([len(prompt) for prompt in prompts], device)
    tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    hidden = model(tokens, packing, cache, packing.cu_seqlens[1:].long() - 1)
    cache.branch()
    search = Search(len(prompts), max_new_tokens, beams, hidden)
    found: dict[int, list[Hypothesis]] = {}
    while True:
        continuations = likeliest(model, hidden, search.logprobs, beams.width * (1 + len(stop)))
        tokens, parents = search.step(continuations, stop)
        found |= search.finished(found)
        if len(found) == len(prompts):
            return [found[i] for i in range(len(prompts))]
        cache.fork(parents)
        rows = [row for row, prompt in enumerate(search.prompts) if prompt not in found]
        if len(rows) <= STAYING * len(search.prompts):
            search.select(rows)
            cache.select(rows)
            tokens = tokens[torch.tensor(rows, device=device)]
        hidden = read(model, tokens, cache)


def read(model: GPT, tokens: Tensor, cache: Tree) -> Tensor:
    """Hidden states (B·W,C) behind the tokens (B,W) that the beams are continued by."""
    B, W = tokens.shape
    packing = Packing.from_lengths([W] * B, tokens.device)
    is_small = tokens.device.type == "cpu" and B * W * model.num_parameters < WORTH_THREADS
    with one_thread() if is_small else nullcontext():
        return model(tokens.flatten(), packing, cache)


class Continuations(NamedTuple):
    """Of each prompt, the likeliest first, all (B,M)."""

    logprobs: Tensor  # of the whole answer so far
    beams: Tensor  # which is continued
    tokens: Tensor  # by which


def likeliest(model: GPT, hidden: Tensor, logprobs: Tensor, m: int) -> Continuations:
    """The m likeliest continuations, or all, of beams with these log-probabilities (B,W) and hidden states (B·W,C)."""
    (B, W), V = logprobs.shape, model.config.vocab_size
    prompts = max(1, AT_ONCE // (W * V))
    parts = []
    for states, before in zip(hidden.view(B, W, -1).split(prompts), logprobs.split(prompts), strict=True):
        of_tokens = torch.log_softmax(model.logits(states.flatten(0, 1)), dim=-1, dtype=before.dtype).view(-1, W, V)
        parts.append(largest(of_tokens.add_(before[:, :, None]).flatten(1), min(m, W * V)))
    values, places = map(torch.cat, zip(*parts, strict=True))
    if values[:, 0].isnan().any():
        raise UserError(NOT_FINITE)
    return Continuations(values, places // V, places % V)


class Search:
    """The beams of prompts that are not done, and the best answers to them so far."""

    def __init__(self, num_prompts: int, max_new_tokens: int, beams: Beams, like: Tensor):
        self.beams, self.max_new_tokens, self.length = beams, max_new_tokens, 0
        self.prompts = list(range(num_prompts))  # the number of each row
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.logprobs = like.new_zeros(num_prompts, 1, dtype=dtype)  # of the beams (B,W), −inf for none
        self.tokens = like.new_zeros(num_prompts, 1, max_new_tokens, dtype=torch.int64)
        self.scores = like.new_full((num_prompts, beams.width), -torch.inf, dtype=dtype)  # of answers, best first
        self.lengths = torch.zeros_like(self.scores, dtype=torch.int64)
        self.answers = self.tokens.expand(-1, beams.width, -1)

    def step(self, found: Continuations, stop: Tensor) -> tuple[Tensor, Tensor]:
        """Go on → the token of each new beam, and which beam it goes on from, both (B,W)."""
        self.length += 1
        ends = torch.isin(found.tokens, stop)
        if self.length == self.max_new_tokens:
            ends = torch.ones_like(ends)
        tokens = _rows(self.tokens, found.beams)
        tokens[:, :, self.length - 1] = found.tokens
        self._keep_answers(found.logprobs.masked_fill(~ends, -torch.inf), tokens)
        order = ends.sort(dim=1, stable=True).indices[:, : self.beams.width]  # those that go on, the likeliest first
        self.logprobs = found.logprobs.masked_fill(ends, -torch.inf).gather(1, order)
        self.tokens = _rows(tokens, order)
        return found.tokens.gather(1, order), found.beams.gather(1, order)

    def _keep_answers(self, logprobs: Tensor, tokens: Tensor) -> None:
        """Take in what ended, if it is among the likeliest: (B,M), −inf for others."""
        width = self.beams.width
        scores = torch.cat([self.scores, logprobs[:, :width] / self.length**self.beams.length_penalty], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        self.scores, order = scores[:, :width], order[:, :width]
        self.answers = _rows(torch.cat([self.answers, tokens[:, :width]], dim=1), order)
        lengths = torch.full_like(logprobs[:, :width], self.length, dtype=torch.int64)
        self.lengths = torch.cat([self.lengths, lengths], dim=1).gather(1, order)

    def is_done(self) -> Tensor:
        """(B,) bool: nothing goes on, or there are as many answers as beams and none is likely to be beaten."""
        best, penalty = self.logprobs[:, 0], self.beams.length_penalty
        if self.beams.early_stopping is True:
            is_beaten = torch.ones_like(best, dtype=torch.bool)
        else:
            is_patient = self.beams.early_stopping == "never" and penalty > 0  # longer ones may get better scores
            is_beaten = best / (self.max_new_tokens if is_patient else self.length) ** penalty <= self.scores[:, -1]
        return (best == -torch.inf) | (is_beaten & (self.scores[:, -1] > -torch.inf))

    def finished(self, known: Container[int]) -> dict[int, list[Hypothesis]]:
        """The answers to those prompts that are done, but for those known before."""
        done = [(row, self.prompts[row]) for row, is_done in enumerate(self.is_done().tolist()) if is_done]
        return {prompt: self.hypotheses(row) for row, prompt in done if prompt not in known}

    def hypotheses(self, row: int) -> list[Hypothesis]:
        answers = zip(self.answers[row].tolist(), self.lengths[row].tolist(), self.scores[row].tolist(), strict=True)
        return [Hypothesis(tokens[:length], score) for tokens, length, score in answers if score > -torch.inf]

    def select(self, rows: list[int]) -> None:
        """Keep these prompts, in this order."""
        self.prompts = [self.prompts[row] for row in rows]
        index = torch.tensor(rows, dtype=torch.int64, device=self.scores.device)
        for name in ("logprobs", "tokens", "scores", "lengths", "answers"):
            setattr(self, name, getattr(self, name)[index])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B,W,T) → (B,M,T), the rows that the index (B,M) names."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))

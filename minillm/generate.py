"""Sampling from a GPT: the rollout engine of reinforcement learning, the voice of a chat, what evaluations run.

Letters: B sequences in the batch, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import Packing
from minillm.gpt import GPT
from minillm.inference import ready
from minillm.sampling import Sampling, draw

SHARED = 2e6  # products of two numbers in a step from which on it pays to wake other threads for it


@dataclass(frozen=True)
class Sample:
    tokens: list[int] = field(default_factory=list)  # the answer; its last is a stop token unless it was cut
    logprobs: list[float] = field(default_factory=list)  # of each token, under the distribution it was drawn from


class Token(NamedTuple):
    answer: int  # the number of the answer it belongs to
    id: int
    logprob: float


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | Collection[int] = (),
    sampling: Sampling = Sampling(),  # noqa: B008, it is frozen
    samples_per_prompt: int = 1,
    generator: torch.Generator | None = None,
    is_done: Callable[[Token], bool] | None = None,
) -> list[Sample]:
    """Answers to prompts of any lengths, `samples_per_prompt` in a row for each prompt; see `stream`."""
    samples = [Sample() for _ in range(len(prompts) * samples_per_prompt)]
    for token in stream(model, prompts, max_new_tokens, stop, sampling, samples_per_prompt, generator, is_done):
        samples[token.answer].tokens.append(token.id)
        samples[token.answer].logprobs.append(token.logprob)
    return samples


@torch.inference_mode()
def stream(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | Collection[int] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    samples_per_prompt: int = 1,
    generator: torch.Generator | None = None,
    is_done: Callable[[Token], bool] | None = None,
) -> Iterator[Token]:
    """The tokens of all answers as they are drawn, one of each answer at a time.

    An answer ends with a token of `stop`, which is part of it, where `is_done(token)` says so, or after
    `max_new_tokens`; it then leaves the batch. Raises ValueError if a prompt is empty or prompt and answer could exceed
    `max_seq_len`.
    """
    check(prompts, max_new_tokens, model.config.max_seq_len)
    stop = {stop} if isinstance(stop, int) else frozenset(stop)
    model = ready(model)
    batch = Speaking(model, prompts, max_new_tokens, samples_per_prompt, keep_seen=sampling.repetition_penalty != 1)
    for step in range(max_new_tokens):
        tokens, logprobs = draw(batch.logits, sampling, generator, batch.seen)
        drawn = list(map(Token, batch.answers, tokens.tolist(), logprobs.tolist()))
        spoken = [token for token, on in zip(drawn, batch.speaks, strict=True) if on]
        ended = {token.answer for token in spoken if token.id in stop or (is_done and is_done(token))}
        yield from spoken
        if step + 1 == max_new_tokens or not batch.go_on(tokens, ended):
            return


class Speaking:
    """The batch of answers that are not finished yet: what the model has read of them, and what it says next."""

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        samples_per_prompt: int,
        keep_seen: bool,
    ):
        self.model, self.device = model, model.tokens.weight.device
        lengths = [len(prompt) for prompt in prompts]
        packing = Packing.from_lengths(lengths, self.device)
        self.cache = model.new_cache(len(prompts), packing.max_len + max_new_tokens - 1)  # the last is not read
        tokens = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        hidden = model(tokens, packing, self.cache)
        self.logits = model.logits(hidden[packing.cu_seqlens[1:].long() - 1])
        self.seen = None  # (B,V) bool: which tokens each sequence holds
        if keep_seen:
            self.seen = torch.zeros(self.logits.shape, dtype=torch.bool, device=self.device)
            self.seen[packing.sequence, tokens] = True
        self.answers = list(range(len(prompts)))  # the answer that each row of the batch writes
        if samples_per_prompt > 1:  # a prompt is read once, however often it is answered
            self._select([row for row in self.answers for _ in range(samples_per_prompt)])
            self.answers = list(range(len(self.answers)))
        self.speaks = [True] * len(self.answers)
        self.packing = Packing.from_lengths([1] * len(self.answers), self.device)

    def go_on(self, tokens: Tensor, ended: Collection[int]) -> bool:
        """Read the tokens (B,) drawn for all rows, unless all answers have ended; then it returns False.

        Leaving the batch means copying the cache of those that stay, so it waits until a quarter has ended.
        """
        self.speaks = [on and answer not in ended for answer, on in zip(self.answers, self.speaks, strict=True)]
        if not any(self.speaks):
            return False
        if sum(self.speaks) <= 0.75 * len(self.speaks):
            rows = [row for row, on in enumerate(self.speaks) if on]
            tokens = tokens[torch.tensor(rows, device=self.device)]
            self._select(rows)
            self.speaks = [True] * len(rows)
            self.packing = Packing.from_lengths([1] * len(rows), self.device)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        is_small = self.device.type == "cpu" and len(tokens) * self.model.num_parameters < SHARED
        with one_thread() if is_small else nullcontext():
            self.logits = self.model.logits(self.model(tokens, self.packing, self.cache))
        return True

    def _select(self, rows: list[int]) -> None:
        self.cache.select(rows)
        self.answers = [self.answers[row] for row in rows]
        index = torch.tensor(rows, device=self.device)
        self.logits = self.logits[index]
        self.seen = None if self.seen is None else self.seen[index]


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it PyTorch computes with one thread. A Python thread that first computes meanwhile keeps that, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(prompts: Sequence[Sequence[int]], max_new_tokens: int, max_seq_len: int) -> None:
    if not prompts or not all(prompts):
        raise ValueError("there must be at least one prompt, and each needs at least one token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    longest = max(map(len, prompts))
    if longest + max_new_tokens - 1 > max_seq_len:  # the last token is not read
        raise ValueError(
            f"a prompt of {longest} tokens and an answer of up to {max_new_tokens} do not fit max_seq_len={max_seq_len}"
        )

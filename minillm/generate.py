"""Sampling from a GPT: the rollout engine of reinforcement learning, and what every evaluation runs.

Letters: B sequences in the batch, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Packing
from minillm.gpt import GPT


@dataclass(frozen=True)
class Sample:
    tokens: list[int]  # the answer; it ends with the stop token unless it was cut at max_new_tokens
    logprobs: list[float]  # of each token, under the distribution it was drawn from


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int,
    temperature: float = 1.0,
    samples_per_prompt: int = 1,
    generator: torch.Generator | None = None,
) -> list[Sample]:
    """Answers to prompts of any lengths, `samples_per_prompt` in a row for each prompt.

    Temperature 0 takes the likeliest token, and gives its log-probability at temperature 1. The stop token is part
    of the answer. Raises ValueError if a prompt is empty or prompt and answer could exceed `max_seq_len`.
    """
    if not prompts or not all(prompts):
        raise ValueError("there must be at least one prompt, and each needs at least one token")
    longest = max(map(len, prompts)) + max_new_tokens - 1  # the last token is not read
    if longest > (limit := model.config.max_seq_len):
        raise ValueError(f"prompt and answer may take {longest} tokens but max_seq_len={limit}")
    model = in_compute_dtype(model)
    device = model.tokens.weight.device
    packing = Packing.from_lengths([len(prompt) for prompt in prompts], device)
    cache = model.new_cache(len(prompts), packing.max_len + max_new_tokens)
    hidden = model(torch.tensor([t for prompt in prompts for t in prompt], device=device), packing, cache)
    hidden = hidden[packing.cu_seqlens[1:].long() - 1]
    if samples_per_prompt > 1:  # a prompt is read once, however often it is answered
        copies = [row for row in range(len(prompts)) for _ in range(samples_per_prompt)]
        cache.select(copies)
        hidden = hidden[copies]

    answers = Answers(len(hidden), max_new_tokens, device)
    packing = Packing.from_lengths([1] * len(hidden), device)
    for step in range(max_new_tokens):
        tokens, logprobs = draw(model.logits(hidden), temperature, generator)
        answers.append(step, tokens, logprobs, stop)
        if answers.all_finished or step + 1 == max_new_tokens:
            break
        if (rows := answers.clear_out()) is not None:
            cache.select(rows)
            tokens = tokens[rows]
            packing = Packing.from_lengths([1] * len(rows), device)
        hidden = model(tokens, packing, cache)
    return answers.to_samples()


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One token (B,) from logits (B, V), and its log-probability (B,), in float32 or the dtype of better logits."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logprobs.argmax(dim=-1)
    else:  # the exponential race: argmax p/E with E ~ Exp(1) is a draw from p, and cheaper than multinomial
        race = torch.empty_like(logprobs).exponential_(generator=generator)
        tokens = (logprobs - race.log()).argmax(dim=-1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


class Answers:
    """What has been said so far, and which rows of the batch still speak."""

    def __init__(self, num_rows: int, max_new_tokens: int, device: torch.device):
        self.tokens = torch.zeros(num_rows, max_new_tokens, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(num_rows, max_new_tokens, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.rows = torch.arange(num_rows, device=device)  # the answer that each row of the batch writes
        self.speaking = torch.ones(num_rows, dtype=torch.bool, device=device)  # of the rows of the batch
        self.num_speaking = num_rows

    def append(self, step: int, tokens: Tensor, logprobs: Tensor, stop: int) -> None:
        rows = self.rows[self.speaking]
        self.tokens[rows, step] = tokens[self.speaking]
        self.logprobs[rows, step] = logprobs[self.speaking].double()
        self.lengths[rows] = step + 1
        self.speaking = self.speaking & (tokens != stop)
        self.num_speaking = int(self.speaking.sum())

    @property
    def all_finished(self) -> bool:
        return self.num_speaking == 0

    def clear_out(self) -> list[int] | None:
        """The rows of the batch to go on with, or None for all.

        Leaving means copying the cache of those that stay, so it waits until a quarter has finished.
        """
        if self.num_speaking > 0.75 * len(self.rows):
            return None
        keep = self.speaking.nonzero()[:, 0]
        self.rows, self.speaking = self.rows[keep], self.speaking[keep]
        return keep.tolist()

    def to_samples(self) -> list[Sample]:
        tokens, logprobs = self.tokens.tolist(), self.logprobs.tolist()
        return [Sample(t[:n], p[:n]) for t, p, n in zip(tokens, logprobs, self.lengths.tolist(), strict=True)]


def in_compute_dtype(model: GPT) -> GPT:
    """The model itself, or a copy in the dtype it computes in, so that no step casts the weights again."""
    dtype = model.compute_dtype
    if dtype is None or dtype == model.tokens.weight.dtype:
        return model
    return copy.deepcopy(model).to(dtype)

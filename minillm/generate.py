"""Sampling from a GPT: the rollout engine of reinforcement learning, and what every evaluation runs.

Letters: B sequences in the batch, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Packing
from minillm.gpt import GPT
from minillm.kv_cache import KVCache


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

    Temperature 0 takes the likeliest token; its log-probability is then that of temperature 1. The stop token is
    part of the answer. Raises ValueError if a prompt is empty or prompt and answer exceed `max_seq_len`.
    """
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    device = model.tokens.weight.device
    packing = Packing.from_lengths([len(prompt) for prompt in prompts], device)
    cache = new_cache(model, len(prompts), packing.max_len + max_new_tokens)
    tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    hidden = model(tokens, packing, cache)[packing.cu_seqlens[1:].long() - 1]
    alive = [row for row in range(len(prompts)) for _ in range(samples_per_prompt)]
    if samples_per_prompt > 1:  # a prompt is read once, however often it is answered
        cache.select(alive)
        hidden = hidden[alive]
    ...

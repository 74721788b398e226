"""How much of a gradient is signal: whether two batches, drawn independently at the start, point the same way.

    cosine of gᵢ and gⱼ  ≈  ‖E g‖² / E ‖g‖²        1: every batch says the same; 0: next to nothing but noise

Of labels a batch is so many examples with their answers, of verdicts so many prompts with `samples` answers each, as
the arms learn from them. Nothing is learned here: gradients are formed by the scripts' own functions.
"""

from collections.abc import Iterator
from itertools import combinations, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import train_rl
from experiment import measure
from experiment.plan import Job
from experiment.studies import Study
from minillm.actors import actor_of
from minillm.episodes import Agent, judge
from minillm.objective import backward
from minillm.rewards import open_rewards
from minillm.start import corpus_of
from minillm.start_by_reward import complete_by_reward
from minillm.state import Progress
from minillm.tasks.base import WritingTask
from minillm.tokenizer import Tokenizer

BATCHES = 8  # of either kind: 28 pairs
TINY = 1e-30  # no norm of a gradient is as small
NOISE = "noise"  # beside the sets of examples in what is kept of a run


def noise(study: Study, folder: Path, job: Job) -> measure.Arrays:
    """Of a start: the cosines (pairs,) of the gradients of "labels" and of "verdicts"."""
    task = study.made(job.share, job.seed)
    model, tokenizer = measure.opened(folder, task)
    torch.manual_seed(job.seed)
    return {
        "labels": cosines(of_labels(study, task, model, tokenizer, job.seed)),
        "verdicts": cosines(of_verdicts(study, task, model, tokenizer, folder, job.seed)),
    }


def cosines(gradients: Iterator[Tensor]) -> np.ndarray:
    """Of each with each. A batch that teaches nothing, as where all answers were equally good, agrees with none: 0."""
    units = [gradient / gradient.norm().clamp_min(TINY) for gradient in gradients]
    return np.array([float(a @ b) for a, b in combinations(units, 2)])


def of_labels(study: Study, task: Any, model: nn.Module, tokenizer: Tokenizer, seed: int) -> Iterator[Tensor]:
    corpus = corpus_of(task, tokenizer, seed)
    tokens = max(1, round(study.sizes.prompts * float(corpus.table.lengths.mean())))
    for step in range(BATCHES):
        batches = corpus.step(step, tokens, tokens)
        count = sum(task.count(batch) for batch in batches)
        for batch in batches:
            backward(model, batch.to(next(model.parameters()).device), 1 / count)
        yield taken(model)


def of_verdicts(
    study: Study, task: Any, model: nn.Module, tokenizer: Tokenizer, start: Path, seed: int
) -> Iterator[Tensor]:
    asked = train_rl.Args(task=study.task, init=start, sft_share=0.0, seed=seed, **study.reinforced())
    args = complete_by_reward(asked, task, model)
    reward = open_rewards(args.reward, task.rewards, next(model.parameters()).device, isinstance(task, WritingTask))
    agent = Agent(model, model, tokenizer, actor_of(task, tokenizer), args.temperature, args.micro_tokens)
    practice, state = task.practice(seed), SimpleNamespace(progress=Progress())
    for _ in range(BATCHES):
        episodes = judge(reward, agent.rollout(list(islice(practice, args.prompts)), args.samples))
        train_rl.weigh(episodes, state, args)
        train_rl.climb(agent, episodes, 0.0, args)
        yield taken(model)


def taken(model: nn.Module) -> Tensor:
    """The gradient as one vector of float64, which the model forgets. Where nothing was to be learned it is 0."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    vector = torch.cat([gradient.flatten() for gradient in found]).double().cpu()
    model.zero_grad(set_to_none=True)
    return vector

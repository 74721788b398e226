"""An agent and the answers that it gave: what is kept of each, and what is learned from and watched of them.

Ids travel, texts are made for rewards and for people only. Letters: E answers, M tokens of answers.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from minillm.batching import Batch, Heard, answering, pack_branches, parts_of_branches
from minillm.errors import UserError
from minillm.generate import GREEDY, Sample, Sampling, generate
from minillm.gpt import GPT
from minillm.inference import ready
from minillm.policy import Tokens, has_variance
from minillm.rewards import Reward, RewardError
from minillm.run import CHECKPOINT
from minillm.session import Session
from minillm.tokenizer import Tokenizer

MOST_REWARD = 1e15  # whose square float32 can hold


@dataclass
class Episode:
    """An answer that the policy gave, and what became of it. The model learns from ids, never from what they mean."""

    example: Any  # of the task
    prompt: Sequence[int]  # token ids
    answer: Sequence[int]  # ids as they were drawn: tokens, of which the last ends it unless it was cut; classes; tags
    logprobs: Sequence[float]  # of each of them, under the distribution that it was drawn from
    said: Any  # what that means, for rewards and for people: a text, several by turns, a class, the tags of a sentence
    is_cut: bool = False  # whether it did not end by itself
    heard: Heard = ()  # token ids that somebody else said in between, which nobody drew: see turns.py
    reward: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)  # what the reward is the sum of, by name
    reference: Sequence[float] = ()  # log p of the same under the reference, where that is asked for
    values: Sequence[float] = ()  # what was expected before each of them, where that is learned
    advantages: Sequence[float] = ()  # of each of them, once they are weighed
    greedy: float = 0.0  # the reward of the prompt's likeliest answer, where that is asked for

    @property
    def size(self) -> int:
        """How many tokens there are, with the prompt and what was heard."""
        return len(self.prompt) + len(self.answer) + sum(len(reply) for _, reply in self.heard)

    @property
    def key(self) -> tuple:
        """What is equal of answers that are token for token the same."""
        return tuple(self.prompt), tuple(self.answer), tuple((behind, tuple(reply)) for behind, reply in self.heard)

    @property
    def kl(self) -> float:
        """log p − log p_ref of the answer, whose mean is KL(policy ‖ reference), in nats."""
        return sum(self.logprobs) - sum(self.reference)

    def earned(self, beta: float, fine: float) -> list[float]:
        """What each draw earned: `beta` for every nat that log p is below the reference's, and the last one the
        reward, less the fine."""
        last = self.reward - fine
        if beta == 0 or not self.answer:
            return [*[0.0] * (len(self.answer) - 1), last]
        costs = [beta * (ours - theirs) for ours, theirs in zip(self.logprobs, self.reference, strict=True)]
        return [*(-cost for cost in costs[:-1]), last - costs[-1]]


class Drawn(NamedTuple):
    """Answers as a batch, and which of the losses that a model gives of it are −log p of what was drawn."""

    batch: Batch
    at: Tensor  # (M,) int64 their places, one answer after the other
    size: int  # how many losses there are

    def weights(self, of_draws: Tensor, dtype: torch.dtype) -> Tensor:
        """Of all losses, (size,), from those of what was drawn, (M,); what was only read has none."""
        weights = torch.zeros(self.size, dtype=dtype, device=self.at.device)
        weights[self.at] = of_draws.to(weights)
        return weights


class Actor(Protocol):
    """How a kind of model answers by chance, and how it learns from that: see actors.py."""

    draws: str  # what one draw is, for people
    longest: int  # the most draws that an answer has

    def rollout(self, model: nn.Module, examples: Sequence[Any], sampling: Sampling, samples: int) -> list[Episode]:
        """Answers to the examples, so many of each in a row, not judged yet. Leaves the model in the mode it found."""

    def batch(self, episodes: Sequence[Episode], device: torch.device) -> Drawn:
        """The same answers, draw for draw, for the model to learn from."""


@dataclass(frozen=True)
class Agent:
    """A policy that learns, by the head of its model: a softmax at a temperature."""

    model: nn.Module
    start: nn.Module  # what it began as, the reference of every KL
    tokenizer: Tokenizer
    actor: Actor
    temperature: float = 1.0
    micro_tokens: int = 65_536  # computed at once
    rank: int = 0  # which of the processes it is that train the model together, see ranks.py …
    ranks: int = 1  # … and how many they are

    def rollout(self, examples: Sequence[Any], samples: int, sampling: Sampling | None = None) -> list[Episode]:
        """So many answers to each example, in a row, drawn from the policy as it is unless `sampling` says otherwise;
        not judged yet."""
        if not examples:  # more ranks than prompts
            return []
        return self.actor.rollout(self.model, examples, sampling or Sampling(self.temperature), samples)

    def own(self, examples: Sequence[Any]) -> Sequence[Any]:
        """Those of a step that this process sees to: a stretch, as long as anybody's but for one."""
        return examples[len(examples) * self.rank // self.ranks : len(examples) * (self.rank + 1) // self.ranks]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def batch(self, episodes: Sequence[Episode]) -> Drawn:
        return self.actor.batch(episodes, self.device)

    def logprobs(self, drawn: Drawn) -> Tensor:
        """log p of what was drawn, by the policy as it is, (M,), on the CPU."""
        return logprobs_of(self.model, drawn, self.temperature).cpu()


class Writer:
    """A GPT: its draws are tokens, the one that ends the answer among them."""

    draws = "token"

    def __init__(self, task: Any, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.longest = self.turn_limit = task.max_answer_tokens(tokenizer)

    def rollout(self, model: GPT, examples: Sequence[Any], sampling: Sampling, samples: int) -> list[Episode]:
        prompts = [self.tokenizer.prompt(example.prompt) for example in examples]
        drawn = generate(ready(model), prompts, self.turn_limit, self.tokenizer.stops, sampling, samples)
        sources = [i for i in range(len(examples)) for _ in range(samples)]
        return [self.episode(examples[i], prompts[i], sample) for i, sample in zip(sources, drawn, strict=True)]

    def episode(self, example: Any, prompt: Sequence[int], sample: Sample) -> Episode:
        tokens = sample.tokens
        is_cut = tokens[-1] not in self.tokenizer.stops
        return Episode(example, prompt, tokens, sample.logprobs, self.tokenizer.decode(tokens), is_cut)

    def batch(self, episodes: Sequence[Episode], device: torch.device) -> Drawn:
        batch = to_batch(episodes, device)
        at = torch.arange(len(batch.tokens), device=device) if batch.asked is None else batch.asked
        return Drawn(batch, at, len(batch.tokens))


def rewards_of(episodes: Sequence[Episode], samples: int) -> Tensor:
    """(P, K) float32 of P·K episodes, those of one prompt in a row."""
    return torch.tensor([episode.reward for episode in episodes]).view(-1, samples)


def entropy(episodes: Sequence[Episode]) -> float:
    """Nats a draw, such as a token, estimated by the mean of −log p over them."""
    logprobs = [logprob for episode in episodes for logprob in episode.logprobs]
    return -sum(logprobs) / len(logprobs)


def to_batch(episodes: Sequence[Episode], device: torch.device) -> Batch:
    """The drawn answers behind their prompts, token for token; of these all but the last is computed once here."""
    documents = [answering(e.prompt, e.answer, e.heard) for e in episodes]
    return pack_branches(documents, [len(e.prompt) - 1 for e in episodes]).to(device)


# ---- judged, and learned from ----------------------------------------------------------------------


def judge(reward: Reward, episodes: list[Episode]) -> list[Episode]:
    """Fills in the reward of each and its parts, all of them judged at once; returns the same episodes. RewardError."""
    if not episodes:
        return episodes
    parts = reward([episode.example for episode in episodes], [episode.said for episode in episodes])
    for i, episode in enumerate(episodes):
        episode.parts = {name: float(values[i]) for name, values in parts.items()}
        episode.reward = sum(episode.parts.values())
        if not abs(episode.reward) < MOST_REWARD:
            raise RewardError(f"the reward of an answer is {episode.reward}: give a number below {MOST_REWARD:.0e}")
    return episodes


def judge_greedy(reward: Reward, agent: Agent, episodes: Sequence[Episode], samples: int) -> None:
    """Fills in the rewards of the likeliest answers to the same prompts, of which there are so many episodes in a row
    each. RewardError."""
    likeliest = judge(reward, agent.rollout([episode.example for episode in episodes[::samples]], 1, GREEDY))
    for i, episode in enumerate(episodes):
        episode.greedy = likeliest[i // samples].reward


def pooled(session: Session, episodes: list[Episode], examples: Sequence[Any], samples: int) -> list[Episode]:
    """The answers to all examples of a step, so many to each, of which a rank has those to its own. What they mean, as
    people read it. From here on all ranks draw the same random numbers, and know the same."""
    if not session.team:
        return episodes
    own = [{**vars(episode), "example": None, "said": str(episode.said)} for episode in episodes]
    every = [Episode(**each) for of_rank in session.exchange(own) for each in of_rank]
    for i, episode in enumerate(every):
        episode.example = examples[i // samples]
    session.team.reseed_alike(session.budget.seed, session.progress.step)
    return every


def tokens_of(episodes: Sequence[Episode]) -> Tokens:
    """Of answers in this order; log p as it was when they were drawn. Float64."""
    answer = torch.arange(len(episodes)).repeat_interleave(torch.tensor([len(e.answer) for e in episodes]))
    then, reference = row_of([e.logprobs for e in episodes]), row_of([e.reference for e in episodes])
    return Tokens(answer, row_of([e.advantages for e in episodes]), then, then, reference if len(reference) else None)


def row_of(of_answers: Sequence[Sequence[float]]) -> Tensor:
    """(M,) float64, one answer after the other."""
    return torch.tensor([value for each in of_answers for value in each], dtype=torch.float64)


def distinct(episodes: Sequence[Episode]) -> dict[int, int]:
    """The first of all that are equal, advantages included, by its index → how many there are of them.
    Scored once, with so many times the weight, they have the same gradient."""
    first: dict[tuple, int] = {}
    copies: dict[int, int] = {}
    for i, episode in enumerate(episodes):
        i = first.setdefault((episode.key, tuple(episode.advantages)), i)
        copies[i] = copies.get(i, 0) + 1
    return copies


class Piece(NamedTuple):
    """Some of a step's answers, as many as are computed at once; equal ones are one."""

    drawn: Drawn
    tokens: Tokens
    copies: Tensor  # (M,) int64 how many tokens of the step each stands for
    shares: Tensor  # (M,) float64 what it counts for in the step, for all of them
    returns: Tensor  # (M,) float64 advantage + value, where a value is learned


def pieces(agent: Agent, episodes: Sequence[Episode], shares: Tensor, all_teach: bool) -> Iterator[Piece]:
    """A step's answers, each token of which counts for `shares`, (E,), but for those without advantage, unless they
    all teach something; of several ranks what one of them computes."""
    copies = distinct(episodes)
    taught = [i for i in copies if all_teach or any(episodes[i].advantages)]
    for part in parts_of([episodes[i] for i in taught], agent.micro_tokens, agent.rank, agent.ranks):
        at = [taught[j] for j in part]
        some = [episodes[i] for i in at]
        tokens, values = tokens_of(some), row_of([e.values for e in some])
        count = torch.tensor([copies[i] for i in at])[tokens.answer]
        share = torch.tensor([float(shares[i]) for i in at], dtype=torch.float64)[tokens.answer] * count
        returns = tokens.advantages + values if len(values) else tokens.advantages
        yield Piece(agent.batch(some), tokens, count, share, returns)


def parts_of(episodes: Sequence[Episode], most: int, rank: int = 0, ranks: int = 1) -> list[np.ndarray]:
    """Their numbers, in parts of about so many tokens: see `batching.parts_of_branches`."""
    return parts_of_branches([e.prompt for e in episodes], [e.size for e in episodes], most, rank, ranks)


@torch.no_grad()
def logprobs_of(model: nn.Module, drawn: Drawn, temperature: float) -> Tensor:
    """log p of what was drawn, one answer after the other, (M,) float32 or wider."""
    return -model.loss(drawn.batch, temperature=temperature)[drawn.at]


def refer(agent: Agent, episodes: Sequence[Episode]) -> None:
    """Fills in log p under the reference, each answer to a prompt scored once."""
    firsts = list(distinct(episodes))
    known = {}
    for part in parts_of([episodes[i] for i in firsts], agent.micro_tokens):
        some = [episodes[firsts[j]] for j in part]
        found = logprobs_of(agent.start, agent.batch(some), agent.temperature).cpu()
        for episode, values in zip(some, found.split([len(e.answer) for e in some]), strict=True):
            known[episode.key] = values.tolist()
    for episode in episodes:
        episode.reference = known[episode.key]


@contextmanager
def chance_kept(session: Session) -> Iterator[None]:
    """Where a reward fails within it, it does on all ranks, and all that is random goes on as if nothing had been
    drawn."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    before, failed = (torch.get_rng_state(), random.getstate(), np.random.get_state()), None
    try:
        yield
    except RewardError as error:
        failed = error
    said = [each for each in session.exchange(failed and str(failed)) if each]
    if said:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
        for i, state in enumerate(on_gpus):
            torch.cuda.set_rng_state(state, i)
        raise failed or RewardError(said[0])


def recalled(session: Session, name: str, at_first: float | None) -> float | None:
    """What was put into `progress.numbers`, or what that is before answers were learned from. UserError where it is
    lost."""
    if not session.progress.totals:
        return at_first
    if not isinstance(value := session.progress.numbers.get(name), int | float):
        raise UserError(f"{session.run.path(CHECKPOINT)} is no checkpoint of this training: it lacks {name!r}")
    return value


# ---- what is watched -------------------------------------------------------------------------------


def verdict_bits(p_right: float) -> float:
    """What it tells to hear "right" or "wrong" of an answer that is right with this probability, in bits: the entropy
    p log₂ 1/p + (1 − p) log₂ 1/(1 − p), at most 1, where a label out of K tells log₂ K. Of two classes "wrong" names
    the other; a policy gradient doesn't conclude that, but by a baseline is pushed to the label by either verdict."""
    return sum(p * math.log2(1 / p) for p in (p_right, 1 - p_right) if p > 0)


def look(episodes: Sequence[Episode], samples: int) -> dict[str, float]:
    """What is watched of a step's answers."""
    rewards, parts = rewards_of(episodes, samples), episodes[0].parts
    count, are_verdicts = len(episodes), bool(((rewards == 0) | (rewards == 1)).all())
    return {
        "reward": float(rewards.mean()),
        "best_reward": float(rewards.max()),
        "worst_reward": float(rewards.min()),
        **(
            {f"reward_{name}": sum(e.parts[name] for e in episodes) / count for name in parts} if len(parts) > 1 else {}
        ),
        **({"verdict_bits": verdict_bits(float(rewards.mean()))} if are_verdicts else {}),
        "entropy": entropy(episodes),
        "groups_without_variance": 1 - float(has_variance(rewards).float().mean()),
        "unfinished": sum(e.is_cut for e in episodes) / count,
        "length": sum(len(e.answer) for e in episodes) / count,
        **({"kl": sum(e.kl for e in episodes) / count} if episodes[0].reference else {}),
    }

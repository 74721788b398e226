"""Answers that a policy gave: what is kept of each, and what is learned from and watched of them.

Ids travel, texts are made for rewards and for people only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from minillm.batching import IGNORE, Batch, answering, by_length, pack
from minillm.errors import UserError
from minillm.generate import Sampling, generate
from minillm.gpt import GPT
from minillm.inference import ready
from minillm.policy import Tokens, has_variance
from minillm.run import CHECKPOINT
from minillm.session import Session
from minillm.tokenizer import Tokenizer

PARITY = 128  # answers, about, on which it is looked whether they are those of the model that learns
APART = {
    torch.float32: 0.001,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}  # nats a token, mean: more is no rounding


@dataclass
class Episode:
    """An answer that the policy gave, and what became of it. The model learns from ids, never from what they mean."""

    example: Any  # of the task
    prompt: Sequence[int]  # token ids
    answer: Sequence[int]  # ids as they were drawn: tokens, of which the last ends it unless it was cut; classes; tags
    logprobs: Sequence[float]  # of each of them, under the distribution that it was drawn from
    said: Any  # what that means, for rewards and for people: a text, a class, or the tags of a sentence
    is_cut: bool = False  # whether it did not end by itself
    reward: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)  # what the reward is the sum of, by name
    reference: Sequence[float] = ()  # log p of the same under the reference, where that is asked for
    values: Sequence[float] = ()  # what was expected before each of them, where that is learned

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


class Writer:
    """A GPT: its draws are tokens, the one that ends the answer among them."""

    draws = "token"

    def __init__(self, task: Any, tokenizer: Tokenizer):
        self.tokenizer, self.longest = tokenizer, task.max_answer_tokens(tokenizer)

    def rollout(self, model: GPT, examples: Sequence[Any], sampling: Sampling, samples: int) -> list[Episode]:
        prompts, stops = [self.tokenizer.prompt(example.prompt) for example in examples], self.tokenizer.stops
        drawn = generate(ready(model), prompts, self.longest, stops, sampling, samples)
        sources = [i for i in range(len(examples)) for _ in range(samples)]
        return [
            Episode(
                examples[i],
                prompts[i],
                sample.tokens,
                sample.logprobs,
                self.tokenizer.decode(sample.tokens),
                is_cut=sample.tokens[-1] not in stops,
            )
            for i, sample in zip(sources, drawn, strict=True)
        ]

    def batch(self, episodes: Sequence[Episode], device: torch.device) -> Drawn:
        batch = to_batch(episodes, device)
        return Drawn(batch, (batch.targets != IGNORE).nonzero()[:, 0], len(batch.tokens))


def rewards_of(episodes: Sequence[Episode], samples: int) -> Tensor:
    """(P, K) float32 of P·K episodes, those of one prompt in a row."""
    return torch.tensor([episode.reward for episode in episodes]).view(-1, samples)


def entropy(episodes: Sequence[Episode]) -> float:
    """Nats a draw, such as a token, estimated by the mean of −log p over them."""
    logprobs = [logprob for episode in episodes for logprob in episode.logprobs]
    return -sum(logprobs) / len(logprobs)


def to_batch(episodes: Sequence[Episode], device: torch.device) -> Batch:
    """The drawn answers behind their prompts, token for token as they were drawn."""
    return pack([answering(episode.prompt, episode.answer) for episode in episodes]).to(device)


def tokens_of(episodes: Sequence[Episode], advantages: Sequence[Sequence[float]]) -> Tokens:
    """Of answers in this order, with the advantages of their tokens; log p as it was when they were drawn. Float64."""
    answer = torch.arange(len(episodes)).repeat_interleave(torch.tensor([len(e.answer) for e in episodes]))
    then, reference, known = (
        torch.tensor([value for each in of_answers for value in each], dtype=torch.float64)
        for of_answers in ([e.logprobs for e in episodes], [e.reference for e in episodes], advantages)
    )
    return Tokens(answer, known, then, then, reference if len(reference) else None)


def distinct(episodes: Sequence[Episode], advantages: Sequence[Sequence[float]] | None = None) -> dict[int, int]:
    """The first of all that have prompt, answer and, if given, advantages in common, by its index → how many there are
    of them. Scored once, with so many times the weight, they have the same gradient."""
    first: dict[tuple, int] = {}
    copies: dict[int, int] = {}
    for i, (episode, own) in enumerate(zip(episodes, advantages or [()] * len(episodes), strict=True)):
        i = first.setdefault((tuple(episode.prompt), tuple(episode.answer), tuple(own)), i)
        copies[i] = copies.get(i, 0) + 1
    return copies


@torch.no_grad()
def logprobs_of(model: nn.Module, drawn: Drawn, temperature: float) -> Tensor:
    """log p of what was drawn, one answer after the other, (M,) float32 or wider."""
    return -model.loss(drawn.batch, temperature=temperature)[drawn.at]


def refer(
    reference: nn.Module, actor: Actor, episodes: Sequence[Episode], temperature: float, most_tokens: int
) -> None:
    """Fills in log p under the reference, each answer to a prompt scored once."""
    firsts = list(distinct(episodes))
    device = next(reference.parameters()).device
    known = {}
    for part in by_length([len(episodes[i].prompt) + len(episodes[i].answer) for i in firsts], most_tokens):
        some = [episodes[firsts[j]] for j in part]
        found = logprobs_of(reference, actor.batch(some, device), temperature).cpu()
        for episode, values in zip(some, found.split([len(e.answer) for e in some]), strict=True):
            known[tuple(episode.prompt), tuple(episode.answer)] = values.tolist()
    for episode in episodes:
        episode.reference = known[tuple(episode.prompt), tuple(episode.answer)]


# ---- what is remembered ----------------------------------------------------------------------------


def recalled(session: Session, name: str, at_first: float | None) -> float | None:
    """What was put into `progress.numbers`, or what that is before the first step. UserError where it is lost."""
    if session.progress.step == 0:
        return at_first
    if not isinstance(value := session.progress.numbers.get(name), int | float):
        raise UserError(f"{session.run.path(CHECKPOINT)} is no checkpoint of this training: it lacks {name!r}")
    return value


# ---- what is watched -------------------------------------------------------------------------------


def require_parity(model: nn.Module, actor: Actor, episodes: Sequence[Episode], temperature: float) -> None:
    """UserError where the answers were drawn with other probabilities than those that are learned from, but for
    rounding: what is then climbed would not be the gradient of the expected reward."""
    some = episodes[:: max(1, len(episodes) // PARITY)]
    now = logprobs_of(model, actor.batch(some, next(model.parameters()).device), temperature)
    then = torch.tensor([logprob for episode in some for logprob in episode.logprobs])
    apart = float((now.cpu() - then).abs().mean())
    if not apart <= (most := APART.get(model.compute_dtype, APART[torch.float32])):
        raise UserError(
            f"answers were drawn with a log p that differs by {apart:.3f} nats a {actor.draws} from the one that "
            f"learns, more than the {most} of rounding; try --precision fp32 --kernels reference, and report it"
        )


def verdict_bits(p_right: float) -> float:
    """What it tells to hear "right" or "wrong" of an answer that is right with this probability, in bits: the entropy
    p log₂ 1/p + (1 − p) log₂ 1/(1 − p), never more than 1, where a label out of K tells log₂ K.

    Of two classes "wrong" names the other, so that a verdict can tell as much as a label; policy gradients do not draw
    that conclusion, but any baseline between the two rewards makes either verdict a push towards the label.
    """
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


def describe(seen: Mapping[str, float], draws: str) -> str:
    """One line of what is watched beside the reward; `draws` is what an answer is made of."""
    kl = f"KL to the start {seen['kl']:.2f} nats an answer · " if "kl" in seen else ""
    return (
        f"reward {seen['reward']:.3f} · {kl}entropy {seen['entropy']:.3f} nats a {draws} · "
        f"gradient norm {seen['gradient_norm']:.2f} · {seen['groups_without_variance']:.0%} of groups without variance"
    )

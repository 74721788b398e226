"""How far each policy-gradient estimator of train_rl.py is from the gradient that it estimates, exactly.

    python bench/estimators.py          the table of bench/results/README.md

The policy is a table: for each beginning of an answer over three letters and an end, the logits of what follows. It has
121 answers of up to four tokens, so that expectations over all pairs of them, two drawn for one prompt, are sums: there
is no sampling, and the figures have no error.

    bias        ‖E ĝ − ∇‖ / ‖∇‖
    direction   the cosine of E ĝ and ∇: 1 where the bias is one of length alone
    noise       E ‖ĝ − E ĝ‖² / ‖E ĝ‖², of a step of two answers

Letters: S states, V tokens, A answers.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import harness  # noqa: F401, first: puts the repository root on the path
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from minillm import cli
from minillm.episodes import Episode
from minillm.policy import AGGREGATIONS, BASELINES, KL_LOSSES, UPDATES, Estimator, Rewards, Tokens
from minillm.values import gae

BETA = 0.3  # weight of the KL, and of the entropy, in what is estimated


class World:
    """All answers that there are, and what is known of each token of each: a row of `score` is ∇ log p of it."""

    def __init__(self, letters: int = 3, longest: int = 4, seed: int = 0):
        self.end, self.longest = letters, longest
        beginnings = [b for n in range(longest) for b in itertools.product(range(letters), repeat=n)]
        self.states = {beginning: i for i, beginning in enumerate(beginnings)}
        answers = [(*b, letters) for b in beginnings]
        self.answers = [*answers, *itertools.product(range(letters), repeat=longest)]  # the last ones are cut
        generator = torch.Generator().manual_seed(seed)
        # Float64 policies, (S, V) logits: the one that learns, the one that drew, the reference.
        shape = len(beginnings), letters + 1
        self.now, noise, self.reference = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)
        )
        self.then = self.now + 0.5 * noise
        self.rewards = torch.rand(len(self.answers), generator=generator, dtype=torch.float64)  # (A,)
        self.guesses = torch.rand(len(beginnings), generator=generator, dtype=torch.float64)  # (S,) values, all wrong

    def logprobs(self, logits: Tensor) -> list[Tensor]:
        """log p of the tokens of each answer."""
        table = logits.log_softmax(-1)
        return [
            torch.stack([table[self.states[answer[:i]], token] for i, token in enumerate(answer)])
            for answer in self.answers
        ]

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.stack([each.sum() for each in self.logprobs(logits)]).exp()

    def values(self, logits: Tensor) -> Tensor:
        """(S,) the reward to be expected of answers that begin so."""
        earned = dict.fromkeys(self.states, 0.0)
        reached = dict.fromkeys(self.states, 0.0)
        for answer, p, reward in zip(self.answers, self.probabilities(logits), self.rewards, strict=True):
            for i in range(len(answer)):
                reached[answer[:i]] += p
                earned[answer[:i]] += p * reward
        return torch.stack([earned[beginning] / reached[beginning] for beginning in self.states])

    def gradient(self, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """Of a function of the logits, (S·V,)."""
        logits = self.now.clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective(logits), logits)
        return slope.flatten()

    def scores(self) -> list[Tensor]:
        """∇ log p of each token of each answer, (tokens, S·V)."""
        p = self.now.softmax(-1)
        found = []
        for answer in self.answers:
            rows = torch.zeros(len(answer), *p.shape, dtype=torch.float64)
            for i, token in enumerate(answer):
                state = self.states[answer[:i]]
                rows[i, state] -= p[state]
                rows[i, state, token] += 1
            found.append(rows.flatten(1))
        return found

    # what is estimated

    def expected_reward(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits) @ self.rewards

    def less_kl(self, logits: Tensor) -> Tensor:
        """E[reward] − β KL(policy ‖ reference), of whole answers."""
        ours, theirs = self.logprobs(logits), self.logprobs(self.reference)
        kl = sum(a.sum().exp() * (a.sum() - b.sum()) for a, b in zip(ours, theirs, strict=True))
        return self.expected_reward(logits) - BETA * kl


@dataclass(frozen=True)
class Choice:
    """A choice of train_rl.py's options, who drew, and for --baseline value what was expected."""

    estimator: Estimator
    is_old: bool = False  # whether an earlier policy drew
    is_right: bool = False  # whether the values are the true ones

    def episodes(self, world: World, known: Sequence[list[Tensor]]) -> list[Episode]:
        """All answers, with what is known of them."""
        then, _, reference = known
        values = world.values(world.now) if self.is_right else world.guesses
        return [
            Episode(
                None,
                [],
                answer,
                then[i].tolist(),
                "",
                reward=float(world.rewards[i]),
                reference=reference[i].tolist(),
                values=[float(values[world.states[answer[:t]]]) for t in range(len(answer))],
            )
            for i, answer in enumerate(world.answers)
        ]

    def weights(
        self,
        world: World,
        drawn: Sequence[int],
        episodes: Sequence[Episode],
        known: Sequence[list[Tensor]],
        greedy: int,
    ) -> Tensor:
        """Of the tokens of these answers to one prompt, one after the other."""
        then, now, reference = (torch.cat([each[i] for i in drawn]) for each in known)
        lengths = torch.tensor([len(world.answers[i]) for i in drawn])
        answer = torch.arange(len(drawn)).repeat_interleave(lengths)
        some = [episodes[i] for i in drawn]
        earned = [episode.earned(BETA if self.estimator.kl == "reward" else 0.0, 0.0) for episode in some]
        if self.estimator.learns_value:
            options = self.estimator.gae_lambda, self.estimator.discount
            found = [gae(each, episode.values, *options) for each, episode in zip(earned, some, strict=True)]
            advantages = torch.tensor([value for each in found for value in each], dtype=torch.float64)
        else:
            rewards = torch.tensor([sum(each) for each in earned], dtype=torch.float64)
            advantages = self.estimator.advantages(Rewards(rewards[None], 0.5, world.rewards[[greedy]]))[0][answer]
        shares = self.estimator.shares(lengths.double(), world.longest)
        return self.estimator.weights(Tokens(answer, advantages, then, now, reference), shares[answer], BETA)

    def moments(self, world: World, samples: int = 2) -> tuple[Tensor, float]:
        """E ĝ, (S·V,), and E ‖ĝ‖², over all that can be drawn."""
        behaviour = world.then if self.is_old else world.now
        known = [world.logprobs(policy) for policy in (behaviour, world.now, world.reference)]
        scores, p, episodes = world.scores(), world.probabilities(behaviour), self.episodes(world, known)
        greedy = world.answers.index(greedy_answer(world))
        mean, square = torch.zeros(world.now.numel(), dtype=torch.float64), 0.0
        for drawn in itertools.product(range(len(world.answers)), repeat=samples):
            estimate = self.weights(world, drawn, episodes, known, greedy) @ torch.cat([scores[i] for i in drawn])
            probability = p[list(drawn)].prod()
            mean += probability * estimate
            square += float(probability * (estimate @ estimate))
        return mean, square


def greedy_answer(world: World) -> tuple[int, ...]:
    answer: tuple[int, ...] = ()
    while len(answer) < world.longest and world.end not in answer:
        answer = (*answer, int(world.now[world.states[answer]].argmax()))
    return answer


@dataclass(frozen=True)
class Finding:
    bias: float
    direction: float
    noise: float


def judge(world: World, choice: Choice, truth: Tensor) -> Finding:
    mean, square = choice.moments(world)
    size = truth.norm()
    return Finding(
        float((mean - truth).norm() / size),
        float(mean @ truth / (mean.norm() * size)),
        float(square / (mean @ mean) - 1),
    )


def rows() -> dict[str, list[tuple[str, Choice]]]:
    """Of each table: options, and the choice that they are."""
    aggregations = [f"--aggregate {name}" for name in AGGREGATIONS if name != "answer"]
    values = [
        (f"--baseline value --gae-lambda {lam}, {'right' if is_right else 'wrong'} values", is_right)
        for lam in (1.0, 0.5, 0.0)
        for is_right in (True, False)
    ]
    old = [f"--update {name}" for name in UPDATES]
    old += [f"--update {name} --ratio sequence" for name in UPDATES if name != "reinforce"]
    return {
        "of E[reward]": [
            *((options, Choice(parsed(options))) for options in (f"--baseline {name}" for name in BASELINES)),
            *((title, Choice(parsed(title.partition(",")[0]), is_right=is_right)) for title, is_right in values),
            *((options, Choice(parsed(options))) for options in aggregations),
        ],
        "of E[reward], answers drawn by an older policy": [(options, Choice(parsed(options), True)) for options in old],
        f"of E[reward] − {BETA} · KL": [
            (options, Choice(parsed(options)))
            for options in ("--kl off", "--kl reward", *(f"--kl {k}" for k in KL_LOSSES))
        ],
    }


def parsed(options: str) -> Estimator:
    return cli.parse(Estimator, "", options.split())


def main(world: World | None = None) -> None:
    world = world or World()
    console = Console()
    for title, choices in rows().items():
        truth = world.gradient(world.less_kl if "KL" in title else world.expected_reward)
        table = Table("estimator", "bias", "direction", "noise", title=Text(f"∇ {title}"), title_justify="left")
        for options, choice in choices:
            found = judge(world, choice, truth)
            bias = "0" if found.bias < 1e-9 else f"{found.bias:.3f}"
            table.add_row(options, bias, f"{found.direction:.4f}", f"{found.noise:.1f}")
        console.print(table)


if __name__ == "__main__":
    main()

"""Soft Q-learning on a vocabulary of 4: its fixed point is π* ∝ π_ref · exp(reward / β), by enumeration."""

import itertools
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

import train_rl
from minillm.episodes import Agent, Episode, Writer, logprobs_of, to_batch, tokens_of
from minillm.errors import UserError
from minillm.estimator import check
from minillm.layers import taken
from minillm.policy import Estimator
from minillm.soft_q import Scores, backward_consistency, inconsistencies, scores, to_the_end

END, LONGEST, TEMPERATURE = 3, 3, 0.8
PROMPTS = [(0, 1), (2,)]
ANSWERS = [
    *((*letters, END) for n in range(LONGEST) for letters in itertools.product(range(3), repeat=n)),
    *itertools.product(range(3), repeat=LONGEST),  # cut
]
CPU = torch.device("cpu")
ACTOR = Writer(SimpleNamespace(max_answer_tokens=lambda _: LONGEST), None)


def everything():
    """All answers to both prompts, with random rewards."""
    rewards = torch.rand(len(PROMPTS) * len(ANSWERS), generator=torch.Generator().manual_seed(0)).double().tolist()
    pairs = itertools.product(PROMPTS, ANSWERS)
    return [
        Episode(None, prompt, answer, [0.0] * len(answer), "", reward=reward)
        for (prompt, answer), reward in zip(pairs, rewards, strict=True)
    ]


def small(seed):
    return tiny.gpt(seed, vocab_size=4)


def sums(values, episodes):
    """Of each answer's tokens, in a row for each prompt."""
    totals = torch.stack([part.sum() for part in values.split([len(e.answer) for e in episodes])])
    return totals.view(-1, len(ANSWERS))


@torch.no_grad()
def distribution(model, episodes):
    return sums(scores(model, to_batch(episodes, CPU), TEMPERATURE).logprobs, episodes).exp()


def optimum(reference, episodes, beta):
    rewards = torch.tensor([e.reward for e in episodes], dtype=torch.float64).view(-1, len(ANSWERS))
    weights = distribution(reference, episodes) * (rewards / beta).exp()
    return weights / weights.sum(1, keepdim=True)


def test_to_the_end_by_hand():
    values, answer = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([0, 0, 0, 1, 1])
    assert to_the_end(values, answer).tolist() == [7.0, 6.0, 4.0, 24.0, 16.0]


def earning(episodes):
    """With the rewards themselves for advantages."""
    for episode in episodes:
        episode.advantages = [episode.reward] * len(episode.answer)
    return episodes


def test_scores_are_those_of_the_loss():
    episodes, model = everything(), small(0)
    batch = to_batch(episodes, CPU)
    found = scores(model, batch, TEMPERATURE)
    torch.testing.assert_close(found.logprobs.detach(), logprobs_of(model, ACTOR.batch(episodes, CPU), TEMPERATURE))
    assert not torch.allclose(found.lse, torch.zeros_like(found.lse))


def test_the_reference_itself_lacks_the_rewards():
    """Where nothing was learned yet, Q and V are 0."""
    episodes, model = everything(), small(0)
    ours = scores(model, to_batch(episodes, CPU), TEMPERATURE)
    known = tokens_of(earning(episodes))
    torch.testing.assert_close(inconsistencies(ours, ours, known.answer, known.advantages, 0.5), known.advantages / 0.5)


def test_the_optimum_lacks_nothing():
    """Its values by enumeration: V(state)/β = log Σ over what may follow of π_ref · exp(reward/β)."""
    beta, episodes, reference = 0.3, everything()[: len(ANSWERS)], small(0)
    theirs = scores(reference, to_batch(episodes, CPU), TEMPERATURE)
    known = tokens_of(earning(episodes))
    logprobs = dict(zip(ANSWERS, theirs.logprobs.split([len(a) for a in ANSWERS]), strict=True))

    def value(beginning):
        n = len(beginning)
        rest = [logprobs[e.answer][n:].sum() + e.reward / beta for e in episodes if e.answer[:n] == beginning]
        return torch.stack(rest).logsumexp(0)

    values = torch.stack([value(answer[:t]) for answer in ANSWERS for t in range(len(answer))])
    best = [
        (value(answer[: t + 1]) if answer[: t + 1] not in logprobs else e.reward / beta)
        + logprobs[answer][t]
        - value(answer[:t])
        for answer, e in zip(ANSWERS, episodes, strict=True)
        for t in range(len(answer))
    ]
    ours = Scores(torch.stack(best), values + theirs.lse)
    lacking = inconsistencies(ours, theirs, known.answer, known.advantages, beta)
    assert lacking.abs().max() < 1e-12


def test_on_log_p_it_is_a_weight():
    """The sum of what is lacking up to the token, as the docstring says."""
    episodes = everything()
    batch, known = to_batch(episodes, CPU), tokens_of(earning(episodes))
    ours, theirs = (scores(small(seed), batch, TEMPERATURE) for seed in (0, 1))
    logprobs = ours.logprobs.detach().requires_grad_()
    found = inconsistencies(Scores(logprobs, ours.lse.detach()), theirs, known.answer, known.advantages, 0.5)
    (slope,) = torch.autograd.grad(-(0.5 * found.square()).sum(), logprobs)
    lacking = found.detach()
    truth = torch.cat([part.cumsum(0) for part in lacking.split([len(e.answer) for e in episodes])])
    torch.testing.assert_close(slope, truth)


class Table(nn.Module):
    """A policy that has logits of its own for all that it may have read."""

    def __init__(self, seed):
        super().__init__()
        letters = (beginning for n in range(LONGEST) for beginning in itertools.product(range(3), repeat=n))
        self.states = {read: i for i, read in enumerate((*p, *b) for b in letters for p in PROMPTS)}
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(len(self.states), 4, generator=generator, dtype=torch.float64))

    def forward(self, tokens, packing, at=None):
        whole = [part.tolist() for part in tokens[packing.rows].split(packing.keys.lengths)]
        ends = [(s, end) for s, n in zip(whole, packing.own.lengths, strict=True) for end in range(len(s) - n, len(s))]
        read = [0] * packing.stems.num_tokens + [self.states.get((*s[: end + 1],), 0) for s, end in ends]
        return taken(torch.tensor(read), at)

    def logits(self, hidden):
        return self.table[hidden]


@pytest.mark.parametrize("often", [1, 5], ids=["all answers alike", "some more often"])
def test_its_fixed_point_is_the_optimum(often):
    """Whoever gave the answers: here they are all there are, whether likely or not."""
    beta, episodes, reference, model = 0.25, everything(), Table(0), Table(0)
    truth = optimum(reference, episodes, beta)
    assert float((distribution(model, episodes) - truth).abs().sum(1).min()) > 0.2  # of at most 2
    seen = [e for i, e in enumerate(episodes) for _ in range(often if i % 7 == 0 else 1)]
    batch, known = to_batch(seen, CPU), tokens_of(earning(seen))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        shares = torch.full((batch.count,), 1 / len(seen), dtype=torch.float64)
        return backward_consistency(model, reference, batch, known, shares, beta, TEMPERATURE)

    optimizer.step(loss)
    assert float((distribution(model, episodes) - truth).abs().sum(1).max()) < 1e-3


def test_the_scripts_update_is_its_gradient():
    """Equal answers scored once, in small pieces, behind the option that names the method; of those that earn nothing
    it learns, too."""
    episodes, reference, model = everything()[::7] * 2, small(0), small(1)
    for episode in episodes[::2]:
        episode.reward = 0.0
    args = train_rl.Args(method="soft-q", beta=0.25, sft_share=0.0)
    agent = Agent(model, reference, None, ACTOR, TEMPERATURE, micro_tokens=20)
    train_rl.climb(agent, earning(episodes), args.beta, args)
    ours = tiny.gradients(model)
    shares = torch.full((sum(len(e.answer) for e in episodes),), 1 / len(episodes), dtype=torch.float64)
    known = tokens_of(episodes)
    backward_consistency(model, reference, to_batch(episodes, CPU), known, shares, 0.25, TEMPERATURE)
    tiny.assert_same(tiny.gradients(model), ours, tolerance=1e-6)  # shares are float32


def test_what_makes_no_sense_is_refused():
    for options, sentence in (
        ({"kl": "reward"}, "takes no --kl"),
        ({"update": "clip"}, "takes no --update"),
        ({"entropy": 0.1}, "takes no --entropy"),
        ({"beta": 0.0}, "--beta 0: --method soft-q divides rewards by it"),
    ):
        with pytest.raises(UserError, match=sentence):
            check(Estimator(method="soft-q", **options), samples=4)
    check(Estimator(method="soft-q", passes=4), samples=1)  # it needs no ratios, and no others to compare with

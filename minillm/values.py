"""A learned value of every token, the baseline of PPO (Schulman et al. 2017, arXiv:1707.06347): the reward that is to
be expected of an answer that begins so.

    V(state)    a linear function of the hidden state of the policy that has read the prompt and the answer so far
    A_t         Σ_k (γλ)^k δ_{t+k}   with δ_t = r_t + γ V(state_{t+1}) − V(state_t), and V = 0 behind the last token

(generalised advantage estimation, Schulman et al. 2015, arXiv:1506.02438). With γ = λ = 1 that is what is earned from
t on less V(state_t): unbiased, however wrong V is, as it does not depend on the token that follows. With λ < 1 a value
that knows better than one answer's luck makes advantages less noisy, and one that is wrong makes them wrong.

The head reads the policy's own states, so that a value costs one row of weights and a forward pass; a critic of its
own would be a second model, with a second optimiser state and a backward pass. Unless --value-coefficient says
otherwise its loss moves nothing but the head: what is climbed stays the gradient of the expected reward alone, whereas
layers that both share serve two aims.

Letters: N tokens (packed), M tokens of answers, C width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minillm.batching import Batch
from minillm.episodes import Agent, Episode, distinct, parts_of, row_of
from minillm.errors import UserError
from minillm.gpt import GPT
from minillm.policy import KEPT

TINY = 1e-6  # a deviation of returns below which there is none


class ValueHead(nn.Module):
    """Hidden states (M, C) → values (M,) float32 or wider: the mean return, and behind it, in standard deviations of
    returns, what is linear in the state. So rewards of any size are learned at one rate (van Hasselt et al. 2016,
    arXiv:1602.07714), and before anything was learned the value is a moving average; before the first step, 0."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.mean, self.deviation = (nn.Parameter(torch.zeros(())) for _ in range(2))  # which no gradient moves

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mean.detach() + self.deviation.detach() * self.standardised(hidden)

    def standardised(self, hidden: Tensor) -> Tensor:
        """Divided by √C, or AdamW, which moves every weight by its rate, would move the value by C times that."""
        return hidden.to(self.weight.dtype) @ self.weight / len(self.weight) ** 0.5

    @torch.no_grad()
    def follow(self, returns: Tensor) -> None:
        """Moves mean and deviation towards those of a step's returns."""
        share = 1 - KEPT if self.deviation > 0 else 1.0
        self.mean.lerp_(returns.mean().to(self.mean), share)
        self.deviation.lerp_(returns.std(correction=0).to(self.mean), share)


def with_value(model: GPT) -> GPT:
    """The same model with a head, which learns and is saved with it. UserError for a model that does not write."""
    if not isinstance(model, GPT):
        raise UserError("--baseline value tells what an answer is worth, token by token: it takes a GPT")
    model.value = ValueHead(model.config.width).to(model.tokens.weight)
    return model


def without_value(model: nn.Module) -> nn.Module:
    """The same model without it, as it is handed on."""
    if hasattr(model, "value"):
        del model.value
    return model


def gae(rewards: Sequence[float], values: Sequence[float], lam: float, discount: float = 1.0) -> list[float]:
    """The advantages of an answer's tokens, from what each earned and what was expected before it."""
    advantages, ahead, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        ahead = reward + discount * next_value - value + discount * lam * ahead
        next_value = value
        advantages.append(ahead)
    return advantages[::-1]


def states_of(model: GPT, batch: Batch) -> Tensor:
    """What the policy's last layer says where each token of an answer is to come, (M, C)."""
    return model(batch.tokens, batch.packing, at=batch.asked)


@torch.no_grad()
def appraise(agent: Agent, episodes: Sequence[Episode]) -> None:
    """Fills in the values of each answer's states, those of equal answers computed once."""
    firsts, model = list(distinct(episodes)), agent.model
    known = {}
    for part in parts_of([episodes[i] for i in firsts], agent.micro_tokens):
        some = [episodes[firsts[j]] for j in part]
        values = model.value(states_of(model, agent.batch(some).batch)).cpu()
        for episode, own in zip(some, values.split([len(e.answer) for e in some]), strict=True):
            known[episode.key] = own.tolist()
    for episode in episodes:
        episode.values = known[episode.key]


def backward_value(model: GPT, batch: Batch, targets: Tensor, shares: Tensor, coefficient: float) -> Tensor:
    """Adds the gradient of Σ share · ½ (V − target)², in standard deviations of returns, to the head's, and
    `coefficient` times it to the policy's; returns the sum, detached. Targets and shares are (M,), of the tokens of the
    answers."""
    with torch.set_grad_enabled(coefficient > 0):
        hidden = states_of(model, batch)
    hidden = hidden.detach() + coefficient * (hidden - hidden.detach())  # the same numbers
    found, head = model.value.standardised(hidden), model.value
    wanted = (targets.to(found) - head.mean.detach()) / head.deviation.detach().clamp(min=TINY)
    loss = (0.5 * shares.to(found) * (found - wanted).square()).sum()
    loss.backward()
    return loss.detach()


def follow(model: GPT, episodes: Sequence[Episode]) -> dict[str, float]:
    """Has the head heed the returns of a step; returns the explained variance, for the log: the share of the returns'
    variance, over all tokens, that the values foresaw, 1 for an oracle, 0 for one number for all, below 0 for what is
    worse than that."""
    values, errors = row_of([e.values for e in episodes]), row_of([e.advantages for e in episodes])
    model.value.follow(values + errors)
    variance = float((values + errors).var(correction=0))
    return {"explained_variance": 1 - float(errors.var(correction=0)) / variance if variance else 0.0}

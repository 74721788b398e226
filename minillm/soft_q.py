"""Soft Q-learning: the policy's logits are Q-values, and all that is asked of them is consistency along answers.

The best policy under reward − β · KL(policy ‖ reference) is π* ∝ π_ref · exp(reward / β). Its soft values

    V(state) / β = log Σ_a π_ref(a | state) exp(Q(state, a) / β)

satisfy, on every answer and from each of its tokens t to the end (path consistency: Nachum et al. 2017,
arXiv:1702.08892; for language models Guo et al. 2021, arXiv:2106.07704),

    V(state_t) + β Σ_{l ≥ t} log π(a_l) / π_ref(a_l)  =  reward

and no other policy does. With Q/β = logits − logits of the reference, which start at 0,

    log π = logits − lse         V/β = lse − lse_ref         (lse: log Σ exp of the logits)

so that a GPT is Q, V and policy at once, without any layer added. Minimised is ½ C² of what is lacking, in nats,

    C_t = reward/β − V(state_t)/β − Σ_{l ≥ t} log π(a_l) / π_ref(a_l)

whose gradient is the weight Σ_{t ≤ l} C_t on log p of token l, as for all that is in policy.py, and a term of its own
for V. On answers that the policy just drew, the first of these weights, C_0, is REINFORCE's under --kl reward with V
as the baseline. But the equation holds whoever gave the answers, so that they may be old, or somebody else's, with no
ratio of probabilities: what it is good for. What it is bad for: β cannot be 0, small ones make targets of many nats,
and lse, which nothing else trains, has to be learned from scratch.

Letters: M tokens of answers, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minillm.batching import Batch
from minillm.gpt import GPT
from minillm.layers import taken
from minillm.policy import Tokens


class Scores(NamedTuple):
    """Of the answers' tokens, one answer after the other."""

    logprobs: Tensor  # (M,) log π of the token
    lse: Tensor  # (M,) log Σ exp of the logits that it was chosen by


def scores(model: GPT, batch: Batch, temperature: float) -> Scores:
    """In float32 or wider, with gradients. The logits of all answers, (M, V), are there at once."""
    logits = model.logits(model(batch.tokens, batch.packing, at=batch.asked))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    lse = logits.logsumexp(-1)
    return Scores(logits.gather(1, taken(batch.targets, batch.asked)[:, None]).squeeze(1) - lse, lse)


def inconsistencies(ours: Scores, reference: Scores, answer: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """C of each token, (M,), from the number of the answer that it belongs to and the reward of that answer, (M,)."""
    ratios = ours.logprobs - reference.logprobs
    return rewards / beta - (ours.lse - reference.lse) - to_the_end(ratios, answer)


def to_the_end(values: Tensor, answer: Tensor) -> Tensor:
    """Each token's sum of the values from it to the end of its answer."""
    last = torch.searchsorted(answer, answer, right=True) - 1  # of its answer
    sums = values.double().cumsum(0)  # over all answers, and so in float64
    return (sums[last] - sums).to(values) + values


def backward_consistency(
    model: GPT, reference: GPT, batch: Batch, tokens: Tokens, shares: Tensor, beta: float, temperature: float
) -> Tensor:
    """Adds the gradient of Σ share · ½ C² over the answers' tokens, whose `advantages` are the rewards themselves;
    returns the sum, detached."""
    with torch.no_grad():
        theirs = scores(reference, batch, temperature)
    ours = scores(model, batch, temperature)
    lacking = inconsistencies(ours, theirs, tokens.answer.to(ours.lse.device), tokens.advantages.to(ours.lse), beta)
    loss = (0.5 * shares.to(lacking) * lacking.square()).sum()
    loss.backward()
    return loss.detach()

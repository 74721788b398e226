"""What direct preference methods do with pairs of answers: a table of pure functions, from log p to a loss and weights.

None of their losses is a sum of log p, but the gradient of each is: by the chain rule

    ∇ loss = Σ weight · ∇(−log p(answer))        weight = ∂loss / ∂(−log p(answer)), at the log p of now

so that a step needs one pass: log p forward, weights from their values, and backward with these (objective.Rule). Every
row is checked against autograd of the loss as it was published (tests/test_preference_methods.py).

Letters: P pairs, N tokens. a = log p of an answer, the sum over its tokens, the one that ends it included; a₀ the same
by the model as it was before its training; m = a / tokens. w is the chosen answer, l the rejected one.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm import evaluate
from minillm.batching import IGNORE, Batch, Document
from minillm.files import read_tensors, write_tensors

SUREST = -1e-6  # mean log p beyond which an answer counts as this likely: the odds of a certain one are infinite


class Pairs(NamedTuple):
    now: Tensor  # (P, 2) a of the chosen answer and of the rejected one
    start: Tensor  # (P, 2) a₀
    tokens: Tensor  # (P, 2) how many there are in each
    kl: float = 0.0  # how far the model is from its start, for kto

    @property
    def ratios(self) -> Tensor:
        """(P, 2): a − a₀."""
        return self.now - self.start

    @property
    def margin(self) -> Tensor:
        """(P,): by how many nats more the chosen answer has become likelier than the rejected one."""
        return self.ratios[:, 0] - self.ratios[:, 1]


Method = Callable[[Pairs, float], tuple[Tensor, Tensor]]  # and beta → loss (P,), weights (P, 2)


def dpo(pairs: Pairs, beta: float) -> tuple[Tensor, Tensor]:
    """−log σ(β · margin) (Rafailov et al. 2023, arXiv:2305.18290): beta · (a − a₀) is taken for a reward model's score,
    and beta is the weight of the KL to the start at which that is the best policy."""
    pull = beta * torch.sigmoid(-beta * pairs.margin)
    return F.softplus(-beta * pairs.margin), opposite(pull)


def ipo(pairs: Pairs, beta: float) -> tuple[Tensor, Tensor]:
    """(margin − 1 / 2β)² (Azar et al. 2023, arXiv:2310.12036, where β is τ): once the margin is reached, it holds.

    As published, with sums over tokens; TRL takes means there."""
    lacking = 1 / (2 * beta) - pairs.margin
    return lacking.square(), opposite(2 * lacking)


def kto(pairs: Pairs, beta: float) -> tuple[Tensor, Tensor]:
    """The mean of 1 − σ(β (a − a₀ − kl)) of the chosen answer and 1 − σ(β (kl − (a − a₀))) of the rejected one
    (Ethayarajh et al. 2024, arXiv:2402.01306; λ = 1). Answers are not compared, but judged good or bad by themselves;
    `kl` is a constant to the gradient."""
    sign = torch.tensor([1.0, -1.0]).to(pairs.now)
    value = torch.sigmoid(beta * sign * (pairs.ratios - pairs.kl))
    return (1 - value).mean(1), sign * beta * value * (1 - value) / 2


def orpo(pairs: Pairs, beta: float) -> tuple[Tensor, Tensor]:
    """−m_w − β log σ(log odds_w − log odds_l) with odds = eᵐ / (1 − eᵐ) (Hong et al. 2024, arXiv:2403.07691, where β is
    λ): supervised learning of the chosen answer, and the rejected one is made less likely beside it. There is no start
    in it."""
    mean = (pairs.now / pairs.tokens).clamp(max=SUREST)
    rest = -torch.expm1(mean)  # 1 − eᵐ, and d log odds / dm is its inverse
    log_odds = mean - rest.log()
    margin = log_odds[:, 0] - log_odds[:, 1]
    weights = opposite(beta * torch.sigmoid(-margin)) / rest
    weights[:, 0] += 1
    return beta * F.softplus(-margin) - mean[:, 0], weights / pairs.tokens


METHODS: dict[str, Method] = {"dpo": dpo, "ipo": ipo, "kto": kto, "orpo": orpo}


def opposite(pull: Tensor) -> Tensor:
    """(P,) → (P, 2): the chosen answer is made as much likelier as the rejected one is made less likely."""
    return torch.stack([pull, -pull], dim=1)


# ---- in a training ---------------------------------------------------------------------------------


def log_p(
    model: nn.Module, documents: Mapping[str, Sequence[Document]], path: Path, is_known: bool
) -> dict[str, np.ndarray]:
    """log p of named documents, computed and kept in a file, or, where they are known, as they are found there."""
    if not is_known:
        nats = {name: evaluate.nats(model, each) for name, each in documents.items() if each}
        found = {name: -torch.tensor(each, dtype=torch.float64) for name, each in nats.items()}
        write_tensors(path, found, {"answers": list(found)})
    return {name: np.zeros(0) for name in documents} | {name: x.numpy() for name, x in read_tensors(path).items()}


def rule(losses: Tensor, batch: Batch, method: Method, beta: float, count: int, kl: float) -> tuple[Tensor, Tensor]:
    """Of −log p of a batch's tokens (N,) → the sum of its pairs' losses / count, and the weight of each token (N,).

    The batch holds pairs, the chosen answer before the rejected one, with a₀ as labels; `count` are those of the step.
    """
    document = batch.packing.sequence
    now = -losses.new_zeros(len(batch.labels)).index_add(0, document, losses)
    tokens = torch.zeros_like(now).index_add(0, document, (batch.targets != IGNORE).to(now))
    parts = (each.to(now).view(-1, 2) for each in (now, batch.labels, tokens))
    loss, weights = method(Pairs(*parts, kl), beta)
    return loss.sum() / count, (weights / count).flatten()[document]

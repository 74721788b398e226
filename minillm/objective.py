"""The one formula that supervised learning and REINFORCE share:

    loss = − Σ weight · log p(token | what came before)        over all tokens of all answers

Supervised learning reads answers that somebody wrote and gives each token the weight 1 / (number of tokens).
REINFORCE reads answers that the model itself has drawn and weights them by how much better than expected they were
(minillm/policy.py). Everything else, the model, the batch, the kernel, is the same.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from kernels import linear_cross_entropy
from minillm.batching import Batch
from minillm.errors import UserError


class Model(Protocol):
    def loss(
        self,
        batch: Batch,
        weights: Tensor | float | None = None,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """−log p of what the batch asks for, at a temperature of the model's distribution: one value a token, or a
        text where texts are classified, in float32 or wider, 0 where there is no target. With weights, one number or
        one for each value, Σ weight · loss; never a mean. Label smoothing ε makes it (1 − ε) times that and ε times the
        mean of −log p over all the target might have been. For a GPT: kernels/linear_cross_entropy.py."""


def losses_of_tokens(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch,
    weights: Tensor | float | None,
    temperature: float,
    label_smoothing: float,
    bias: Tensor | None = None,
) -> Tensor:
    """What `Model.loss` says of tokens, (N,), or Σ weight · loss, from the hidden states of those that are asked for
    (M, C), the output matrix (V, C) and its bias (V,)."""
    at, options = batch.asked, {"bias": bias, "temperature": temperature, "label_smoothing": label_smoothing}
    if at is None:
        return linear_cross_entropy(hidden, weight, batch.targets, token_weights=weights, **options)
    if isinstance(weights, Tensor) and weights.ndim:
        weights = weights[at]
    losses = linear_cross_entropy(hidden, weight, batch.targets[at], token_weights=weights, **options)
    return losses if weights is not None else losses.new_zeros(len(batch.targets)).index_copy(0, at, losses)


# −log p of every target (N,), detached → a loss made of them, and the derivative of it with respect to each (N,), the
# weights: for losses that are no weighted sum, such as those of preference.py.
Rule = Callable[[Tensor], tuple[Tensor, Tensor]]


def backward(
    model: Model,
    batch: Batch,
    weights: Tensor | float | Rule,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Adds the gradient of Σ weight · −log p(target) to the parameters'; returns the sum, detached. With a rule, the
    gradient of the loss that it knows, and that loss.

    The sums of the batches of one step are the sum of the step, however it is cut: a count that they are divided by
    is taken once, over the whole step.
    """
    if callable(weights):
        if label_smoothing:
            raise UserError("--label-smoothing is for sums of −log p, and this loss is none; leave it out")
        losses = model.loss(batch, None, temperature)
        loss, weights = weights(losses.detach())
        losses.backward(weights)  # the chain rule: ∂loss/∂parameters = Σ ∂loss/∂(−log p) · ∂(−log p)/∂parameters
        return loss
    loss = model.loss(batch, weights, temperature, label_smoothing)
    loss.backward()
    return loss.detach()

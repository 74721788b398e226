"""The one formula that supervised learning and REINFORCE share:

    loss = − Σ weight · log p(token | what came before)        over all tokens of all answers

Supervised learning reads answers that somebody wrote and gives each token the weight 1 / (number of tokens).
REINFORCE reads answers that the model itself has drawn and weights them by how much better than expected they were
(minillm/policy.py). Everything else, the model, the batch, the kernel, is the same.
"""

from torch import Tensor

from minillm.batching import Batch
from minillm.gpt import GPT


def weighted_nll(model: GPT, batch: Batch, weights: Tensor | float, temperature: float = 1.0) -> Tensor:
    """− Σ weight · log p(target) as a scalar; weights are one number or one a token (N,). Prompts have no target
    and count nothing, whatever their weight. p is the model's distribution at that temperature."""
    hidden = model(batch.tokens, batch.packing)
    return (weights * model.loss(hidden, batch.targets, temperature=temperature)).sum()

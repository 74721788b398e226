"""What is watched of a training by reward: whether it is what it seems, and where it goes."""

from collections.abc import Mapping, Sequence

import torch

from minillm.episodes import Episode, entropy, logprobs_of, rewards_of, to_batch
from minillm.errors import UserError
from minillm.gpt import GPT
from minillm.policy import has_variance

PARITY = 128  # answers, about, on which it is looked whether they are those of the model that learns
APART = {torch.float32: 0.01, torch.bfloat16: 0.5, torch.float16: 0.1}  # nats a token by which rounding may differ


def require_parity(model: GPT, episodes: Sequence[Episode], temperature: float) -> None:
    """UserError where the answers were drawn with other probabilities than those that are learned from, but for
    rounding: what is then climbed would not be the gradient of the expected reward."""
    some = episodes[:: max(1, len(episodes) // PARITY)]
    now = logprobs_of(model, to_batch(some, model.tokens.weight.device), temperature)
    then = torch.tensor([logprob for episode in some for logprob in episode.logprobs])
    apart = float((now.cpu() - then).abs().max())
    if not apart <= (most := APART.get(model.compute_dtype, APART[torch.float32])):
        raise UserError(
            f"answers were drawn with a log p that differs by up to {apart:.3f} nats a token from the one that learns, "
            f"more than the {most} of rounding; try --precision fp32 --kernels reference, and report it"
        )


def look(episodes: Sequence[Episode], samples: int) -> dict[str, float]:
    """What is watched of a step's answers."""
    rewards, parts = rewards_of(episodes, samples), episodes[0].parts
    count = len(episodes)
    return {
        "reward": float(rewards.mean()),
        **(
            {f"reward_{name}": sum(e.parts[name] for e in episodes) / count for name in parts} if len(parts) > 1 else {}
        ),
        "entropy": entropy(episodes),
        "groups_without_variance": 1 - float(has_variance(rewards).float().mean()),
        "unfinished": sum(e.is_cut for e in episodes) / count,
        **({"kl": sum(e.kl for e in episodes) / count} if episodes[0].reference else {}),
    }


def describe(seen: Mapping[str, float]) -> str:
    """One line of what is watched beside the reward."""
    kl = f"KL to the start {seen['kl']:.2f} nats an answer · " if "kl" in seen else ""
    return (
        f"reward {seen['reward']:.3f} · {kl}entropy {seen['entropy']:.3f} nats a token · "
        f"gradient norm {seen['gradient_norm']:.2f} · {seen['groups_without_variance']:.0%} of groups without variance"
    )

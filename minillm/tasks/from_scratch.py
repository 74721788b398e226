"""GPTs that start from nothing and learn to write from a person's texts: what suits those and the time there is."""

from collections.abc import Iterable
from typing import Any

from minillm.gpt import GPT, GPTConfig
from minillm.tasks.base import Shape

VOCABULARY = 8000  # tokens learned from the training texts, at most
WORDS = 5_000_000  # that are read in all, unless told otherwise: a quarter of an hour on two cores
WORDS_A_MINUTE = 400_000  # of this model on two cores, about
MOST_EPOCHS = 15  # of few texts more are learned by heart
MANY = 300_000  # words of training texts; with fewer, steps are smaller, or there would be too few


def recipe(words: int, minutes: float | None) -> dict[str, Any]:
    """Of texts that have so many words in all. The oftener each is read, the more dropout; the best look counts."""
    epochs = minutes * WORDS_A_MINUTE / words if minutes else min(MOST_EPOCHS, WORDS / words)
    shape = {"layers": 4, "width": 256, "heads": 4, "dropout": 0.1 if epochs < 10 else 0.3}
    rates = {"optimizer": "muon", "lr": 0.004, "embedding_lr": 0.004, "warmup": 0.05}
    looks = {"evaluations": 8, "keep": "best"}
    return {**shape, **rates, **looks, "batch_tokens": 4096 if words >= MANY else 2048, "epochs": epochs}


def count_words(texts: Iterable[str]) -> int:
    return sum(len(text.split()) for text in texts)


def new_model(vocab_size: int, max_seq_len: int, shape: Shape) -> GPT:
    """ValueError for a shape that cannot be."""
    sizes = {"num_layers": shape.layers, "width": shape.width, "num_heads": shape.heads, "dropout": shape.dropout}
    return GPT(GPTConfig(vocab_size, max_seq_len, mlp="gelu-erf", **sizes))

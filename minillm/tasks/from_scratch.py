"""GPTs that start from nothing and learn from a person's texts: their sizes and rates, from how much there is to learn
from and how long."""

from typing import Any

from minillm.gpt import GPT, GPTConfig
from minillm.tasks.base import Shape

VOCABULARY = 8000  # tokens learned from the training texts, at most
MINUTES = 5.0


def recipe(minutes: float | None) -> dict[str, Any]:
    """Of a GPT that writes."""
    shape = {"layers": 4, "width": 256, "heads": 4, "dropout": 0.1}
    rates = {"optimizer": "muon", "lr": 0.003, "embedding_lr": 0.003, "warmup": 0.05}
    return {**shape, **rates, "batch_tokens": 4096, "minutes": minutes or MINUTES}


def new_model(vocab_size: int, max_seq_len: int, shape: Shape) -> GPT:
    """ValueError for a shape that cannot be."""
    sizes = {"num_layers": shape.layers, "width": shape.width, "num_heads": shape.heads, "dropout": shape.dropout}
    return GPT(GPTConfig(vocab_size, max_seq_len, mlp="gelu-erf", **sizes))

"""A classifier for people: texts in, the probability of every class out.

Letters: n texts, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from minillm.heads import SequenceClassifier
from minillm.published import checkpoint
from minillm.published.subwords import load_tokenizer
from minillm.reader import Texts, read
from minillm.tokenizer import Tokenizer


class Classifier:
    """A model with what it needs to read texts and to name what it sees in them."""

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer):
        self.model, self.tokenizer, self.classes = model, tokenizer, model.classes

    @classmethod
    def open(cls, name: str | Path) -> "Classifier":
        """A run of `train_sft.py --task classify`, or another checkpoint with classes. UserError if it has none."""
        path = checkpoint.resolve(name)
        return cls(checkpoint.load(path, head="classify"), load_tokenizer(path))

    def probabilities(self, texts: Sequence[Texts]) -> np.ndarray:
        """(n, K) float64, rows in the order of the texts; see `read`."""
        logits = torch.from_numpy(read(self.model, self.tokenizer, texts))
        return logits.softmax(dim=-1).numpy()

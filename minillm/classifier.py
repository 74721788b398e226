"""A classifier for people: texts in, the probability of every class out.

Letters: n texts, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from minillm import checkpoint
from minillm.batching import LabelledCorpus, cut
from minillm.heads import SequenceClassifier
from minillm.subwords import load_tokenizer
from minillm.tokenizer import Tokenizer

BATCH_TOKENS = 4096

Texts = tuple[str, ...]  # what is classified: one text, or a pair of them


class Classifier:
    """A model with what it needs to read texts and to name what it sees in them."""

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer):
        self.model, self.tokenizer, self.classes = model, tokenizer, model.classes

    @classmethod
    def open(cls, name: str | Path) -> "Classifier":
        """A run of `train_sft.py --task classify`, or another checkpoint with classes. UserError if it has none."""
        path = checkpoint.resolve(name)
        return cls(checkpoint.load(path, head="classify"), load_tokenizer(path))

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[Texts]) -> np.ndarray:
        """(n, K) float64, rows in the order of the texts. Leaves the model in the mode it found.

        A text too long for the model is cut to what it has positions for.
        """
        room = self.model.config.max_seq_len
        corpus = LabelledCorpus([self.tokenizer.wrap(*each, limit=room) for each in texts], [0] * len(texts))
        was_training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        found = np.empty((len(texts), len(self.classes)))
        for indices in cut(np.arange(len(texts)), corpus.lengths, BATCH_TOKENS):
            batch = corpus.batch(indices).to(device)
            logits = self.model(batch.tokens, batch.packing, batch.segments)
            found[indices] = logits.double().softmax(dim=-1).cpu().numpy()
        self.model.train(was_training)
        return found

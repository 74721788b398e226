"""Texts through a model that reads: BERT and its heads, GPT as a classifier.

Letters: n texts, C outputs of the model for each.
"""

from collections.abc import Sequence

import numpy as np
import torch

from minillm.batching import LabelledCorpus, cut
from minillm.errors import NO_NUMBERS, UserError
from minillm.heads import Head
from minillm.tokenizer import Tokenizer, read_texts

BATCH_TOKENS = 4096

Texts = tuple[str, ...]  # what is read as one: a text, or a pair of them


@torch.inference_mode()
def read(model: Head, tokenizer: Tokenizer, texts: Sequence[Texts]) -> np.ndarray:
    """What the model says of each text, (n, C) float64. Leaves the model in the mode it found.

    A text too long for the model is cut to what it reads. UserError if the vocabulary is not the model's, or if what it
    says are no numbers.
    """
    if model.lower_case:
        texts = [tuple(text.lower() for text in each) for each in texts]
    ids = read_texts(tokenizer, texts, model.config.vocab_size, model.max_seq_len)
    corpus = LabelledCorpus(ids, [0] * len(texts))
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    batches = cut(np.arange(len(texts)), corpus.lengths, BATCH_TOKENS)
    found = []
    for indices in batches:
        batch = corpus.batch(indices).to(device)
        found.append(model(batch.tokens, batch.packing, batch.segments).double().cpu().numpy())
    model.train(was_training)
    if not all(np.isfinite(each).all() for each in found):
        raise UserError(NO_NUMBERS)
    return np.concatenate(found)[np.argsort(np.concatenate(batches))]

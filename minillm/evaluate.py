"""What a model answers: texts that a GPT writes, and what a model that reads says of texts.

Letters: n texts, C outputs of the model for each.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from minillm.batching import Document, cut, pack
from minillm.errors import NOT_FINITE, UserError
from minillm.generate import GREEDY, generate
from minillm.gpt import GPT
from minillm.heads import Head
from minillm.inference import ready
from minillm.tokenizer import Tokenizer, read_texts

PROMPTS = 1024  # answered at once
BATCH_TOKENS = 4096  # read at once

Texts = tuple[str, ...]  # what is read as one: a text, or a pair of them


def write(model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """The greedy answer to each prompt, in their order. Leaves the model in the mode it found. UserError where a token
    has no probability."""
    was_training = model.training
    model.eval()
    fast = ready(model)
    ids = [tokenizer.prompt(prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # like lengths need no padding
    answers = [""] * len(ids)
    for start in range(0, len(order), PROMPTS):
        rows = order[start : start + PROMPTS]
        samples = generate(fast, [ids[i] for i in rows], max_new_tokens, tokenizer.stops, GREEDY)
        if any(math.isnan(logprob) for sample in samples for logprob in sample.logprobs):
            raise UserError(NOT_FINITE)
        for i, sample in zip(rows, samples, strict=True):
            answers[i] = tokenizer.decode(sample.tokens)
    model.train(was_training)
    return answers


@torch.inference_mode()
def read(model: Head, tokenizer: Tokenizer, texts: Sequence[Texts]) -> np.ndarray:
    """What the model says of each text, (n, C) float64. Leaves the model in the mode it found.

    A text too long for the model is cut to what it reads. UserError if the vocabulary is not the model's, or if what it
    says is not finite.
    """
    if model.lower_case:
        texts = [tuple(text.lower() for text in each) for each in texts]
    ids = read_texts(tokenizer, texts, model.config.vocab_size, model.max_seq_len)
    if (empty := next((i for i, (tokens, _) in enumerate(ids) if not tokens), None)) is not None:
        raise UserError(f"text {empty + 1} is empty, and this model's vocabulary puts no token before or behind it")
    documents = [Document(tokens, label=0, segments=segments) for tokens, segments in ids]
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    batches = by_length([len(document.tokens) for document in documents])
    found = []
    for indices in batches:
        batch = pack([documents[i] for i in indices]).to(device)
        found.append(model(batch.tokens, batch.packing, batch.segments).double().cpu().numpy())
    model.train(was_training)
    if not all(np.isfinite(each).all() for each in found):
        raise UserError(NOT_FINITE)
    return np.concatenate(found)[np.argsort(np.concatenate(batches))]


def by_length(lengths: Sequence[int]) -> list[np.ndarray]:
    """Indices in batches of like length."""
    order = np.argsort(lengths, kind="stable")
    return cut(order, np.array(lengths), BATCH_TOKENS)


def classify(model: Head, tokenizer: Tokenizer, texts: Sequence[Texts]) -> np.ndarray:
    """The probability of every class of a `SequenceClassifier`, (n, K) float64; see `read`."""
    return torch.from_numpy(read(model, tokenizer, texts)).softmax(dim=-1).numpy()

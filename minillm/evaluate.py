"""Greedy answers of a model to the examples of a task, and the task's metrics of them; outputs of models that read."""

from collections.abc import Sequence

import numpy as np
import torch

from minillm.batching import LabelledCorpus, cut
from minillm.errors import NOT_FINITE, UserError
from minillm.generate import generate
from minillm.gpt import GPT
from minillm.heads import Head
from minillm.metrics import Interval
from minillm.sampling import GREEDY
from minillm.tasks import AnswerTask, Example
from minillm.tokenizer import Tokenizer, read_texts

BATCH = 1024  # prompts answered at once


def answer(model: GPT, task: AnswerTask, examples: Sequence[Example]) -> list[str]:
    """The model's greedy answer to each example, in their order. Leaves the model in the mode it found."""
    was_training = model.training
    model.eval()
    prompts = [task.tokenizer.encode(example.prompt) for example in examples]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths need no padding
    answers = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        samples = generate(model, [prompts[i] for i in rows], task.max_answer_tokens, task.tokenizer.end, GREEDY)
        for i, sample in zip(rows, samples, strict=True):
            answers[i] = task.tokenizer.decode(sample.tokens)
    model.train(was_training)
    return answers


def evaluate(model: GPT, task: AnswerTask, examples: Sequence[Example]) -> dict[str, Interval]:
    """The task's metrics of the model's greedy answers."""
    return task.measure(examples, answer(model, task, examples))


# ---- texts through a model that reads ------------------------------------------------------------

BATCH_TOKENS = 4096

Texts = tuple[str, ...]  # what is read as one: a text, or a pair of them


@torch.inference_mode()
def read(model: Head, tokenizer: Tokenizer, texts: Sequence[Texts]) -> np.ndarray:
    """What a model that reads (BERT and its heads, GPT as a classifier) puts out for each of n texts: (n, C) float64.

    A text too long for the model is cut to what it reads. Leaves the model in the mode it found. UserError if the
    vocabulary is not the model's, or for an output that is NaN or infinite.
    """
    if model.lower_case:
        texts = [tuple(text.lower() for text in each) for each in texts]
    ids = read_texts(tokenizer, texts, model.config.vocab_size, model.max_seq_len)
    if (empty := next((i for i, (tokens, _) in enumerate(ids) if not tokens), None)) is not None:
        raise UserError(f"text {empty + 1} is empty, and this model's vocabulary puts no token before or behind it")
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
        raise UserError(NOT_FINITE)
    return np.concatenate(found)[np.argsort(np.concatenate(batches))]

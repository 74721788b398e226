"""What a model answers: texts that a GPT writes, and what a model that reads says of texts.

Letters: n texts, C outputs of the model for each.
"""

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from minillm.batching import Batch, Document, by_length, pack
from minillm.beam import Beams, beam_search
from minillm.errors import NOT_FINITE, UserError
from minillm.generate import GREEDY, generate
from minillm.gpt import GPT
from minillm.heads import Head, Scorer, SequenceClassifier
from minillm.inference import ready
from minillm.published.exchanges import Composer
from minillm.tokenizer import Tokenizer, read_texts

WRITTEN_TOKENS = 16_384  # prompts and room for answers that are held at once
BATCH_TOKENS = 4096  # read at once

Texts = tuple[str, ...]  # what is read as one: a text, or a pair of them


def write(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int, beams: Beams | None = None
) -> list[str]:
    """The answer to each prompt, in their order; see `complete`."""
    ids = [tokenizer.prompt(prompt) for prompt in prompts]
    return [tokenizer.decode(tokens) for tokens in complete(model, ids, max_new_tokens, tokenizer.stops, beams)]


def complete(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Collection[int],
    beams: Beams | None = None,
) -> list[list[int]]:
    """The answer to each prompt, greedy or the best that a search finds, from tokens to tokens. Leaves the model in the
    mode it found. UserError where a token has no probability."""
    was_training = model.training
    model.eval()
    fast = ready(model)
    answers: list[list[int]] = [[] for _ in prompts]
    width = beams.width if beams else 1
    for rows in by_length([len(prompt) + width * max_new_tokens for prompt in prompts], WRITTEN_TOKENS):
        asked = fast, [prompts[i] for i in rows], max_new_tokens, stops
        for i, tokens in zip(rows, searched(*asked, beams) if beams else greedy(*asked), strict=True):
            answers[i] = tokens
    model.train(was_training)
    return answers


def greedy(
    model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, stops: Collection[int]
) -> list[list[int]]:
    samples = generate(model, prompts, max_new_tokens, stops, GREEDY)
    if any(math.isnan(logprob) for sample in samples for logprob in sample.logprobs):
        raise UserError(NOT_FINITE)
    return [sample.tokens for sample in samples]


def searched(
    model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, stops: Collection[int], beams: Beams
) -> list[list[int]]:
    return [best.tokens for best, *_ in beam_search(model, prompts, max_new_tokens, stops, beams)]


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
    return of_documents(model, documents, outputs)


def score(
    model: Scorer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    compose: Composer | None = None,
) -> np.ndarray:
    """How good a reward model finds each answer to its prompt, (n,) float64. Of what is too long, the beginning of the
    prompt is cut first. Whoever asks often keeps the `Composer` of the two. UserError as above."""
    compose = compose or Composer(model, tokenizer)
    documents = [compose(prompt, answer).judged() for prompt, answer in zip(prompts, answers, strict=True)]
    return of_documents(model, documents, outputs)[:, 0]


def nats(model: nn.Module, documents: Sequence[Document]) -> list[float]:
    """Σ −log p of the targets of each document, in their order. UserError as above."""
    return of_documents(model, documents, nats_of_batch).tolist()


def outputs(model: Head, batch: Batch) -> Tensor:
    return model(batch.tokens, batch.packing, batch.segments)


def nats_of_batch(model: nn.Module, batch: Batch) -> Tensor:
    losses = model.loss(batch).double()  # of tokens, of sequences, or of both
    of_both = torch.cat([batch.packing.sequence, torch.arange(len(batch.labels), device=losses.device)])
    return losses.new_zeros(len(batch.packing.lengths)).index_add(0, of_both[-len(losses) :], losses)


@torch.inference_mode()
def of_documents(
    model: nn.Module, documents: Sequence[Document], look: Callable[[nn.Module, Batch], Tensor]
) -> np.ndarray:
    """What `look` sees in each document, a row each, in float64. Leaves the model in the mode it found. UserError where
    that is not finite."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    batches = by_length([len(document.tokens) for document in documents], BATCH_TOKENS)
    found = [look(model, pack([documents[i] for i in indices]).to(device)).double().cpu() for indices in batches]
    model.train(was_training)
    rows = np.concatenate(found)[np.argsort(np.concatenate(batches))]
    if not np.isfinite(rows).all():
        raise UserError(NOT_FINITE)
    return rows


def classify(model: SequenceClassifier, tokenizer: Tokenizer, texts: Sequence[Texts]) -> np.ndarray:
    """The probability of every class, (n, K) float64; see `read`."""
    return model.probabilities(torch.from_numpy(read(model, tokenizer, texts))).numpy()

"""Which words drive a prediction: integrated gradients (Sundararajan, Taly and Yan 2017, arXiv:1703.01365).

    share of token i = Σ_C (x_i − b_i) · ∫₀¹ ∂f/∂x_i (b + α (x − b)) dα

x are the embeddings of a text, b those of one of which nothing is known, and f is one output of the model, such as the
logit of the class that it predicts. The shares add up to f(x) − f(b), whatever the model is (completeness); by how much
they miss it tells whether the integral, a sum over points, has enough of them.

In b every token is the mean of the vocabulary; [CLS] and the like stay. [MASK] may never have been trained, and means
something else to each classifier then. Zeros are no token either, and a norm behind the embeddings makes of α · x the
same for all α but 0.

Letters: N tokens, C width, P points.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minillm.batching import Batch, Document, pack
from minillm.errors import NOT_FINITE, UserError
from minillm.evaluate import BATCH_TOKENS, Texts
from minillm.heads import Head, TokenClassifier
from minillm.tagging import Tagged, WordReader
from minillm.tags import in_order, mark
from minillm.tokenizer import Tokenizer, read_texts

FEWEST, MOST = 16, 512  # points
TOLERANCE = 0.01  # of f(x) − f(b), or of a logit where that is smaller: by how much the shares may miss it
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
BETWEEN = " / "  # the texts of a pair, as a person reads them


class NothingToExplain(UserError):
    """Of a text."""


Look = Callable[[Head, Batch], Tensor]  # the output in question, one a document: (B,)
Span = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """A text as a model reads it, and as a person does."""

    document: Document
    text: str
    spans: Sequence[Span]  # of its words
    word_of: np.ndarray  # (N,) the word of each token; −1 of what stands around them, such as [CLS]


class Explanation(NamedTuple):
    what: str  # the class, or whatever else f is the output of
    text: str
    spans: Sequence[Span]  # of its words
    shares: list[float]  # of each word in `value` − `start`
    value: float  # f of the text
    start: float  # f where nothing is known of it

    @property
    def words(self) -> list[str]:
        return [self.text[start:stop] for start, stop in self.spans]

    def strengths(self) -> list[float]:
        """From −1 to 1: the shares beside the largest."""
        largest = max(map(abs, self.shares), default=0.0) or 1.0
        return [share / largest for share in self.shares]


def explain(model: Head, reading: Reading, what: str, look: Look) -> Explanation:
    """The share of each word. The model must be in evaluation mode. UserError where it says what is not finite."""
    is_word = reading.word_of >= 0
    shares, value, start = integrated_gradients(model, reading.document, is_word, look)
    of_words = np.zeros(len(reading.spans))
    np.add.at(of_words, reading.word_of[is_word], shares[is_word])
    return Explanation(what, reading.text, reading.spans, of_words.tolist(), value, start)


def integrated_gradients(
    model: Head, document: Document, is_word: np.ndarray, look: Look
) -> tuple[np.ndarray, float, float]:
    """The shares of all tokens (N,), f(x) and f(b). In b those have no meaning that `is_word` (N,) names."""
    embeddings = model.encoder.tokens.weight.detach()
    x = embeddings[torch.tensor(document.tokens, device=embeddings.device)]
    b = x.clone()
    b[torch.from_numpy(is_word).to(x.device)] = embeddings.mean(dim=0)
    with torch.no_grad():
        value, start = outputs_at(model, document, torch.stack([x, b]), look).double().tolist()
    if not np.isfinite([value, start]).all():
        raise UserError(NOT_FINITE)
    points = FEWEST
    while True:
        shares = along(model, document, b, x, look, points)
        missed = abs(shares.sum() - (value - start))
        if missed <= TOLERANCE * min(1.0, abs(value - start)) or points >= MOST:
            return shares, value, start
        points *= 2


def along(model: Head, document: Document, b: Tensor, x: Tensor, look: Look, points: int) -> np.ndarray:
    """The shares (N,) by Gauss and Legendre's rule, which of smooth functions needs few points."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    shares = np.zeros(len(document.tokens))
    for part in np.array_split(np.arange(points), -(-points * len(shares) // BATCH_TOKENS)):
        if len(part):
            alpha = torch.from_numpy((nodes[part] + 1) / 2).to(x)[:, None, None]
            between = (b + alpha * (x - b)).requires_grad_()  # (P, N, C)
            (gradient,) = torch.autograd.grad(outputs_at(model, document, between, look).sum(), between)
            of_points = (gradient.double() * (x - b).double()).sum(dim=-1).cpu().numpy()
            shares += weights[part] / 2 @ of_points
    return shares


def outputs_at(model: Head, document: Document, embeddings: Tensor, look: Look) -> Tensor:
    """f of P copies of the document that have these embeddings, (P, N, C) → (P,)."""
    batch = pack([document] * len(embeddings)).to(embeddings.device)
    hook = model.encoder.tokens.register_forward_hook(lambda *_: embeddings.flatten(0, 1))
    try:
        return look(model, batch)
    finally:
        hook.remove()


# ---- what is looked at -----------------------------------------------------------------------------


def logit(k: int) -> Look:
    """Of a class of the whole, by a classifier."""
    return lambda model, batch: model(batch.tokens, batch.packing, batch.segments)[:, k]


def logit_of_token(at: int, k: int) -> Look:
    """Of a class of the token with this number in the document, by a tagger."""
    return lambda model, batch: model(batch.tokens, batch.packing)[batch.packing.cu_seqlens[:-1].long() + at, k]


def logit_of_whole(k: int) -> Look:
    """Of a class of the whole, by a tagger."""
    return lambda model, batch: model.both(batch.tokens, batch.packing, None)[1][:, k]


def of_class(model: Head, tokenizer: Tokenizer, texts: Texts, k: int) -> Explanation:
    """Of the output k of a classifier."""
    return explain(model, reading_of(model, tokenizer, texts), model.classes[k], logit(k))


def of_tags(
    model: TokenClassifier, tokenizer: Tokenizer, text: str, spans: Sequence[Span], tagged: Tagged
) -> list[Explanation]:
    """Of every entity that a tagger found, by the tag of its first word, or if it marks none, of every word's tag; and
    of what it says of the whole. A text of several windows is explained by what is read where it was decided."""
    windows = WordReader(tokenizer, model.config).windows([text[start:stop] for start, stop in spans])
    readings = [Reading(Document(w.tokens, label=0), text, spans, w.word_of) for w in windows]
    found = []
    for what, word in decisions(text, spans, tagged.tags, mark(model.classes)):
        for window, reading in zip(windows, readings, strict=True):
            if len(here := window.at[window.words == word]):
                look = logit_of_token(int(here[0]), model.classes.index(tagged.tags[word]))
                found.append(explain(model, reading, what, look))
    if tagged.intent is not None and readings:
        look = logit_of_whole(model.sequence_classes.index(tagged.intent))
        found.append(explain(model, readings[0], tagged.intent, look))
    return found


def decisions(text: str, spans: Sequence[Span], tags: Sequence[str], marks_entities: bool) -> list[tuple[str, int]]:
    """What a person would ask about, and the word that it is about."""
    if marks_entities:
        return [
            (f"{text[spans[first][0] : spans[stop - 1][1]]} ({kind})", first) for kind, first, stop in in_order(tags)
        ]
    return [(f"{text[start:stop]} ({tag})", i) for i, ((start, stop), tag) in enumerate(zip(spans, tags, strict=True))]


# ---- words and tokens ------------------------------------------------------------------------------


def reading_of(model: Head, tokenizer: Tokenizer, texts: Texts) -> Reading:
    """A text, or a pair, as a classifier reads it, cut where it is too long. UserError as of `evaluate.read`."""
    read = tuple(text.lower() for text in texts) if model.lower_case else texts
    texts = texts if list(map(len, read)) == list(map(len, texts)) else read  # İ in lower case is two characters
    ((tokens, segments),) = read_texts(tokenizer, [read], model.config.vocab_size, model.max_seq_len)
    spans: list[Span] = []
    word_of, at, offset = np.full(len(tokens), -1), 0, 0
    for text in read:
        first = len(spans)
        spans += [(offset + match.start(), offset + match.end()) for match in WORD.finditer(text)]
        for token, word in pieces(tokenizer, text, [(a - offset, b - offset) for a, b in spans[first:]]):
            while at < len(tokens) and tokens[at] != token and word_of[at - 1] < first:  # [CLS], [SEP]
                at += 1
            if at == len(tokens) or tokens[at] != token:
                break  # the text was cut here
            word_of[at] = first + word if word >= 0 else -1
            at += 1
        offset += len(text) + len(BETWEEN)
    if not (word_of >= 0).any():
        raise NothingToExplain("there is nothing to explain: of this text the model reads no word")
    return Reading(Document(tokens, label=0, segments=segments), BETWEEN.join(texts), spans, word_of)


def pieces(tokenizer: Tokenizer, text: str, spans: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """The tokens of a text, and of each the word in which its last character is, or the one before it."""
    starts = [start for start, _ in spans]
    for token, (_, end) in zip(*tokenizer.parse(text, control=False), strict=True):
        yield token, max(0, int(np.searchsorted(starts, max(end - 1, 0), side="right")) - 1) if spans else -1

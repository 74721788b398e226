"""Words as a tagger reads them: cut into pieces, in windows where they are too many, and what it says of each word.

Letters: n words, K tags, K' classes of the whole.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minillm.batching import Document, by_length, pack
from minillm.errors import NOT_FINITE, UserError
from minillm.evaluate import BATCH_TOKENS
from minillm.heads import AnyConfig, TokenClassifier, pooling_of
from minillm.tags import Grammar
from minillm.tokenizer import Tokenizer

Words = Sequence[str]  # none of them empty, without blanks in them
Pieces = tuple[Sequence[int], np.ndarray]  # tokens, and of each which word it is of
Vary = Callable[[Sequence[int], np.ndarray], Pieces]


class Window(NamedTuple):
    """Tokens that are read at once, and the words that are decided there."""

    tokens: list[int]
    words: np.ndarray  # their numbers in the sentence
    at: np.ndarray  # the token of each that says what it is
    word_of: np.ndarray  # the number of each token's word; −1 of what stands around the text


class Tagged(NamedTuple):
    """What a model says of a sentence."""

    tags: list[str]
    probabilities: list[float]  # of each of them
    intent: str | None
    intent_probability: float | None


class Tags(tuple[str, ...]):
    """The tags of a sentence, one a word, and what the whole is, where that has classes of its own."""

    intent: str | None

    def __new__(cls, tags: Iterable[str], intent: str | None = None):
        found = super().__new__(cls, tags)
        found.intent = intent
        return found

    def __str__(self) -> str:
        return f"{self.intent}: {' '.join(self)}" if self.intent else " ".join(self)


class WordReader:
    """Turns words into tokens for a model of this config.

    Of a word's pieces the first one says what it is; of a GPT, which sees nothing that comes later, the last one.
    """

    def __init__(self, tokenizer: Tokenizer, config: AnyConfig):
        """UserError where the model has no room for words, or its vocabulary none."""
        self.tokenizer, self.vocab_size = tokenizer, config.vocab_size
        self.by_last = pooling_of(config) == "last"
        try:
            self.begin, self.end = surroundings(tokenizer)
        except ValueError as error:  # a vocabulary of symbols
            raise UserError(f"this model does not read words: {error}") from None
        self.room = min(config.max_seq_len, tokenizer.limit) - len(self.begin) - len(self.end)
        if self.room < 2:
            raise UserError(f"max_seq_len={config.max_seq_len} of the model leaves no room for words")

    def pieces(self, words: Words) -> Pieces:
        """The tokens of all words as of one text, and of each token which word it is of. UserError where the vocabulary
        is not the model's, or lacks a letter."""
        try:
            tokens, spans = self.tokenizer.parse(" ".join(words), control=False)
        except ValueError as error:
            raise UserError(f"this model does not read such words: {error}") from None
        if (largest := max(tokens, default=0)) >= self.vocab_size:
            raise UserError(
                f"the vocabulary gives a text the token {largest}, but the model only has {self.vocab_size}: "
                "they do not belong together"
            )
        starts = np.cumsum([-1, *(len(word) + 1 for word in words[:-1])])  # each with the blank before it
        last_letters = np.array([max(end - 1, 0) for _, end in spans], dtype=np.int64)
        return tokens, np.searchsorted(starts, last_letters, side="right") - 1

    def windows(self, words: Words, vary: Vary | None = None) -> list[Window]:
        """Each word is decided in the one window where it sees most on both sides. One without pieces, of letters that
        the tokenizer leaves out, is in none. `vary` may change what `pieces` gives."""
        tokens, word_of = vary(*self.pieces(words)) if vary else self.pieces(words)
        is_edge = np.diff(word_of, append=-1) != 0 if self.by_last else np.diff(word_of, prepend=-1) != 0
        edges = np.flatnonzero(is_edge)  # the piece of each word that says what it is
        found = []
        for start, stop, first, last in cut(len(tokens), self.room):
            here = edges[(edges >= first) & (edges < last)]
            read = [*self.begin, *tokens[start:stop], *self.end]
            if read:
                around = len(self.begin), len(self.end)
                of_tokens = np.pad(word_of[start:stop], around, constant_values=-1)
                found.append(Window(read, word_of[here], here - start + len(self.begin), of_tokens))
        return found


def surroundings(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The control tokens that the model was trained to see before and behind a text."""
    whole, inner = tokenizer.wrap("a")[0], tokenizer.encode("a")
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]


def cut(size: int, room: int) -> list[tuple[int, int, int, int]]:
    """`size` tokens in windows of at most `room`: (start, stop, first, last), those from `first` to before `last` being
    nowhere further from an end of a window; ends of the whole do not count. Neighbours share half of their tokens."""
    if size <= room:
        return [(0, size, 0, size)]
    count = -(-(size - room) // max(1, room // 2)) + 1
    starts = [(size - room) * i // (count - 1) for i in range(count)]
    middles = [(before + room + after) // 2 for before, after in pairwise(starts)]
    return list(zip(starts, [start + room for start in starts], [0, *middles], [*middles, size], strict=True))


@torch.inference_mode()
def read_windows(model: TokenClassifier, windows: Sequence[Window]) -> list[tuple[Tensor, Tensor | None]]:
    """Of each window the logits of its words' tags (n, K) and, where there are any, those of the classes of the whole
    (K'), float64. Leaves the model in the mode it found. UserError if what it says is not finite."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found: list[tuple[Tensor, Tensor | None]] = [None] * len(windows)
    for indices in by_length([len(window.tokens) for window in windows], BATCH_TOKENS):
        batch = pack([Document(windows[i].tokens, label=0) for i in indices]).to(device)
        of_tokens, of_sequences = (
            x if x is None else x.double().cpu() for x in model.both(batch.tokens, batch.packing, None)
        )
        start = 0
        for row, i in enumerate(indices):
            found[i] = of_tokens[start + windows[i].at], None if of_sequences is None else of_sequences[row]
            start += len(windows[i].tokens)
    model.train(was_training)
    if not all(x is None or x.isfinite().all() for each in found for x in each):
        raise UserError(NOT_FINITE)
    return found


def read_words(
    model: TokenClassifier, tokenizer: Tokenizer, sentences: Sequence[Words]
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """log p of the tags of every word, (n, K) for each sentence, and of the classes of each whole, (sentences, K'), as
    all its windows have it on average; float64. A word without pieces has the same for all tags. See `read_windows`."""
    reader = WordReader(tokenizer, model.config)
    windows = [(i, window) for i, words in enumerate(sentences) for window in reader.windows(words)]
    scores = [np.full((len(words), len(model.classes)), -np.log(len(model.classes))) for words in sentences]
    whole = np.zeros((len(sentences), len(model.sequence_classes)))
    said = read_windows(model, [window for _, window in windows])
    for (i, window), (of_words, of_whole) in zip(windows, said, strict=True):
        scores[i][window.words] = of_words.log_softmax(dim=-1).numpy()
        if of_whole is not None:
            whole[i] += of_whole.softmax(dim=-1).numpy()
    total = np.maximum(whole.sum(axis=1, keepdims=True), 1)
    return scores, np.log(np.maximum(whole / total, 1e-300)) if model.sequence_classes else None


def tagged(model: TokenClassifier, tokenizer: Tokenizer, sentences: Sequence[Sequence[str]]) -> list[Tagged]:
    """The likeliest tags of every sentence, of those sequences that mark entities rightly, and its likeliest intent."""
    scores, whole = read_words(model, tokenizer, sentences)
    grammar, found = Grammar(model.classes), []
    for i, rows in enumerate(scores):
        best = grammar.best(rows)
        probabilities = np.exp(rows[np.arange(len(rows)), best]).tolist()
        intent = probability = None
        if whole is not None:
            intent, probability = model.sequence_classes[whole[i].argmax()], float(np.exp(whole[i].max()))
        found.append(Tagged([model.classes[k] for k in best], probabilities, intent, probability))
    return found

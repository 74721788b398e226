"""Pre-training of models that read both ways: fill in the words of a text that were masked (BERT, arXiv:1810.04805).

Of the tokens of a window some are chosen anew in every epoch. Most of them become a mask, some another token or stay as
they are, so that the model cannot know which of the words before it are right.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from minillm import cli
from minillm.batching import IGNORE, Document
from minillm.errors import UserError
from minillm.heads import MaskedLM
from minillm.metrics import Interval, nats_per_token, perplexity
from minillm.modernbert import ModernBERTConfig
from minillm.published.subwords import learn_vocabulary
from minillm.tasks import lm
from minillm.tasks.base import Shape
from minillm.tasks.lm import LanguageModelling, Scored, Window
from minillm.tokenizer import Tokenizer

MASKED = 0.15  # share of the tokens that are to be filled in, unless told otherwise
AS_MASK, AS_ANOTHER = 0.8, 0.1  # of those; the rest stay as they are
VOCABULARY = 8000


@dataclass(frozen=True)
class Options(lm.Options):
    masked: float | None = cli.option(None, f"share of the tokens that are to be filled in (default: {MASKED})")


class MaskedLanguageModelling(LanguageModelling):
    name = "mlm"
    head = "mlm"
    Options = Options

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        self.share = MASKED if options.masked is None else options.masked
        if not 0 < self.share < 1:
            raise UserError(f"--masked {self.share} must be a share of the tokens, above 0 and below 1")

    def tokenizer(self) -> Tokenizer:
        return learn_vocabulary([passage.text for passage in self.splits.train], VOCABULARY)

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        both = {"optimizer": "adamw", "batch_tokens": 4096, "warmup": 0.06}
        if model and model.transform_is_trained:
            return {**both, "lr": 5e-5, "embedding_lr": 5e-5, "epochs": 3}
        if model:  # a head from nothing learns faster than what is under it
            return {**both, "optimizer": "adamw-head", "lr": 5e-5, "embedding_lr": 1e-3, "epochs": 3}
        shape = {"layers": 4, "width": 128, "heads": 4, "dropout": 0.0}
        return {**both, **shape, "optimizer": "muon", "lr": 0.006, "embedding_lr": 0.006, "minutes": 3.0}

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> MaskedLM:
        sizes = {"num_layers": shape.layers, "width": shape.width, "num_heads": shape.heads}
        return MaskedLM(ModernBERTConfig(tokenizer.vocab_size, self.asked or lm.CONTEXT, **sizes))

    def adapt(self, model: MaskedLM, tokenizer: Tokenizer) -> None:
        """The tokens around a text are a part of what is read. UserError for a vocabulary without a mask."""
        if tokenizer.mask is None:
            raise UserError("the vocabulary of this model names no mask")
        self.before, self.behind = surroundings(tokenizer)
        self.mask, self.vocab_size = tokenizer.mask, tokenizer.vocab_size
        super().adapt(model, tokenizer)

    def window_size(self) -> int:
        return self.context - len(self.before) - len(self.behind)

    def ids(self, passage: lm.Passage, tokenizer: Tokenizer) -> np.ndarray:
        """Windows predict all but the first token of a text: here that is one which is never read."""
        return np.array([self.mask, *tokenizer.encode(passage.text)], dtype=np.int32)

    def documents(self, example: Window, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        return [self.document(example.drawn(rng, self.window_size()), rng)]

    def document(self, window: Window, rng: np.random.Generator) -> Document:
        """The window with some tokens masked, one of them at least."""
        ids = window.text[window.first : window.stop].astype(np.int64)
        chosen = rng.random(len(ids)) < self.share
        chosen[rng.integers(len(ids))] |= not chosen.any()
        how = rng.random(len(ids))
        read = np.where(chosen & (how < AS_MASK), self.mask, ids)
        another = chosen & (how >= AS_MASK) & (how < AS_MASK + AS_ANOTHER)
        read[another] = rng.integers(self.vocab_size, size=int(another.sum()))
        ignored = [IGNORE] * len(self.before), [IGNORE] * len(self.behind)
        targets = [*ignored[0], *np.where(chosen, ids, IGNORE).tolist(), *ignored[1]]
        return Document([*self.before, *read.tolist(), *self.behind], targets)

    def held_out(self, window: Window) -> Document:
        """What it masks depends on the window alone."""
        return self.document(window, np.random.default_rng((window.first, len(window.text))))

    def measure(self, examples: Sequence[Window], answers: Sequence[Scored]) -> dict[str, Interval]:
        """Nats a masked token, and perplexity, which is their exponential."""
        nats, tokens = [answer.nats for answer in answers], [answer.tokens for answer in answers]
        return {"nats": nats_per_token(nats, tokens), "perplexity": perplexity(nats, tokens)}

    def baselines(self, examples: Sequence[Window]) -> dict[str, Interval]:
        return {}  # n-grams see one side only

    def next_command(self, folder: Path) -> str:
        return f'python -m minillm fill {shlex.quote(str(folder))} "a text with a [MASK]"'


def surroundings(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens before and behind a text."""
    whole, text = tokenizer.wrap("a")[0], tokenizer.encode("a")
    at = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    return whole[:at], whole[at + len(text) :]

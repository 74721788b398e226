"""What a masked language model would write in place of the words of a text: --augment mask.

Every word of a text is masked once, together with each seventh word of it, which is about as many as such models have
learned to fill in at once. What the model finds likeliest there are its proposals, but for the word itself. They are
found once; which words are replaced, and by what, is drawn anew in every epoch (Wu et al. 2019, arXiv:1812.06705).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minillm.batching import Document, by_length, pack
from minillm.errors import NOT_FINITE, UserError
from minillm.evaluate import BATCH_TOKENS
from minillm.files import digest
from minillm.heads import MaskedLM
from minillm.published.checkpoint import open_checkpoint, resolve
from minillm.published.vocabularies import load_tokenizer
from minillm.published.weights import weight_files
from minillm.tokenizer import Tokenizer, read_texts
from minillm.variation import AUGMENTED

APART = 7  # words from one that is masked to the next
CANDIDATES, PROPOSED = 20, 5  # likeliest tokens that are looked at, and how many of them are kept
WORD = re.compile(r"(\W*)(\w[\w'’-]*)(\W*)")  # with what stands around it, which stays

Words = list[list[str]]  # proposals for each word of a text, the likeliest first; none where it stays as it is


class Proposals:
    """Of a model for some texts."""

    def __init__(self, model: MaskedLM, tokenizer: Tokenizer, texts: Iterable[str]):
        """UserError for a vocabulary without a mask, or one that is not the model's."""
        if tokenizer.mask is None:
            raise UserError("the vocabulary of --augment-model names no mask")
        self.of_text: dict[str, Words] = {text: [[] for _ in text.split()] for text in texts}
        name = next(name for name, i in tokenizer.control.items() if i == tokenizer.mask)
        asked = [(text, words) for text in self.of_text for words in masked_together(text)]
        texts_to_read = [(masked(text, words, name),) for text, words in asked]
        read = read_texts(tokenizer, texts_to_read, model.config.vocab_size, model.max_seq_len, control=True)
        for i, found in likeliest(model, [ids for ids, _ in read], tokenizer.mask):
            text, words = asked[i]
            for word, tokens in zip(words, found.tolist(), strict=False):  # what was cut has none
                self.of_text[text][word] = fitting(tokens, tokenizer, text.split()[word])

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """A share of the words has become one of those that were proposed for it, each of them as often as others."""
        words, chances = text.split(), rng.random(len(text.split()))
        for i in np.flatnonzero(chances < AUGMENTED):
            if proposed := self.of_text[text][i]:
                before, _, behind = WORD.fullmatch(words[i]).groups()
                words[i] = before + proposed[rng.integers(len(proposed))] + behind
        return " ".join(words)


def masked_together(text: str) -> Iterator[list[int]]:
    """Which words, of those that can be, are masked at once."""
    words = [i for i, word in enumerate(text.split()) if WORD.fullmatch(word)]
    return (words[first::APART] for first in range(min(APART, len(words))))


def masked(text: str, which: Sequence[int], mask: str) -> str:
    words = text.split()
    for i in which:
        words[i] = WORD.sub(rf"\g<1>{mask}\g<3>", words[i])
    return " ".join(words)


@torch.inference_mode()
def likeliest(model: MaskedLM, read: Sequence[Sequence[int]], mask: int) -> Iterator[tuple[int, Tensor]]:
    """Of each text that was read, by its number, the likeliest tokens for every mask, (masks, CANDIDATES)."""
    device = model.output.weight.device
    for indices in by_length([len(ids) for ids in read], BATCH_TOKENS):
        batch = pack([Document(read[i], label=0) for i in indices]).to(device)
        at = (batch.tokens == mask).nonzero()[:, 0]
        logits = model.logits(model(batch.tokens, batch.packing, at=at)).float()
        if not logits.isfinite().all():
            raise UserError(f"--augment-model: {NOT_FINITE}")
        found = logits.topk(min(CANDIDATES, logits.shape[-1])).indices.cpu()
        counts = [sum(token == mask for token in read[i]) for i in indices]
        yield from zip(map(int, indices), found.split(counts), strict=True)


def fitting(tokens: Sequence[int], tokenizer: Tokenizer, word: str) -> list[str]:
    """Those that are whole words, and another one."""
    control = set(tokenizer.control.values())
    names = (tokenizer.decode([token]).strip() for token in tokens if token not in control)
    own = WORD.fullmatch(word)[2].lower()
    return [name for name in names if re.fullmatch(r"\w[\w'’-]*", name) and name.lower() != own][:PROPOSED]


def proposals(name: Path, texts: Iterable[str]) -> Proposals:
    """Of the model that --augment-model names. UserError where that is none that fills in words."""
    saved = open_checkpoint(resolve(name))
    if saved.head_name != "mlm":
        raise UserError(f"--augment-model {name} has no head that predicts masked words; a …ForMaskedLM has one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Proposals(saved.load("mlm").to(device), load_tokenizer(saved.path), texts)


def digest_of(name: Path) -> str:
    """Of the weights, so that a training goes on with the same proposals."""
    return digest(path.read_bytes() for path in weight_files(resolve(name)))

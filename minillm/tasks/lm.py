"""Pre-training: go on with text. What is learned is every next token of files, from scratch or on top of a model.

A text file is one text; of a file of records each is one, with the end token behind it. A model reads a window at a
time. In training, windows begin anywhere, drawn anew in every epoch; held-out texts are read in windows that overlap by
half, so that each token but the first ones is predicted from at least half a window.
"""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from torch import nn

from minillm import cli, evaluate, records
from minillm.baselines import NGrams
from minillm.batching import IGNORE, Document
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.metrics import Interval, bits_per_character, nats_per_token, perplexity
from minillm.report import SAMPLES, cells, evenly_spaced, shortened
from minillm.tasks import files
from minillm.tasks.base import Shape, Splits, Task
from minillm.tasks.files import Fields
from minillm.tokenizer import SymbolTokenizer, Tokenizer
from minillm.wording import counted

ORDER = 5  # of the n-grams that stand beside the result
MOST_COUNTED = 3_000_000  # tokens
CONTEXT = 256  # tokens of a window, unless told otherwise or the model reads fewer


@dataclass(frozen=True)
class Options(files.Options):
    context: int | None = cli.option(None, f"tokens that are read at once (default: {CONTEXT}, or what the model can)")


@dataclass(frozen=True)
class Passage:
    """A text as it stands in a file."""

    text: str
    is_whole: bool  # a record, which ends where it ends; a file of text may go on


class Window(NamedTuple):
    """A part of a text, which `LanguageModelling.adapt` makes of a passage."""

    text: np.ndarray  # (n,) ids of the whole of it
    start: int  # the first token that is read
    first: int  # the first one that is predicted
    stop: int  # behind the last one
    characters: float  # of the text, a token

    @property
    def document(self) -> Document:
        ids = self.text[self.start : self.stop].tolist()
        known = self.first - self.start
        return Document(ids[:-1], [*[IGNORE] * (known - 1), *ids[known:]])

    def surprise(self, probability: Callable[[Sequence[int], int], float]) -> float:
        """Σ −log p of what is predicted, by a function of the tokens before and the token."""
        text = self.text[max(0, self.first - ORDER) : self.stop].tolist()
        begin = len(text) - (self.stop - self.first)
        return -sum(math.log(probability(text[max(0, i - ORDER + 1) : i], text[i])) for i in range(begin, len(text)))

    def drawn(self, rng: np.random.Generator, size: int) -> "Window":
        """A window of so many targets that begins up to half of it earlier or later; it predicts all it reads."""
        last = max(0, len(self.text) - size - 1)
        start = min(max(0, self.start + int(rng.integers(-(size // 2), size - size // 2))), last)
        return self._replace(start=start, first=start + 1, stop=min(start + size + 1, len(self.text)))


class Scored(NamedTuple):
    """What a model makes of a window."""

    nats: float  # Σ −log p
    tokens: int  # over so many


class LanguageModelling(Task):
    name = "lm"
    headline = "nats"
    lower_is_better = True
    head = "lm"
    is_redrawn = True
    Options = Options
    classes = None

    def __init__(self, options: Options, seed: int):
        if options.context is not None and options.context < 2:
            raise UserError(f"--context {options.context} must be at least 2")
        self.asked = options.context
        self.splits, self.notes = load(options)

    def identity(self, example: Passage) -> str:
        return example.text

    def tokenizer(self) -> Tokenizer:
        passages = (passage for split in vars(self.splits).values() for passage in split)
        return SymbolTokenizer("characters", r"[\s\S]", sorted(set().union(*(passage.text for passage in passages))))

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        if model:
            lr = 3e-4 * min(1.0, 128 / model.config.width)
            rates = {"optimizer": "adamw", "lr": lr, "embedding_lr": lr, "warmup": 0.05}
            return {**rates, "batch_tokens": 4096, "epochs": 1}
        rates = {"optimizer": "muon", "lr": 0.006, "embedding_lr": 0.01, "warmup": 0.02, "dropout": 0.0}
        shape = {"layers": 4, "width": 128, "heads": 4}
        return {**rates, **shape, "batch_tokens": 4096, "minutes": 3.0}

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> GPT:
        sizes = {"num_layers": shape.layers, "width": shape.width, "num_heads": shape.heads, "dropout": shape.dropout}
        return GPT(GPTConfig(tokenizer.vocab_size, self.asked or CONTEXT, mlp="gelu-erf", **sizes))

    def adapt(self, model: GPT, tokenizer: Tokenizer) -> None:
        """Cuts the texts into windows that this model reads."""
        most = model.config.max_seq_len
        if self.asked and self.asked > most:
            raise UserError(f"--context {self.asked} is more than the {counted(most, 'token')} that the model reads")
        self.context, self.decode = self.asked or min(CONTEXT, most), tokenizer.decode
        # In training, one begins where the one before ends, give or take what is drawn; held out, at half of it.
        size = self.window_size()
        self.splits = Splits(
            self.windows(self.splits.train, tokenizer, size, step=size),
            *(self.windows(split, tokenizer, size, step=size // 2) for split in (self.splits.dev, self.splits.test)),
        )

    def window_size(self) -> int:
        """Tokens of a text that are read at once."""
        return self.context

    def windows(self, passages: Sequence[Passage], tokenizer: Tokenizer, size: int, step: int) -> list[Window]:
        found = [
            window
            for passage in passages
            for window in cut(self.ids(passage, tokenizer), len(passage.text), size, step)
        ]
        if passages and not found:
            raise UserError("the texts are too short: not one of them has two tokens")
        return found

    def ids(self, passage: Passage, tokenizer: Tokenizer) -> np.ndarray:
        """As models are pre-trained: a text begins with the token for it, if there is one, and a record ends with the
        end token. UserError."""
        try:
            ids = tokenizer.encode(passage.text)
        except ValueError as error:  # of a vocabulary of symbols
            raise UserError(f"this model does not know what --task lm is to read: {error}") from None
        begin = [] if tokenizer.begin is None else [tokenizer.begin]
        return np.array([*begin, *ids, *([tokenizer.end] if passage.is_whole else [])], dtype=np.int32)

    def documents(self, example: Window, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        return [example.drawn(rng, self.window_size()).document]

    def answer(self, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Window]) -> list[Scored]:
        documents = list(map(self.held_out, examples))
        counts = [sum(target != IGNORE for target in document.targets) for document in documents]
        return list(map(Scored, evaluate.nats(model, documents), counts))

    def held_out(self, window: Window) -> Document:
        return window.document

    def measure(self, examples: Sequence[Window], answers: Sequence[Scored]) -> dict[str, Interval]:
        """Nats a token, perplexity, which is their exponential, and bits a character."""
        nats, tokens = [answer.nats for answer in answers], [answer.tokens for answer in answers]
        characters = [answer.tokens * example.characters for example, answer in zip(examples, answers, strict=True)]
        return {
            "nats": nats_per_token(nats, tokens),
            "perplexity": perplexity(nats, tokens),
            "bits_per_character": bits_per_character(nats, characters),
        }

    def record(self, example: Window, answer: Scored) -> dict[str, Any]:
        return {"text": self.decode(example.text[example.first : example.stop]), **answer._asdict()}

    def baselines(self, examples: Sequence[Window]) -> dict[str, Interval]:
        """What counting n-grams of the training texts foresees, where those are not too many to count in seconds."""
        texts = list({id(window.text): window.text for window in self.splits.train}.values())
        if not texts or sum(map(len, texts)) > MOST_COUNTED:
            return {}
        counted = NGrams([text.tolist() for text in texts], ORDER)
        nats = [window.surprise(counted.probability) for window in examples]
        return {"n_grams": nats_per_token(nats, [window.stop - window.first for window in examples])}

    def remarks(self, measured: dict[str, Interval]) -> list[str]:
        if "n_grams" in measured and measured["nats"].value > measured["n_grams"].value:
            return [f"counting sequences of {ORDER} tokens foresees more: give it more --minutes, or --init"]
        return []

    def table(self, examples: Sequence[Window], answers: Sequence[Scored]) -> Table:
        """Where it was surest, and where least."""
        table = Table("nats", "text", title="held-out text, from the best foreseen to the worst", title_justify="left")
        means = [answer.nats / answer.tokens for answer in answers]
        for i in evenly_spaced(np.argsort(means), SAMPLES):
            window = examples[i]
            table.add_row(*cells(f"{means[i]:.2f}", shortened(self.decode(window.text[window.first : window.stop]))))
        return table

    def details(self, examples: Sequence[Window], answers: Sequence[Scored]) -> dict[str, Any]:
        return {"tokens": sum(answer.tokens for answer in answers)}

    def next_command(self, folder: Path) -> str:
        return f'python -m minillm generate {shlex.quote(str(folder))} --prompt "how a text begins"'


def cut(ids: np.ndarray, characters: int, context: int, step: int) -> Iterator[Window]:
    """Windows of at most context + 1 tokens, the last of them only predicted. Each token but the first is predicted by
    one of them, after as many others as the step leaves."""
    each = characters / max(1, len(ids) - 1)
    first = 1
    while first < len(ids):
        start = max(0, first - 1 - (context - step))
        stop = min(start + context + 1, len(ids))
        yield Window(ids, start, first, stop, each)
        first = stop


def load(options: Options) -> tuple[Splits, list[str]]:
    """Splits of passages, and notes for a person. UserError."""
    if options.labels is not None:
        raise UserError(f"--labels {options.labels} hides answers, but text has none; leave it out")
    fields = Fields(options.fields, ("text",))
    if options.train and options.dev is None and is_plain(options.train):
        return divided(options)
    return files.load(options, "lm", lambda path, _: read(path, fields), lambda passage: passage.text)


def divided(options: Options) -> tuple[Splits, list[str]]:
    """Of one text the end is held out."""
    (passage,) = read(options.train, Fields(None, ("text",)))
    at = round((1 - files.HELD_OUT) * len(passage.text))
    train, dev = Passage(passage.text[:at], False), Passage(passage.text[at:], False)
    test = read(options.test, Fields(options.fields, ("text",))) if options.test else []
    return Splits([train], [dev], test), [f"--dev is not given: the last {files.HELD_OUT:.0%} of --train are held out"]


def is_plain(path: Path) -> bool:
    return records.extension(path) not in records.READERS


def read(path: Path, fields: Fields) -> list[Passage]:
    if is_plain(path):
        if not (text := "".join(records.lines_of(path)).replace("\r\n", "\n")).strip():
            raise UserError(f"{path} holds no text")
        return [Passage(text, is_whole=False)]
    return [Passage(fields.text(record, "text"), is_whole=True) for record in records.read(path)]

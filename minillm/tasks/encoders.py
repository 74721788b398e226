"""Models that read, from scratch: classifiers, taggers, judges of answers. What they are, and what suits them."""

import math
from dataclasses import dataclass

from torch import nn

from minillm import cli
from minillm.bert import BERTConfig
from minillm.errors import UserError
from minillm.gpt import GPTConfig
from minillm.heads import AnyConfig
from minillm.layers import dropout_everywhere
from minillm.modernbert import ModernBERTConfig
from minillm.tasks import files
from minillm.tasks.base import Shape
from minillm.tokenizer import Tokenizer

KINDS = {
    "modernbert": (ModernBERTConfig, {"pooling": "mean"}),
    "bert": (BERTConfig, {}),
    "gpt": (GPTConfig, {"positions": "learned", "bias": True}),
}  # the mean over a text learns most from few texts
LONGEST = 512  # tokens of a text that they read
VOCABULARY = 8000  # words, or pieces of them, learned from the training texts
WIDTH = 128
SHAPE = {"layers": 2, "width": WIDTH, "heads": 4, "dropout": 0.3}
FROM_NOTHING = {"optimizer": "muon", "lr": 5e-3, "embedding_lr": 1e-3}  # AdamW learns neither order nor pairs of texts


@dataclass(frozen=True)
class Options(files.Options):
    model: str | None = cli.option(None, "what a model from scratch is (default: modernbert)", choices=tuple(KINDS))


def new_config(kind: str | None, vocab_size: int, shape: Shape, longest: int | None = None) -> AnyConfig:
    """Of the kind that --model names, for texts of LONGEST tokens or as many as are given. ValueError for a shape that
    cannot be."""
    config, details = KINDS[kind or next(iter(KINDS))]
    sizes = {"num_layers": shape.layers, "width": shape.width, "num_heads": shape.heads}
    return config(vocab_size, longest or LONGEST, **sizes, **details, **dropout_everywhere(config, shape.dropout))


def without_segments(tokenizer: Tokenizer, kind: str | None) -> None:
    """Transformers would hand a GPT-2 those of a tokenizer that knows them, and that would add them."""
    if kind == "gpt":
        tokenizer.config = {**tokenizer.config, "model_input_names": ["input_ids", "attention_mask"]}


def refuse_beside_init(kind: str | None, model: nn.Module | None) -> None:
    """UserError for --model beside the model of --init."""
    if model and kind:
        raise UserError(f"--model {kind} is for a model from scratch, but --init brings its own; leave one out")


def epochs(usual: float, examples: int, batch: int, least: int, most: float = math.inf) -> float:
    """As usual, but not fewer steps of `batch` examples than `least` nor more than `most`."""
    per_step = batch / examples
    return min(max(usual, least * per_step), most * per_step)

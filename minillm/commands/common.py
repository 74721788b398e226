"""What the commands share: which model, which texts, how to sample."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minillm import cli
from minillm.commands.text_generation import TextGenerator
from minillm.device import PRECISIONS, place
from minillm.errors import UserError
from minillm.evaluate import Texts
from minillm.files import read_text
from minillm.generate import Sampling
from minillm.heads import Head
from minillm.published.checkpoint import Checkpoint, load_ready, open_checkpoint, resolve
from minillm.published.vocabularies import load_tokenizer
from minillm.quantized import FORMS
from minillm.report import without_control_characters
from minillm.tokenizer import Tokenizer, read_texts
from minillm.wording import counted

QUANTIZE = "of the weights: less memory; int4 for files of four bits, such as Q4_1: other weights lose much by it"
MODEL = "folder in Hugging Face's layout, run of train_sft.py or train_rl.py, id on the hub, or .gguf file"
NEEDS = {  # what a command looks for, by the name of the head
    "lm": "a GPT with the head that predicts the next token (…ForCausalLM)",
    "mlm": "a BERT with the head that predicts masked words (…ForMaskedLM)",
    "classify": "a classifier (…ForSequenceClassification, or a run of train_sft.py --task classify)",
    "tag": "a tagger (…ForTokenClassification, or a run of train_sft.py --task tag)",
    "score": "a model with one output (…ForSequenceClassification, or a run of train_sft.py --task preference)",
    "embed": "a BERT",
}


def open_model(name: str, head: str, command: str) -> Checkpoint:
    """UserError, which says what else the model is good for, if it has no such head."""
    saved = open_checkpoint(resolve(name))
    own = saved.head_name
    has = {own} | ({"embed"} if "embed" in saved.family.heads else set())
    has |= {"score"} if own == "classify" and saved.has_one_output else set()
    has |= {"classify"} if own == "multi" else set()
    if head in has:
        return saved
    commands = {
        "lm": "generate, answer and chat",
        "mlm": "fill",
        "classify": "classify",
        "tag": "tag",
        "embed": "embed",
    }
    commands |= {"score": "score"}
    others = " and ".join(commands[each] for each in sorted(has) if each in commands)
    what = saved.architecture or saved.family.heads[own].architecture
    raise UserError(f"{name} is a {what}, but {command} needs {NEEDS[head]}; for this one there is {others or 'none'}")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of the commands that write."""

    temperature: float = cli.option(0.7, "0 takes the likeliest token each time, 1 draws from the model as it is")
    top_k: int = cli.option(0, "draw from so many likeliest tokens only; 0: from all")
    top_p: float = cli.option(0.95, "draw from the likeliest tokens only that together reach this probability")
    min_p: float = cli.option(0.0, "draw from tokens only that have this share of the likeliest one's probability")
    repetition_penalty: float = cli.option(1.0, "above 1: tokens seen before are less likely to come again")
    stop: tuple[str, ...] = cli.option((), "end the answer before this text; may be given several times")
    seed: int = cli.option(0, "the same seed, options and threads: the same answer")
    precision: str = cli.option("auto", "of weights and activations", choices=PRECISIONS)
    quantize: str | None = cli.option(None, QUANTIZE, choices=FORMS)

    def sampling(self) -> Sampling:
        """How to draw. UserError for options that make no sense whatever the model is."""
        cli.require_seed(self)
        cli.require_positive(self, "max_new_tokens")
        refuse_float32(self.quantize, self.precision)
        if not all(self.stop):
            raise UserError("--stop '' would end every answer before it begins")
        try:
            return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        except ValueError as error:
            raise UserError(f"--{str(error).replace('_', '-').replace('=', ' ', 1)}") from None

    def load(self, name: str, command: str) -> tuple[TextGenerator, torch.Generator]:
        """The model, and the random numbers that it draws with."""
        saved = open_model(name, "lm", command)
        placement = place(self.precision)
        model = load_ready(saved, placement.dtype, self.quantize, placement.device)
        rng = torch.Generator(placement.device).manual_seed(self.seed)
        return TextGenerator(model, load_tokenizer(saved.path)), rng


def refuse_float32(quantize: str | None, precision: str) -> None:
    """UserError for --precision fp32 beside --quantize."""
    if quantize and precision == "fp32":
        raise UserError(f"--quantize {quantize} computes in bfloat16: leave --precision fp32 out")


def load_reader(saved: Checkpoint, head: str, precision: str) -> tuple[Head, Tokenizer]:
    placement = place(precision)
    model = saved.load(head, dtype=placement.dtype).to(placement.device)
    tokenizer = load_tokenizer(saved.path)
    return model, tokenizer


def note_what_is_cut(model: Head, tokenizer: Tokenizer, texts: Sequence[Texts]) -> None:
    """`read` keeps of a text what the model reads; whoever asks should know."""
    limit = min(model.max_seq_len, tokenizer.limit)
    if number := sum(len(ids) > limit for ids, _ in read_texts(tokenizer, texts, model.config.vocab_size)):
        long = f"{number:,} of {counted(len(texts), 'text')} {'has' if number == 1 else 'have'}"
        note(f"{long} more than the {limit} tokens this model reads; what is beyond is cut")


def texts_of(given: Sequence[str], file: Path | None, name: str, may_be_empty: bool = False) -> list[str]:
    """The texts on the command line, then those of a file, one for each of its lines; `-` is the standard input.

    UserError if there is none, or an empty one on the command line that may not be. In a file a blank line is a text:
    what comes of the n-th line must be in the n-th place.
    """
    if not all(given) and not may_be_empty:
        raise UserError("there is an empty text: nothing can be made of it")
    content = read_file(file) if file else ""
    texts = [*given, *(content.removesuffix("\n").split("\n") if content else [])]
    if not texts:
        raise UserError(f"there is no text: give {name}, or --file FILE with a text a line")
    for text in texts:
        check_text(text)
    return texts


def complain(failed: Mapping[int, str]) -> None:
    """UserError if there are prompts, by their numbers, that for these reasons were not answered."""
    if failed:
        number, reason = next(iter(failed.items()))
        more = len(failed) - 1
        others = f"; {more} more {'was' if more == 1 else 'were'} not either" if more else ""
        raise UserError(f"prompt {number} was not answered: {reason}{others}")


def read_file(path: Path) -> str:
    if str(path) != "-":
        return read_text(path)
    if sys.stdin is None:
        raise UserError("there is no standard input to read")
    try:
        return sys.stdin.read().removeprefix("\ufeff")
    except ValueError as error:
        raise UserError(f"cannot read the standard input: {error}") from None


def check_text(text: str) -> None:
    """UserError for bytes on the command line that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!r} is no text: its bytes are not UTF-8") from None


def as_json(**fields: Any) -> str:
    """A line of JSON, in letters that the output can take."""
    is_unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    return json.dumps(fields, ensure_ascii=not is_unicode)


def print_text(text: str) -> None:
    """Prints what a model wrote; on a terminal without control characters, which could rewrite what stands there."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    print(without_control_characters(text) if on_terminal else text, end="", flush=True)


def note(text: Any) -> None:
    """For a person; not part of the output."""
    print(text, file=sys.stderr, flush=True)

"""Answers prompts as a model learned to: translations, summaries, solutions; the best answer that a search finds.

  python -m minillm answer runs/seq2seq-sft "A man sleeping in a green room on a couch."
  python -m minillm answer runs/seq2seq-sft --file sentences.txt --json      a prompt a line → a line of JSON each
  python -m minillm answer runs/seq2seq-sft "a prompt" --beams 1             greedily: the likeliest token each time
  python -m minillm answer MODEL "Who wrote Hamlet?"                         any GPT

A prompt is put into the words that the model's training put around it: those of --task seq2seq, else the chat template,
if there is one. To draw answers instead, or to go on with a text as it is, use `generate`.

Train one with: python train_sft.py --task seq2seq --train a.jsonl --dev b.jsonl
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm import cli
from minillm.beam import Beams
from minillm.commands.common import MODEL, QUANTIZE, as_json, complain, open_model, print_text, refuse_float32, texts_of
from minillm.commands.text_generation import TextGenerator
from minillm.device import PRECISIONS, place
from minillm.errors import UserError
from minillm.evaluate import complete
from minillm.published.checkpoint import load_ready
from minillm.published.vocabularies import load_tokenizer
from minillm.quantized import FORMS

BATCH = 256  # prompts after which their answers are printed
MOST_BEAMS = 1000


@dataclass(frozen=True, kw_only=True)
class Args:
    model: str = cli.argument(MODEL)
    prompt: tuple[str, ...] = cli.argument("a prompt", default=())
    file: Path | None = cli.option(None, "file with a prompt a line; - is the standard input")
    beams: int = cli.option(4, "beginnings of an answer that the search goes on from at each token; 1: greedy")
    length_penalty: float = cli.option(1.0, "0 takes the likeliest answer, often a short one; more prefers longer ones")
    max_new_tokens: int | None = cli.option(None, "most tokens of an answer (default: what fits, at most 256)")
    json: bool = cli.option(False, "print a line of JSON for each answer")
    precision: str = cli.option("auto", "of weights and activations", choices=PRECISIONS)
    quantize: str | None = cli.option(None, QUANTIZE, choices=FORMS)

    def search(self) -> Beams:
        """The settings of the search. UserError for options that make no sense whatever the model is."""
        cli.require_positive(self, "beams", "max_new_tokens")
        if self.beams > MOST_BEAMS:
            raise UserError(f"--beams {self.beams} is too many: {MOST_BEAMS} is the most, and few find more than 10 do")
        refuse_float32(self.quantize, self.precision)
        try:
            return Beams(self.beams, self.length_penalty)
        except ValueError as error:
            raise UserError(f"--{str(error).replace('_', '-').replace('=', ' ', 1)}") from None


def main(args: Args) -> None:
    beams = args.search()
    texts = texts_of(args.prompt, args.file, "PROMPT")
    saved, placement = open_model(args.model, "lm", "answer"), place(args.precision)
    model = load_ready(saved, placement.dtype, args.quantize, placement.device)
    writer = Writer(TextGenerator(model, load_tokenizer(saved.path)), beams, args.max_new_tokens)
    for start in range(0, len(texts), BATCH):
        for fields in writer.answers(texts[start : start + BATCH]):
            print_text(f"{as_json(**fields) if args.json else fields['text']}\n")
    complain(writer.failed)


class Writer:
    def __init__(self, text_generator: TextGenerator, beams: Beams, max_new_tokens: int | None):
        self.text_generator, self.tokenizer = text_generator, text_generator.tokenizer
        self.beams, self.max_new_tokens = beams, max_new_tokens
        self.asked = 0
        self.failed: dict[int, str] = {}  # prompts that were not answered, by number from 1, and why

    def answers(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Of each prompt its text, the answer's text and tokens, and what ended it; a blank one has an empty answer."""
        prompts = [self.prompt(text) for text in texts]
        found: list[list[int]] = [[] for _ in texts]
        rooms = [room for _, room in prompts]
        for room in {*rooms} - {0}:  # nearly always one
            rows = [i for i, each in enumerate(rooms) if each == room]
            asked = [prompts[i][0] for i in rows]
            answers = complete(self.text_generator.model, asked, room, self.tokenizer.stops, self.beams)
            for i, tokens in zip(rows, answers, strict=True):
                found[i] = tokens
        return [self.described(text, tokens) for text, tokens in zip(texts, found, strict=True)]

    def prompt(self, text: str) -> tuple[list[int], int]:
        """The tokens of a prompt and how many its answer may have, 0 for one that cannot be answered."""
        self.asked += 1
        try:
            ids = self.encode(text) if text else []
            return ids, self.text_generator.room(ids, self.max_new_tokens) if text else 0
        except UserError as error:
            self.failed[self.asked] = str(error)
            return [], 0

    def encode(self, text: str) -> list[int]:
        template = self.text_generator.template
        if template is None or "prompt_format" in self.tokenizer.config:
            return self.text_generator.encode(text)
        return template.prompt([{"role": "user", "content": text}])

    def described(self, text: str, tokens: list[int]) -> dict[str, Any]:
        ended_by = None if not tokens else "token" if tokens[-1] in self.tokenizer.stops else "length"
        return {"prompt": text, "text": self.tokenizer.decode(tokens), "tokens": tokens, "ended_by": ended_by}

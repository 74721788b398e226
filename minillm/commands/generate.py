"""Goes on with a text, as a GPT would.

  python -m minillm generate gpt2 --prompt "The meaning of life is"        from the hub
  python -m minillm generate model.gguf --prompt "Once upon a time" --temperature 0 --max-new-tokens 50
  python -m minillm generate runs/pronounce-sft --prompt "shakespeare:"
  python -m minillm generate model.gguf --chat --prompt "Who wrote Hamlet?"      in the model's own chat template
  cat story.txt | python -m minillm generate MODEL --prompt - --stop "The End"   a prompt of many lines
  python -m minillm generate MODEL --file prompts.txt --json                     a prompt a line, answered together

An empty prompt lets the model begin as its texts begin, where it has a token for that: --prompt ""

One prompt is answered while you watch; several are answered in batches, each as far as it fits. With --json every
answer is a line of JSON with its tokens and their log-probabilities under the very distribution that they were drawn
from.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minillm import cli
from minillm.commands.common import (
    MODEL,
    SamplingOptions,
    as_json,
    complain,
    note,
    print_text,
    read_file,
    texts_of,
)
from minillm.commands.conversation import Conversation
from minillm.commands.text_generation import TextGenerator
from minillm.errors import UserError
from minillm.generate import Sampling
from minillm.wording import counted

BATCH = 32  # prompts answered at once


@dataclass(frozen=True, kw_only=True)
class Args(SamplingOptions):
    model: str = cli.argument(MODEL)
    prompt: tuple[str, ...] = cli.option((), "text to go on with; may be given several times; - is the standard input")
    file: Path | None = cli.option(None, "file with a prompt a line; - is the standard input")
    max_new_tokens: int | None = cli.option(None, "most tokens of an answer (default: what fits, at most 256)")
    chat: bool = cli.option(False, "a prompt is a message: put it into the model's chat template")
    json: bool = cli.option(False, "print a line of JSON for each answer")


def main(args: Args) -> None:
    sampling = args.sampling()
    given = [read_file(Path("-")) if prompt == "-" else prompt for prompt in args.prompt]
    texts = texts_of(given, args.file, "--prompt TEXT", may_be_empty=True)
    text_generator, rng = args.load(args.model, "generate")
    started = time.monotonic()
    if len(texts) == 1 and not args.json:
        count, failed = stream(texts[0], text_generator, args, sampling, rng), {}
    else:
        count, failed = answer_all(texts, text_generator, args, sampling, rng)
    seconds = time.monotonic() - started
    note(
        f"{counted(count, 'token')} in {seconds:.2f} s, {count / seconds:.1f} tokens/s, the reading of prompts included"
    )
    complain(failed)


def encode(text: str, text_generator: TextGenerator, args: Args) -> list[int]:
    return Conversation(text_generator).ask(text, room=1)[0] if args.chat else text_generator.encode(text)


def stream(text: str, text_generator: TextGenerator, args: Args, sampling: Sampling, rng: torch.Generator) -> int:
    """Prints an answer as it comes → how many tokens it has."""
    prompt = encode(text, text_generator, args)
    room = text_generator.room(prompt, args.max_new_tokens)
    count = 0
    for count, (_, piece) in enumerate(text_generator.stream([prompt], room, args.stop, sampling, rng), 1):  # noqa: B007
        print_text(piece)
    print()
    return count


def answer_all(
    texts: Sequence[str], text_generator: TextGenerator, args: Args, sampling: Sampling, rng: torch.Generator
) -> tuple[int, dict[int, str]]:
    """Prints an answer for every text → how many tokens they have, and which texts could not be answered, and why.

    A blank line of a file has an empty answer: nothing was asked.
    """
    prompts: list[list[int]] = []
    rooms: list[int] = []
    failed: dict[int, str] = {}
    for number, text in enumerate(texts, 1):
        prompt, room = [], 0
        try:
            if text or number <= len(args.prompt):
                prompt = encode(text, text_generator, args)
                room = text_generator.room(prompt, args.max_new_tokens)
        except UserError as error:
            failed[number] = str(error)
        prompts.append(prompt)
        rooms.append(room)
    if len(failed) == len(texts):
        raise UserError(failed[1])
    count = 0
    for i in range(0, len(texts), BATCH):
        rows = slice(i, i + BATCH)
        answers = text_generator.answers(prompts[rows], rooms[rows], args.stop, sampling, rng)
        count += sum(len(answer.tokens) for answer in answers)
        for text, answer in zip(texts[rows], answers, strict=True):
            row = as_json(prompt=text, **vars(answer)) if args.json else f"> {text}\n{answer.text}\n"
            print_text(f"{row}\n")
    return count, failed

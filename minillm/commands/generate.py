"""Goes on with a text, as a GPT would.

  python -m minillm generate gpt2 --prompt "The meaning of life is"        from the hub
  python -m minillm generate model.gguf --prompt "Once upon a time" --temperature 0 --max-new-tokens 50
  python -m minillm generate runs/pronounce-sft --prompt "shakespeare:"
  python -m minillm generate model.gguf --chat --prompt "Who wrote Hamlet?"      in the model's own chat template
  cat story.txt | python -m minillm generate MODEL --prompt - --stop "The End"   a prompt of many lines
  python -m minillm generate MODEL --file prompts.txt --json                     a prompt a line, answered together

One prompt is answered while you watch; several are answered in batches. With --json every answer is a line of JSON
with its tokens and their log-probabilities under the very distribution that they were drawn from.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from minillm import cli
from minillm.commands.common import MODEL, SamplingOptions, as_json, note, print_text, read_file, texts_of
from minillm.commands.conversation import Conversation
from minillm.commands.text_generation import TextGenerator

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
    texts = texts_of(given, args.file, "--prompt TEXT")
    text_generator, rng = args.load(args.model, "generate")
    prompts = [prompt_of(text, text_generator, args.chat) for text in texts]
    room = text_generator.room(prompts, args.max_new_tokens)
    started, count = time.monotonic(), 0
    if len(prompts) == 1 and not args.json:
        for _, piece in text_generator.stream(prompts, room, args.stop, sampling, rng):
            print_text(piece)
            count += 1
        print()
    else:
        for i in range(0, len(prompts), BATCH):
            answers = text_generator.answers(prompts[i : i + BATCH], room, args.stop, sampling, rng)
            count += sum(len(answer.tokens) for answer in answers)
            for text, answer in zip(texts[i : i + BATCH], answers, strict=True):
                row = as_json(prompt=text, **vars(answer)) if args.json else f"> {text}\n{answer.text}\n"
                print_text(f"{row}\n")
    seconds = time.monotonic() - started
    note(f"{count} tokens in {seconds:.2f} s, {count / seconds:.1f} tokens/s, the reading of prompts included")


def prompt_of(text: str, text_generator: TextGenerator, is_chat: bool) -> list[int]:
    return Conversation(text_generator).ask(text, room=1)[0] if is_chat else text_generator.encode(text)

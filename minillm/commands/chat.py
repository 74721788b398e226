"""Talks with a model that was trained to converse, in its own chat template.

  python -m minillm chat model.gguf
  python -m minillm chat HuggingFaceTB/SmolLM2-360M-Instruct         from the hub
  python -m minillm chat MODEL --system "Answer in one sentence." --temperature 0

While you talk: Ctrl-C stops an answer, /reset forgets the conversation, /help lists what else there is, Ctrl-D ends.
Whatever else begins with / is a question. When the conversation outgrows what the model reads, the oldest questions are
forgotten, and you are told. Lines are edited, recalled and pasted as one with prompt_toolkit: pip install -e '.[chat]'
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minillm import cli
from minillm.commands.common import MODEL, SamplingOptions, check_text, note, print_text
from minillm.commands.conversation import Conversation
from minillm.commands.line_editor import line_editor
from minillm.commands.text_generation import Answer
from minillm.errors import UserError
from minillm.generate import Sampling

HELP = """/reset   forget the conversation
/help    this
/exit    end, as does Ctrl-D
Ctrl-C   stop the answer"""


@dataclass(frozen=True, kw_only=True)
class Args(SamplingOptions):
    model: str = cli.argument(MODEL)
    system: str | None = cli.option(None, "how the model is to behave: instructions before the conversation")
    max_new_tokens: int = cli.option(512, "most tokens of an answer")


def main(args: Args) -> None:
    sampling = args.sampling()
    text_generator, rng = args.load(args.model, "chat")
    conversation = Conversation(text_generator, args.system)
    note(f"{args.model}, {text_generator.max_seq_len:,} tokens in all; /help lists what there is besides talking")
    read = line_editor()
    while (line := next_line(read)) is not None:
        match line.strip():
            case "":
                continue
            case "/exit":
                return
            case "/help":
                note(HELP)
            case "/reset":
                conversation.reset()
                note("forgotten")
            case question:
                try:
                    check_text(question)
                    answer(conversation, question, args, sampling, rng)
                except UserError as error:
                    note(f"error: {error}")


def next_line(read: Callable[[], str]) -> str | None:
    """What is typed next; None at the end."""
    while True:
        try:
            return read()
        except EOFError:
            return None
        except KeyboardInterrupt:
            note("\n(Ctrl-D or /exit ends)")
        except UserError as error:
            note(f"error: {error}")


def answer(conversation: Conversation, question: str, args: Args, sampling: Sampling, rng: torch.Generator) -> None:
    """Prints the answer as it comes. Ctrl-C keeps what there is of it until then."""
    text_generator, limit = conversation.text_generator, conversation.text_generator.max_seq_len
    prompt, forgotten = conversation.ask(question, room=min(args.max_new_tokens, limit // 4))
    if forgotten:
        which = "oldest question is" if forgotten == 1 else f"{forgotten} oldest questions are"
        note(f"(the {which} forgotten: the model reads {limit:,} tokens)")
    room = min(args.max_new_tokens, limit - len(prompt) + 1)
    so_far = Answer()
    with cli.postponed_signals([signal.SIGINT]) as stop:
        cache = conversation.recall(prompt)
        for so_far, piece in text_generator.stream([prompt], room, args.stop, sampling, rng, cache):  # noqa: B007
            print_text(piece)
            if stop.is_set():
                note(" (stopped)")
                break
    print()
    conversation.answered(so_far)

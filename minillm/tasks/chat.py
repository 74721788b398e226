"""Conversations: what an assistant says in them, after all that was said before, in the checkpoint's own chat template.

One document is a whole conversation; every token of the assistant's has a target, the one that ends its turn too, and
nothing else has. A checkpoint without a template gets one, which is kept with the run's tokenizer.
"""

import json
import shlex
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from torch import nn

from minillm import cli, evaluate, records
from minillm.batching import IGNORE, Document
from minillm.errors import UserError
from minillm.gpt import GPT
from minillm.metrics import Interval, nats_per_token, perplexity, rate
from minillm.published.byte_pairs import learn_byte_pairs, require_subwords
from minillm.published.chat import ChatTemplate, Message
from minillm.records import Record
from minillm.report import SAMPLES, cells, evenly_spaced, shortened
from minillm.tasks import files, from_scratch
from minillm.tasks.base import Shape, Splits, Task, recipe_of_writers
from minillm.tasks.files import Fields
from minillm.tokenizer import Tokenizer
from minillm.wording import counted

CONTEXT = 2048  # tokens of a conversation, unless told otherwise or the model reads fewer
WRITTEN = 50  # held-out conversations in which the model says the last word itself
LONGEST = 256  # tokens of that
ROLES = ("system", "user", "assistant", "tool")
OTHERWISE = {"human": "user", "gpt": "assistant"}  # how some files call them, with `from` and `value`

# Of models that bring none. A turn begins with a role and ends with the token that ends texts in this vocabulary, so
# that no token must be learned anew. The marks say what is the assistant's, to transformers as well.
TEMPLATE = (
    "{BEGIN}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + {END} }}{% endgeneration %}"
    "{% else %}{{ message['content'] + {END} }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Options(files.Options):
    context: int | None = cli.option(None, f"most tokens of a conversation (default: {CONTEXT}, or what the model can)")


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]  # the last one is the assistant's
    place: str = field(repr=False)  # in which file, for a person
    document: Document | None = field(default=None, repr=False)  # once the vocabulary and the template are known

    @property
    def prompt(self) -> str:
        """What was said before the last word."""
        return self.messages[-2]["content"] if len(self.messages) > 1 else ""


class Reply(NamedTuple):
    """What a model makes of a conversation."""

    nats: float  # Σ −log p of what the assistant says in it
    tokens: int  # over so many
    text: str | None = None  # its own last word, greedily, where it was asked for
    is_whole: bool = False  # whether it ended that by itself


class Chat(Task):
    name = "chat"
    headline = "nats"
    lower_is_better = True
    head = "lm"
    is_redrawn = False
    looks_first = True
    Options = Options
    classes = None

    def __init__(self, options: Options, seed: int):
        if options.context is not None and options.context < 4:
            raise UserError(f"--context {options.context} must be at least 4")
        self.asked = options.context
        fields = Fields(options.fields, ("messages", "prompt", "answer"))
        self.splits, self.notes = files.load(options, "chat", lambda path, _: read(path, fields), self.identity)

    def identity(self, example: Conversation) -> str:
        """All that was said before the last word."""
        return json.dumps(example.messages[:-1])

    def training_texts(self) -> list[str]:
        return [message["content"] for talk in self.splits.train for message in talk.messages]

    def tokenizer(self) -> Tokenizer:
        return learn_byte_pairs(self.training_texts(), from_scratch.VOCABULARY, [f"<|{role}|>" for role in ROLES])

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> GPT:
        context = (self.asked or CONTEXT) + LONGEST  # so that it can answer the longest conversation
        return from_scratch.new_model(tokenizer.vocab_size, context, shape)

    def adapt(self, model: GPT, tokenizer: Tokenizer) -> None:
        """Takes the template, or gives one, and shortens the conversations to what fits."""
        require_subwords(tokenizer, self.name)
        most = model.config.max_seq_len
        if self.asked and self.asked > most:
            raise UserError(f"--context {self.asked} is more than the {counted(most, 'token')} that the model reads")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the vocabulary has {tokenizer.vocab_size} tokens, but the model knows {model.config.vocab_size}"
            )
        if not tokenizer.config.get("chat_template"):
            tokenizer.config = {**tokenizer.config, "chat_template": template_for(tokenizer)}
        self.template = ChatTemplate.of(tokenizer)
        self.limit = self.asked or min(CONTEXT, most)
        self.splits = Splits(*(self.fitted(split) for split in vars(self.splits).values()))

    def fitted(self, split: Sequence[Conversation]) -> list[Conversation]:
        """The conversations as documents: of one that is too long, the whole turns at its beginning that fit."""
        fitted = [self.fit(talk) for talk in split]
        kept = [talk for talk in fitted if talk]
        cut = sum(len(new.messages) < len(old.messages) for new, old in zip(fitted, split, strict=True) if new)
        which = f"{self.limit:,} tokens"
        if cut:
            longer = counted(cut, "conversation is", "conversations are")
            self.notes = [*self.notes, f"{longer} longer than {which}; the last turns are left out"]
        if out := len(split) - len(kept):
            left_out = counted(out, "conversation is", "conversations are")
            self.notes = [*self.notes, f"{left_out} left out: up to the first answer over {which}"]
        if split and not kept:
            raise UserError(f"no conversation has a first answer within {which}; raise --context")
        return kept

    def fit(self, talk: Conversation) -> Conversation | None:
        ends = [i for i, message in enumerate(talk.messages, 1) if message["role"] == "assistant"]
        try:
            length = len(self.encode(talk.messages).tokens)
            if length > self.limit:
                fitting = bisect_right(ends, self.limit, key=lambda end: len(self.encode(talk.messages[:end]).tokens))
                if not fitting:
                    return None
                talk = replace(talk, messages=talk.messages[: ends[fitting - 1]])
            return replace(talk, document=self.encode(talk.messages, check=True))
        except UserError as error:
            raise UserError(f"{talk.place}: {error}") from None

    def encode(self, messages: Sequence[Message], check: bool = False) -> Document:
        """The document of a conversation that ends with an answer. With `check`, UserError for a template whose answers
        would not be read again as they are learned."""
        ids, is_answer = self.template.encode(messages)
        end = len(ids) - is_answer[::-1].index(True)
        if check:
            check_template(self.template, messages, ids, is_answer)
        targets = [token if trained else IGNORE for token, trained in zip(ids, is_answer, strict=True)]
        return Document(ids[: end - 1], targets[1:end])

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        if model:
            return recipe_of_writers(model)
        return from_scratch.recipe(from_scratch.count_words(self.training_texts()), minutes)

    def documents(self, example: Conversation, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        return [example.document]

    def num_read(self, example: Conversation, tokenizer: Tokenizer) -> int:
        first = next(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
        return len(self.template.prompt(example.messages[:first]))

    def answer(self, model: GPT, tokenizer: Tokenizer, examples: Sequence[Conversation]) -> list[Reply]:
        """What it makes of what is said in all conversations; in some of them it says the last word itself."""
        documents = [talk.document for talk in examples]
        counts = [sum(target != IGNORE for target in document.targets) for document in documents]
        prompts = {
            i: self.template.prompt(talk.messages[:-1]) for i, talk in evenly_spaced([*enumerate(examples)], WRITTEN)
        }
        prompts = {i: ids for i, ids in prompts.items() if len(ids) + LONGEST - 1 <= model.config.max_seq_len}
        answers = evaluate.complete(model, [*prompts.values()], LONGEST, tokenizer.stops) if prompts else []
        written = {
            i: (tokenizer.decode(tokens), tokens[-1] in tokenizer.stops)
            for i, tokens in zip(prompts, answers, strict=True)
        }
        nats = evaluate.nats(model, documents)
        return [Reply(*each, *written.get(i, ())) for i, each in enumerate(zip(nats, counts, strict=True))]

    def measure(self, examples: Sequence[Conversation], answers: Sequence[Reply]) -> dict[str, Interval]:
        """Nats a token of what the assistant says, perplexity, which is their exponential, and how many of the answers
        that the model wrote itself came to an end."""
        nats, tokens = [reply.nats for reply in answers], [reply.tokens for reply in answers]
        written = [reply.is_whole for reply in answers if reply.text is not None]
        ended = {"ended": rate(written)} if written else {}
        return {"nats": nats_per_token(nats, tokens), "perplexity": perplexity(nats, tokens), **ended}

    def reward(self, examples: Sequence[Conversation], answers: Sequence[Reply]) -> Mapping[str, Sequence[float]]:
        raise UserError("--task chat has no reward: what is said is not right or wrong")

    def details(self, examples: Sequence[Conversation], answers: Sequence[Reply]) -> dict[str, Any]:
        return {"tokens": sum(answer.tokens for answer in answers), "answers": self.samples(examples, answers)}

    def samples(self, examples: Sequence[Conversation], answers: Sequence[Reply]) -> list[dict[str, str]]:
        """Some of the last words that the model wrote, beside those that it wrote before it was trained."""
        before = {(sample["prompt"], sample["truth"]): sample["answer"] for sample in self.before.get("answers", ())}
        written = [pair for pair in zip(examples, answers, strict=True) if pair[1].text is not None]
        found = []
        for talk, reply in evenly_spaced(written, SAMPLES):
            prompt, truth = talk.prompt, talk.messages[-1]["content"]
            known = before.get((prompt, truth), "")
            found.append({"prompt": prompt, "before": known, "answer": reply.text, "truth": truth})
        return found

    def table(self, examples: Sequence[Conversation], answers: Sequence[Reply]) -> Table:
        title = "held-out conversations, the last word of each"
        table = Table("prompt", "before training", "answer", "truth", title=title, title_justify="left")
        for sample in self.samples(examples, answers):
            table.add_row(*cells(*map(shortened, sample.values())))
        return table

    def next_command(self, folder: Path) -> str:
        return f"python -m minillm chat {shlex.quote(str(folder))}"


# ---- the template --------------------------------------------------------------------------------


def template_for(tokenizer: Tokenizer) -> str:
    """TEMPLATE in a vocabulary that has none: how its texts begin, if in a way of their own, and end."""
    names = {i: name for name, i in tokenizer.control.items()}
    begin = [i for i in tokenizer.wrap("")[0] if i == tokenizer.begin]
    beginning = "{{ " + json.dumps(names[begin[0]]) + " }}" if begin else ""
    return TEMPLATE.replace("{BEGIN}", beginning).replace("{END}", json.dumps(names[tokenizer.end]))


def check_template(
    template: ChatTemplate, messages: Sequence[Message], ids: Sequence[int], is_answer: Sequence[bool]
) -> None:
    """UserError unless each answer is learned behind the very tokens with which it will be asked for, and is read by
    what follows as it was while nothing followed. `ids` and `is_answer` are those of the whole conversation."""
    starts = [i for i, (before, learned) in enumerate(pairwise([False, *is_answer])) if learned and not before]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(starts) != len(answers):
        raise UserError(f"the chat template marks {len(starts)} answers, but there are {len(answers)}")
    whole = template.render(messages)
    for start, i in zip(starts, answers, strict=True):
        if template.prompt(messages[:i]) != list(ids[:start]):
            raise UserError(f"the chat template asks for message {i + 1} with other tokens than those before it")
        if not whole.startswith(template.render(messages[: i + 1]).rstrip()):
            raise UserError(
                f"the chat template writes message {i + 1} in another way once others follow, as those do that drop "
                "thoughts; make each answer the last one of a conversation of its own"
            )


# ---- the data ------------------------------------------------------------------------------------


def read(path: Path, fields: Fields) -> list[Conversation]:
    """Of each record its messages up to the last answer, or its prompt with each of its answers."""
    found = []
    for record in records.read(path):
        if fields.has(record, "messages"):
            found.append(Conversation(tuple(messages_of(record, fields.name("messages"))), record.place))
            continue
        prompt = {"role": "user", "content": fields.text(record, "prompt")}
        answers = record.texts(fields.name("answer"))
        found += [Conversation((prompt, {"role": "assistant", "content": a}), record.place) for a in answers]
    return found


def messages_of(record: Record, name: str) -> list[Message]:
    value = record.value(name)
    if not isinstance(value, list):
        raise UserError(f"{record.place}: {name!r} is {records.shown(value)}, but a list of messages was expected")
    messages = [message_of(record, f"{name}[{i}]", each) for i, each in enumerate(value)]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise UserError(f"{record.place}: {name!r} holds no answer, a message whose role is assistant")
    return messages


def message_of(record: Record, name: str, value: Any) -> Message:
    """`{"role": …, "content": …}`, or with `from` and `value`, as some files have it."""
    if not isinstance(value, Mapping) or not ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()):
        raise UserError(
            f'{record.place}: {name} is {records.shown(value)}, but {{"role": …, "content": …}} was expected'
        )
    role = value.get("role", value.get("from"))
    role = OTHERWISE.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise UserError(f"{record.place}: the role of {name} is {records.shown(role)}, but none of {', '.join(ROLES)}")
    content = record.checked(f"{name}.content", value.get("content", value.get("value")))
    if not content:
        raise UserError(f"{record.place}: {name} is empty; fill it in or remove the message")
    return {"role": role, "content": content}

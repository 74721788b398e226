"""Conversations as text and tokens, by the template that a checkpoint brings along.

A message is {"role": "system" | "user" | "assistant" | …, "content": text, …}. Control tokens that the template writes
count as such; the same letters in a message are text like any other, so nobody can end a turn by writing its end. That
holds for every token of which the template makes a conversation, whether or not the vocabulary calls it special.
"""

import json
import re
import subprocess
import sys
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm.errors import UserError, need
from minillm.published.tokenizer_config import ROLES, name_of, texts_in
from minillm.tokenizer import Tokenizer, beginning

Message = Mapping[str, Any]
Span = tuple[int, int]

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # no text has these, by the Unicode standard
GENERATION = re.compile(r"\{%[-+]?\s*generation\b")


class ChatTemplate:
    """Runs the template in a process of its own, see chat_sandbox.py."""

    def __init__(self, source: str, tokenizer: Tokenizer):
        need("jinja2", "text", "a chat template")
        self.source, self.tokenizer = source, tokenizer
        named = {f"{role}_token": name_of(tokenizer.config, role) for role in ROLES}
        self.variables = {name: token for name, token in named.items() if token is not None}
        self.process: subprocess.Popen | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ChatTemplate | None":
        """The checkpoint's own; None if it has none, as models that were never trained to chat."""
        source = tokenizer.config.get("chat_template")
        if isinstance(source, list):  # several, by name
            named = (each for each in source if isinstance(each, dict) and each.get("name") == "default")
            source = next(named, {}).get("template")
        if not isinstance(source, str | None):
            raise UserError(f"tokenizer_config.json: chat_template={source!r} is no text")
        return None if source is None else cls(source, tokenizer)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text, with the beginning of an answer if asked for. UserError if the template fails."""
        marks = unused(messages)
        return without(marks, self._render(messages, add_generation_prompt, marks))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the conversation and of the beginning of an answer, to generate from. UserError likewise."""
        *marks, escape = unused(messages)
        return self._parse(without(marks, self._render(self._escaped(messages, escape), True, marks)), escape)[0]

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> tuple[list[int], list[bool]]:
        """Tokens, and which of them are the assistant's, up to and including the one that ends its turn.

        That is what the template has within `{% generation %}`, else what follows the beginning of an answer, up to the
        first token that ends one. UserError if the template writes answers otherwise than it begins them.
        """
        *marks, escape = unused(messages)
        marked = self._escaped(messages, escape)
        text = self._render(marked, add_generation_prompt, marks)
        if GENERATION.search(self.source):
            text, spans = unmarked(text, marks)
        else:
            answers = [i for i, message in enumerate(marked) if message["role"] == "assistant"]
            spans = [self._answer(marked, i, text, marks, escape) for i in answers]
        ids, offsets = self._parse(text, escape)
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        is_answer = [False] * len(ids)
        for start, end in spans:
            for i in range(bisect_right(ends, start), bisect_left(starts, end)):
                is_answer[i] = True
        return ids, is_answer

    @cached_property
    def borders(self) -> frozenset[str]:
        """The tokens that no message may contain: control tokens, and what the template puts around messages."""
        written = ""
        for role in ("system", "user", "tool"):
            with suppress(UserError):  # some templates want other conversations, and spell their tokens out
                written += self.render([{"role": role, "content": "x"}], add_generation_prompt=True)
        named = {*self.tokenizer.control, *texts_in(self.tokenizer.config, "chat_control_tokens")}
        return frozenset(name for name in self.tokenizer.added if name in named or (name in written and name.strip()))

    @cached_property
    def spelled(self) -> frozenset[str]:
        """Further tokens that the template spells out: for nobody but the model, such as those around its thoughts."""
        return frozenset(name for name in self.tokenizer.added if name in self.source and name.strip()) | self.borders

    def _answer(self, messages: Sequence[Message], index: int, text: str, marks: Sequence[str], escape: str) -> Span:
        """From where to where of the text the answer of message `index` reaches."""
        begun = self._render(messages[:index], True, marks)
        if not text.startswith(begun):
            raise UserError(
                f"the chat template begins an answer in another way than it writes message {index + 1}, "
                "so which tokens are the assistant's is not known; a template with {% generation %} marks them"
            )
        through = self._render(messages[: index + 1], False, marks)
        end = len(through) if text.startswith(through) else len(text)
        names = [name for name, token in self.tokenizer.control.items() if token in self.tokenizer.stops]
        stop = re.compile(f"(?<!{escape})(?:{alternatives(names)})").search(text, len(begun), end)
        if stop is None and not text.startswith(through):
            raise UserError(f"the chat template writes no token that ends message {index + 1}, an answer")
        return len(begun), stop.end() if stop else end

    def _escaped(self, messages: Sequence[Message], escape: str) -> list[Message]:
        """The messages with `escape` before every letter of what looks like a control token, or begins one at an end:
        a template may join what stands in several texts."""

        def escaped(value: Any, names: Collection[str], control: re.Pattern) -> Any:
            if isinstance(value, str):
                rest = len(value) - max((beginning(value, name) for name in names), default=0)
                whole = control.sub(lambda match: spaced(match[0]), value[:rest])
                return whole + spaced(value[rest:])
            if isinstance(value, Mapping):
                return {key: escaped(each, names, control) for key, each in value.items()}
            return [escaped(each, names, control) for each in value] if isinstance(value, list | tuple) else value

        def spaced(text: str) -> str:
            return "".join(escape + letter for letter in text)

        kinds = {names: re.compile(alternatives(names)) for names in (self.borders, self.spelled)}
        of_each = [self.borders if message.get("role") == "assistant" else self.spelled for message in messages]
        return [escaped(message, names, kinds[names]) for message, names in zip(messages, of_each, strict=True)]

    def _parse(self, text: str, escape: str) -> tuple[list[int], list[Span]]:
        """Tokens of a text with escapes, and from where to where of it each reaches."""
        places = [i for i, letter in enumerate(text) if letter != escape]  # of the letters that are text
        plain = "".join(text[i] for i in places)
        is_escaped = [i > 0 and text[i - 1] == escape for i in places]
        places.append(len(text))  # tokens without letters may stand behind the last one
        control = re.compile(alternatives(self.spelled))
        ids: list[int] = []
        offsets: list[Span] = []
        for start, end in pieces(is_escaped, control, plain):
            if end - start == 1 and is_escaped[start]:
                new = self.tokenizer.encode(plain[start])
                spans = [(0, 1)] * len(new)
            else:
                new, spans = self.tokenizer.parse(plain[start:end])
                self._check(new, control.findall(plain, start, end))
            ids += new
            offsets += [(places[start + a], places[start + max(a, b - 1)] + 1) for a, b in spans]
        return ids, offsets

    def _check(self, ids: Sequence[int], written: Sequence[str]) -> None:
        """UserError for a control token that nobody wrote: a vocabulary may take other letters for its letters."""
        for name in self.borders:
            if ids.count(self.tokenizer.added[name]) > written.count(name):
                raise UserError(f"a message has letters that the vocabulary takes for {name}; write it in other words")

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, marks: Sequence[str]) -> str:
        present = [{key: value for key, value in message.items() if value is not None} for message in messages]
        variables = {**self.variables, "messages": present, "add_generation_prompt": add_generation_prompt}
        variables |= {"tools": None, "documents": None}  # templates ask `is none` of these
        answer = self._ask({"variables": variables, "marks": marks[:2]})
        if "error" in answer:
            raise UserError(f"the chat template cannot write this conversation: {answer['error']}")
        return answer["text"]

    def _ask(self, job: Mapping[str, Any]) -> dict[str, str]:
        try:
            if self.process is None:
                self.process = start(self.source)
                weakref.finalize(self, stop_process, self.process)
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process = None
            raise UserError("the chat template was stopped: it takes too much time or memory")
        return json.loads(line)


def start(source: str) -> subprocess.Popen:
    script = Path(__file__).with_name("chat_sandbox.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # A session of its own: Ctrl-C is meant for whoever asks, not for the template.
    process = subprocess.Popen([sys.executable, str(script)], **pipes, encoding="utf-8", start_new_session=True)
    process.stdin.write(json.dumps(source) + "\n")
    return process


def stop_process(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def alternatives(names: Sequence[str] | Mapping[str, int]) -> str:
    """A pattern for any of these texts, the longest first; without any, one that never fits."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"


def pieces(is_escaped: Sequence[bool], control: re.Pattern, text: str) -> Iterator[Span]:
    """Where to cut a text so that no control token with an escaped letter is found: its first one stands alone."""
    start = position = 0
    while match := control.search(text, position):
        position = match.end()
        if any(is_escaped[match.start() : match.end()]):
            if start < match.start():
                yield start, match.start()
            start = position = match.start() + 1
            yield match.start(), start
    if start < len(text):
        yield start, len(text)


def unused(messages: Sequence[Message]) -> list[str]:
    """Three characters that are not in the messages."""
    text = json.dumps([dict(message) for message in messages], ensure_ascii=False)
    free = [character for character in NONCHARACTERS if character not in text]
    if len(free) < 3:
        raise UserError("the messages contain nearly all characters that Unicode keeps out of texts; remove them")
    return free[:3]


def without(characters: Sequence[str], text: str) -> str:
    return text.translate({ord(character): None for character in characters})


def unmarked(text: str, marks: Sequence[str]) -> tuple[str, list[Span]]:
    """The text without marks, and from where to where each pair of them reached."""
    places = [match.start() - i for i, match in enumerate(re.finditer("[" + "".join(marks) + "]", text))]
    return without(marks, text), list(zip(places[::2], places[1::2], strict=True))

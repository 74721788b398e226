"""Conversations as text and tokens, by the template that a checkpoint brings along.

A message is {"role": "system" | "user" | "assistant" | …, "content": text, …}. Control tokens that the template writes
count as such; the same letters in a message are text like any other, so nobody can end a turn by writing its end.
"""

import json
import re
import subprocess
import sys
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.errors import UserError, need
from minillm.published.subwords import name_of
from minillm.tokenizer import Tokenizer

Message = Mapping[str, Any]
Span = tuple[int, int]

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # of control tokens that templates may write
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
            source = {each["name"]: each["template"] for each in source}.get("default")
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
        """The messages with `escape` before every letter of what looks like a control token."""
        control = re.compile(alternatives(self.tokenizer.control))

        def escaped(value: Any) -> Any:
            if isinstance(value, str):
                return control.sub(lambda match: "".join(escape + letter for letter in match[0]), value)
            if isinstance(value, Mapping):
                return {key: escaped(each) for key, each in value.items()}
            return [escaped(each) for each in value] if isinstance(value, list | tuple) else value

        return [escaped(message) for message in messages]

    def _parse(self, text: str, escape: str) -> tuple[list[int], list[Span]]:
        """Tokens of a text with escapes, and from where to where of it each reaches."""
        ids: list[int] = []
        offsets: list[Span] = []
        position = 0
        for piece in re.split(f"((?:{escape}.)+)", text, flags=re.DOTALL):
            plain = piece.replace(escape, "")
            if piece.startswith(escape):
                new = self.tokenizer.encode(plain)
                offsets += [(position, position + len(piece))] * len(new)
            else:
                new, places = self.tokenizer.parse(plain)
                offsets += [(position + start, position + end) for start, end in places]
            ids += new
            position += len(piece)
        return ids, offsets

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

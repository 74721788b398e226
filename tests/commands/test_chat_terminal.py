"""`python -m minillm chat` on a real terminal: long lines, editing, pasting, commands. And what is not read again."""

import ast
import contextlib
import importlib.util
import os
import select
import subprocess
import sys
import time

import pytest
import torch
from model_folders import write_gpt
from scripts import ROOT, environment

from minillm.commands.conversation import Conversation
from minillm.commands.text_generation import Answer, TextGenerator
from minillm.generate import GREEDY, Sampling
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer

pty = pytest.importorskip("pty")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

UP, LEFT = "\x1b[A", "\x1b[D"
CHAT = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
from minillm import cli
from minillm.commands import chat
chat.answer = lambda _, question, *more: print("\\nASKED", ascii(question), flush=True)
cli.run(lambda: chat.main(cli.parse(chat.Args, "", [{model!r}])))
"""
EDITORS = {"prompt_toolkit": [], "readline": ["prompt_toolkit"], "neither": ["prompt_toolkit", "readline"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_gpt(tmp_path_factory.mktemp("models") / "gpt", max_seq_len=400)


class Terminal:
    """A program that believes a person is there, and what it has shown so far."""

    def __init__(self, *command: str):
        self.shown, self.seen, self.end = b"", 0, time.monotonic() + 60
        self.file, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env={**environment(), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        """Until it is shown behind what was waited for last."""
        while (place := self.shown.find(text.encode(), self.seen)) < 0:
            self._wait(reads=True)
        self.seen = place + len(text)

    def type(self, text: str) -> None:
        data = text.encode()
        while data:
            if self._wait(reads=False):
                data = data[os.write(self.file, data[:256]) :]

    def close(self) -> str:
        with contextlib.suppress(OSError):  # which a terminal is whose program has ended
            while True:
                self._wait(reads=True)
        return self.shown.decode(errors="replace")

    def _wait(self, reads: bool) -> bool:
        """Collects what is shown → whether there is room for more to be typed."""
        readable, writable, _ = select.select(
            [self.file], [] if reads else [self.file], [], self.end - time.monotonic()
        )
        assert readable or writable, self.shown[-2000:]
        if readable:
            self.shown += os.read(self.file, 65536)
        return bool(writable)


def chat(model, editor: str, *typed: str) -> tuple[list[str], str]:
    """The questions that are asked when this is typed, each up to its Enter, and all that was shown."""
    if editor != "neither" and importlib.util.find_spec(editor) is None:
        pytest.skip(f"needs {editor}")
    terminal = Terminal(sys.executable, "-c", CHAT.format(model=str(model), hidden=EDITORS[editor]))
    try:
        for text in typed:
            terminal.wait_for(">")
            terminal.type(text + "\r")
            terminal.wait_for("error: " if text.startswith("too long") else "ASKED")
        terminal.wait_for(">")
        terminal.type("/exit\r")
        shown = terminal.close()
    finally:
        terminal.process.kill()
        os.close(terminal.file)
    lines = [line.partition("ASKED ")[2].strip() for line in shown.splitlines() if "ASKED '" in line]
    return [ast.literal_eval(line) for line in lines], shown


@pytest.mark.parametrize("editor", ["prompt_toolkit", "readline"])
def test_lines_are_edited_recalled_and_pasted(model, editor):
    long = "all of this" * 500
    path = "/usr/bin/env is what?"
    pasted = "one\ntwo\n\nthree"
    texts = {f"\x1b[200~{pasted}\x1b[201~": pasted} if editor == "prompt_toolkit" else {}
    asked, shown = chat(model, editor, "helo" + LEFT + "l", UP + "!", long, path, "/what", *texts)
    assert asked == ["hello", "hello!", long, path, "/what", *texts.values()]
    assert ("pip install -e '.[chat]'" in shown) == (editor == "readline")


def test_a_line_that_the_terminal_cuts_is_refused(model):
    asked, shown = chat(model, "neither", "hello", "too long" + "x" * 5000, "again")
    assert asked == ["hello", "again"]
    assert "without a line editor, which pip install -e '.[chat]' has" in shown
    assert "this one may have lost its end" in shown


# ---- what is not read again ----------------------------------------------------------------------


@pytest.fixture
def text_generator(model, monkeypatch):
    """It counts the tokens that the model reads."""
    made = TextGenerator(checkpoint.load(model), load_tokenizer(model))
    made.count = 0
    forward = type(made.model).forward

    def counted(self, tokens, *more):
        made.count += len(tokens)
        return forward(self, tokens, *more)

    monkeypatch.setattr(type(made.model), "forward", counted)
    return made


def turn(conversation, question, sampling, cache=True, stop_after=9):
    """→ the answer, and how many tokens were read for it"""
    text_generator = conversation.text_generator
    prompt, _ = conversation.ask(question, room=20)
    before, answer = text_generator.count, Answer()
    kept = conversation.recall(prompt) if cache else None
    rng = torch.Generator().manual_seed(len(prompt))
    for number, (answer, _) in enumerate(text_generator.stream([prompt], 20, (), sampling, rng, kept)):  # noqa: B007
        if number == stop_after:  # Ctrl-C
            break
    conversation.answered(answer)
    return answer.tokens, text_generator.count - before


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_k=20), Sampling(temperature=0, repetition_penalty=1.3)])
def test_a_turn_reads_only_what_is_new(text_generator, sampling):
    questions = ["the sky", "é🦉", "x" * 200, "and " * 30, "the", "STOP"]  # so many that the oldest are forgotten
    ours, anew = (Conversation(text_generator, "be brief") for _ in range(2))
    for number, question in enumerate(questions):
        stop_after = 9 if number % 2 else 99
        tokens, read = turn(ours, question, sampling, stop_after=stop_after)
        again, all_read = turn(anew, question, sampling, cache=False, stop_after=stop_after)
        assert tokens == again
        assert ours.turns == anew.turns
        assert read <= all_read
        if number in (1, 2):
            assert read < all_read - 20
    ours.reset()
    anew.reset()
    assert turn(ours, "the sky", sampling)[0] == turn(anew, "the sky", sampling, cache=False)[0]

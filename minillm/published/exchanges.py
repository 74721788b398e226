"""A prompt with an answer to it as tokens, for a model that judges answers or writes them.

A BERT reads a pair of texts. A GPT reads a turn of the user's and one of the assistant's, as its chat template has
them; without a template the prompt as its vocabulary has it, or with a blank line behind it, the answer, and the token
that ends it.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from minillm.batching import Document, answering
from minillm.errors import UserError
from minillm.gpt import GPTConfig
from minillm.published.byte_pairs import PROMPT, set_prompt_format
from minillm.published.chat import ChatTemplate
from minillm.published.subwords import Subwords
from minillm.tokenizer import SymbolTokenizer, Tokenizer

CONTEXT = 2048  # most tokens of a prompt with its answer, unless told otherwise or the model reads fewer
BETWEEN = "\n\n"  # a prompt and its answer, where no template says anything


class Exchange(NamedTuple):
    tokens: list[int]
    segments: list[int]  # one a token; empty: all 0
    num_read: int  # of a GPT's: tokens before the answer
    cut: str | None = None  # what did not fit: "prompt", "answer"

    def judged(self, label: int | float = 0) -> Document:
        """The whole as one document, with a label."""
        return Document(self.tokens, label=label, segments=self.segments)

    def written(self) -> Document:
        """What a GPT learns to write: the tokens of the answer have targets, the one that ends it too."""
        return answering(self.tokens[: self.num_read], self.tokens[self.num_read :])


class Composer:
    """Puts prompts and answers together, for one model. Of what is too long, the prompt's beginning is cut first."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, context: int = CONTEXT):
        config = model.config
        self.tokenizer, self.vocab_size = tokenizer, config.vocab_size
        self.limit = min(config.max_seq_len, tokenizer.limit, context)
        self.is_decoder = isinstance(config, GPTConfig)
        self.template = ChatTemplate.of(tokenizer) if self.is_decoder else None
        # A vocabulary of symbols is of a task whose prompts say themselves where they end.
        is_known = isinstance(tokenizer, SymbolTokenizer) or "prompt_format" in tokenizer.config
        self.between = "" if is_known else BETWEEN

    def __call__(self, prompt: str, answer: str) -> Exchange:
        """UserError for texts that the model does not know, or where it reads too little."""

        def fits(prompt: str, answer: str) -> bool:
            return len(self.encode(prompt, answer).tokens) <= self.limit

        whole = self.encode(prompt, answer)
        if len(whole.tokens) <= self.limit:
            return whole
        if fits("", answer):
            prompt = longest_end(prompt, lambda end: fits(end, answer))
            return self.encode(prompt, answer)._replace(cut="prompt")
        if not fits("", ""):
            raise UserError(f"{self.limit} tokens are fewer than what stands around a prompt and its answer")
        return self.encode("", longest_end(answer, lambda end: fits("", end)))._replace(cut="answer")

    def encode(self, prompt: str, answer: str) -> Exchange:
        """However long it is. UserError likewise."""
        try:
            exchange = self.as_turns(prompt, answer) if self.is_decoder else self.as_pair(prompt, answer)
        except ValueError as error:  # of a vocabulary of symbols
            raise UserError(f"this model does not read such a text: {error}") from None
        if (largest := max(exchange.tokens)) >= self.vocab_size:
            raise UserError(
                f"the vocabulary gives a text the token {largest}, but the model only has {self.vocab_size}: "
                "they do not belong together"
            )
        return exchange

    def as_pair(self, prompt: str, answer: str) -> Exchange:
        return Exchange(*self.tokenizer.wrap(prompt, answer), num_read=0)

    def as_turns(self, prompt: str, answer: str) -> Exchange:
        if self.template is None:
            read = self.prompt(prompt)
            return Exchange([*read, *self.tokenizer.encode(answer), self.tokenizer.end], [], len(read))
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids, is_answer = self.template.encode(turns)
        if not any(is_answer):
            raise UserError("the chat template marks no tokens of an answer as the assistant's")
        end = len(ids) - is_answer[::-1].index(True)
        return Exchange(ids[:end], [], is_answer.index(True))

    def prompt(self, prompt: str) -> list[int]:
        """What a GPT goes on from to answer: the tokens before the answer."""
        if self.template is None:
            return self.tokenizer.prompt(prompt + self.between)
        return self.template.prompt([{"role": "user", "content": prompt}])


def keep_format(tokenizer: Tokenizer) -> None:
    """Has a vocabulary without a chat template remember how prompts are read here, so that whoever asks the model later
    asks as it was taught."""
    if isinstance(tokenizer, Subwords) and not {"chat_template", "prompt_format"} & tokenizer.config.keys():
        set_prompt_format(tokenizer, PROMPT + BETWEEN)


def longest_end(text: str, fits: Callable[[str], bool]) -> str:
    """As much of the end of a text as fits, where the empty text does."""
    return text[bisect_left(range(len(text)), True, key=lambda start: fits(text[start:])) :]

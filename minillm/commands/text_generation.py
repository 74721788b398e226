"""Text from a GPT: prompts in, answers out piece by piece, until a token or a stop string ends them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from minillm import generate
from minillm.errors import NOT_FINITE, UserError
from minillm.generate import Sampling, Token
from minillm.gpt import GPT
from minillm.inference import ready
from minillm.published.chat import ChatTemplate
from minillm.tokenizer import Stream, Tokenizer, read_texts

DEFAULT_NEW_TOKENS = 256


@dataclass
class Answer:
    """As much of it as there is so far."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)  # all that were drawn, those that ended it too
    logprobs: list[float] = field(default_factory=list)  # of each token, under the distribution it was drawn from
    ended_by: str | None = None  # "token", "string" or "length"; None while it goes on


class TextGenerator:
    def __init__(self, model: GPT, tokenizer: Tokenizer):
        """Makes the model ready unless it is, see `ready`; what of it is not needed for that can then be freed."""
        self.model, self.tokenizer = ready(model), tokenizer
        self.max_seq_len = model.config.max_seq_len
        self.template = ChatTemplate.of(tokenizer) if tokenizer.config.get("chat_template") else None

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a text to go on with. UserError for one that is empty or has what the vocabulary lacks."""
        if not prompt:
            raise UserError("the prompt is empty: give the model something to go on with")
        ((ids, _),) = read_texts(self.tokenizer, [(prompt,)], self.model.config.vocab_size)
        return ids

    def room(self, prompts: Sequence[Sequence[int]], asked: int | None = None) -> int:
        """How many tokens every answer may have: as many as asked for, or what fits of the default. UserError."""
        longest = max(map(len, prompts))
        most = self.max_seq_len - longest + 1  # the last token of an answer is not read
        if most < 1:
            raise UserError(
                f"the prompt has {longest} tokens, but this model reads at most {self.max_seq_len}; shorten it"
            )
        if asked is not None and asked > most:
            raise UserError(
                f"a prompt of {longest} tokens and --max-new-tokens {asked} go beyond the {self.max_seq_len} tokens "
                f"that this model reads; ask for at most {most}"
            )
        return asked or min(DEFAULT_NEW_TOKENS, most)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),  # noqa: B008, it is frozen
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Answer, str]]:
        """The answers to all prompts at once, as they grow, each time with the text that is new.

        An answer ends before the first of the `stop` strings, or with a token that ends texts in this checkpoint.
        """
        answers = [Answer() for _ in prompts]
        texts = [StopStringFilter(self.tokenizer.stream().follow(prompt), stop) for prompt in prompts]
        pieces = [""] * len(prompts)

        def on_token(token: Token) -> bool:
            """Whether its answer is complete now."""
            answer, text = answers[token.answer], texts[token.answer]
            if math.isnan(token.logprob):
                raise UserError(f"{NOT_FINITE}: token {len(answer.tokens) + 1} of an answer has no probability")
            answer.tokens.append(token.id)
            answer.logprobs.append(token.logprob)
            if token.id in self.tokenizer.stops:
                answer.ended_by, piece = "token", text.close()
            else:
                piece = text.push(token.id)
                if len(answer.tokens) == max_new_tokens:
                    answer.ended_by, piece = "length", piece + text.close()
            if text.is_stopped:
                answer.ended_by = "string"
            pieces[token.answer] = piece
            answer.text += piece
            return answer.ended_by is not None

        for token in generate.stream(
            self.model, prompts, max_new_tokens, sampling=sampling, generator=generator, is_done=on_token
        ):
            yield answers[token.answer], pieces[token.answer]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),  # noqa: B008
        generator: torch.Generator | None = None,
    ) -> list[Answer]:
        """All of them when they are complete, in the order of the prompts."""
        growing = self.stream(prompts, max_new_tokens, stop, sampling, generator)
        return list({id(answer): answer for answer, _ in growing}.values())  # the first tokens come in this order


class StopStringFilter:
    """The text of an answer as its tokens come, up to the first of some stop strings, of which nothing is ever shown.

    What may be the beginning of a stop string is held back until it is known not to be. Where several are found, the
    one that is complete first counts: how the text is cut into tokens makes no difference.
    """

    def __init__(self, stream: Stream, stop: Sequence[str]):
        self.stream, self.stop = stream, stop
        self.held = ""
        self.is_stopped = False  # one of the strings was found

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        return self._release(self.stream.push(token))

    def close(self) -> str:
        """What was held back: no more tokens come."""
        text = self._release(self.stream.close()) + self.held
        self.held = ""
        return text

    def _release(self, new: str) -> str:
        text = self.held + new
        places = [(start + len(stop), start) for stop in self.stop if (start := text.find(stop)) >= 0]
        if places:
            self.is_stopped, self.held = True, ""
            return text[: min(places)[1]]
        certain = len(text) - max((beginning(text, stop) for stop in self.stop), default=0)
        self.held = text[certain:]
        return text[:certain]


def beginning(text: str, stop: str) -> int:
    """How many of the last letters of the text are the beginning of `stop`, at most all but one of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

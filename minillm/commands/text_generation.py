"""Text from a GPT: prompts in, answers out piece by piece, until a token or a stop string ends them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from minillm import generate
from minillm.errors import NOT_FINITE, UserError
from minillm.generate import Sampling, Token
from minillm.gpt import GPT
from minillm.inference import KVCache, ready
from minillm.published.chat import ChatTemplate
from minillm.tokenizer import Stream, Tokenizer, beginning, read_texts
from minillm.wording import counted

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
        """The tokens of a text to go on with; of an empty one what begins texts, if the model knows such a token.

        UserError for a text that has what the vocabulary lacks.
        """
        ((ids, _),) = read_texts(self.tokenizer, [(prompt,)], self.model.config.vocab_size)
        begin = self.tokenizer.begin
        return ids or ([] if begin is None or begin >= self.model.config.vocab_size else [begin])

    def room(self, prompt: Sequence[int], asked: int | None = None) -> int:
        """How many tokens an answer may have: as many as asked for, or what fits of the default. UserError."""
        if not prompt:
            raise UserError("the prompt is empty, and this model has no token that begins a text: give it a beginning")
        most = self.max_seq_len - len(prompt) + 1  # the last token of an answer is not read
        if most < 1:
            length = counted(len(prompt), "token")
            raise UserError(f"the prompt has {length}, but this model reads at most {self.max_seq_len}; shorten it")
        if asked is not None and asked > most:
            raise UserError(
                f"a prompt of {counted(len(prompt), 'token')} and --max-new-tokens {asked} go beyond the "
                f"{self.max_seq_len} tokens that this model reads; ask for at most {most}"
            )
        return asked or min(DEFAULT_NEW_TOKENS, most)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),  # noqa: B008, it is frozen
        generator: torch.Generator | None = None,
        cache: KVCache | None = None,
    ) -> Iterator[tuple[Answer, str]]:
        """The answers to all prompts at once, as they grow, each time with the text that is new.

        An answer ends before the first of the `stop` strings, with a token that ends texts in this checkpoint, or after
        `max_new_tokens`, which may be a number for each; there is no answer for 0. `cache`: see `generate.stream`.
        """
        return self._grow([Answer() for _ in prompts], prompts, max_new_tokens, stop, sampling, generator, cache)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),  # noqa: B008
        generator: torch.Generator | None = None,
    ) -> list[Answer]:
        """All of them when they are complete, in the order of the prompts; see `stream`."""
        answers = [Answer() for _ in prompts]
        for _ in self._grow(answers, prompts, max_new_tokens, stop, sampling, generator):
            pass
        return answers

    def _grow(
        self,
        answers: Sequence[Answer],
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        stop: Sequence[str],
        sampling: Sampling,
        generator: torch.Generator | None,
        cache: KVCache | None = None,
    ) -> Iterator[tuple[Answer, str]]:
        """Appends to the answers. The longest prompt limits a batch; answers that outgrow it go on in another one."""
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        texts = [StopStringFilter(self.tokenizer.stream().follow(prompt), stop) for prompt in prompts]
        pieces = [""] * len(prompts)
        batch = [i for i, limit in enumerate(limits) if limit > 0]

        def on_token(token: Token) -> bool:
            """Whether its answer is complete now."""
            i = batch[token.answer]
            answer, text = answers[i], texts[i]
            if math.isnan(token.logprob):
                raise UserError(f"{NOT_FINITE}: token {len(answer.tokens) + 1} of an answer has no probability")
            answer.tokens.append(token.id)
            answer.logprobs.append(token.logprob)
            if token.id in self.tokenizer.stops:
                answer.ended_by, pieces[i] = "token", text.close()
            else:
                pieces[i] = text.push(token.id)
                if len(answer.tokens) == limits[i]:
                    answer.ended_by, pieces[i] = "length", pieces[i] + text.close()
            if text.is_stopped:
                answer.ended_by = "string"
            answer.text += pieces[i]
            return answer.ended_by is not None

        while batch:
            begun = [[*prompts[i], *answers[i].tokens] for i in batch]
            wanted = max(limits[i] - len(answers[i].tokens) for i in batch)
            fitting = self.max_seq_len - max(map(len, begun)) + 1
            room, draw = min(wanted, fitting), {"sampling": sampling, "generator": generator}
            for token in generate.stream(self.model, begun, room, **draw, is_done=on_token, cache=cache):
                yield answers[batch[token.answer]], pieces[batch[token.answer]]
            batch = [i for i in batch if answers[i].ended_by is None]


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

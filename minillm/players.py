"""A GPT that speaks with an environment, by turns: how its answers grow, drawn or greedily. See turns.py.

A turn is written for all answers that are still open, the environment replies to all of them at once, and so on. What
was said before is read anew for every turn.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from minillm import evaluate
from minillm.batching import in_order
from minillm.beam import Beams
from minillm.episodes import Episode, Writer
from minillm.functions import RewardError
from minillm.generate import Sample, Sampling, generate
from minillm.gpt import GPT
from minillm.inference import ready
from minillm.tokenizer import Tokenizer
from minillm.turns import Turns

Speak = Callable[[Sequence[Sequence[int]]], Sequence[Sample]]  # all that was said, as token ids → a turn to each


def tokens_of(episode: Episode) -> list[int]:
    """All that was said in it."""
    return in_order(episode.prompt, episode.answer, episode.heard)[0]


class Player(Writer):
    """A writer whose answers have turns; its draws are those of all turns, one after the other."""

    def __init__(self, task: Any, tokenizer: Tokenizer):
        super().__init__(task, tokenizer)
        self.environment, self.longest = task.environment, task.environment.turns * self.turn_limit

    def rollout(self, model: GPT, examples: Sequence[Any], sampling: Sampling, samples: int) -> list[Episode]:
        episodes = super().rollout(model, examples, sampling, samples)  # their first turns
        options = {"max_new_tokens": self.turn_limit, "stop": self.tokenizer.stops, "sampling": sampling}
        return self.play(episodes, partial(generate, ready(model), **options), model.config.max_seq_len)

    def greedy(self, model: GPT, examples: Sequence[Any], beams: Beams | None) -> list[Turns]:
        """Of each turn the likeliest, or the best that a search finds. Leaves the model in the mode it found. UserError
        where a token has no probability."""

        def speak(said: Sequence[Sequence[int]]) -> list[Sample]:
            return [*map(Sample, evaluate.complete(model, said, self.turn_limit, self.tokenizer.stops, beams))]

        prompts = [self.tokenizer.prompt(example.prompt) for example in examples]
        episodes = [*map(self.episode, examples, prompts, speak(prompts))]
        return [episode.said for episode in self.play(episodes, speak, model.config.max_seq_len)]

    def play(self, episodes: list[Episode], speak: Speak, max_seq_len: int) -> list[Episode]:
        """Goes on with answers whose first turn was said, until all are over; returns the same ones. Cut are those that
        do not end a turn, or that have none left, or no room for it, when the environment goes on. RewardError."""
        for episode in episodes:
            episode.said = Turns([episode.said])
        games, room = [e for e in episodes if not e.is_cut], max_seq_len - self.turn_limit + 1  # the last is not read
        while games := self.hear(games, room):
            for episode, turn in zip(games, speak([tokens_of(e) for e in games]), strict=True):
                self.say(episode, turn)
            games = [e for e in games if not e.is_cut]
        return episodes

    def hear(self, games: Sequence[Episode], room: int) -> list[Episode]:
        """Those of them that go on, with what was replied; `room` is for all tokens before a turn."""
        if not games:
            return []
        replies = self.environment.reply([e.example for e in games], [e.said for e in games])
        answered = [(e, reply) for e, reply in zip(games, replies, strict=True) if reply is not None]
        for episode, reply in answered:
            tokens = self.encode(reply)
            episode.is_cut = len(episode.said) == self.environment.turns or episode.size + len(tokens) > room
            if not episode.is_cut:
                episode.heard = (*episode.heard, (len(episode.answer), tokens))
                episode.said = Turns(episode.said, (*episode.said.replies, reply))
        return [episode for episode, _ in answered if not episode.is_cut]

    def say(self, episode: Episode, turn: Sample) -> None:
        """Adds a turn."""
        episode.answer, episode.logprobs = [*episode.answer, *turn.tokens], [*episode.logprobs, *turn.logprobs]
        episode.said = Turns((*episode.said, self.tokenizer.decode(turn.tokens)), episode.said.replies)
        episode.is_cut = turn.tokens[-1] not in self.tokenizer.stops

    def encode(self, reply: str) -> list[int]:
        try:
            return self.tokenizer.encode(reply)
        except ValueError as error:  # of a vocabulary of symbols
            raise RewardError(f"the model does not read what the environment replied: {error}") from None

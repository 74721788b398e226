"""Who answers by chance, by the head of a model: a GPT writes token by token (episodes.py), or by
turns (players.py), a classifier draws one of its classes, a tagger a tag for every word.

All are policies in the same sense: what is drawn has a log p, and the model learns from Σ weight · log p of it (see
episodes.Actor). An answer of a classifier is one draw from softmax(logits / T). Tags, and what the whole is, are drawn
independently given the text, so that log p of an answer is the sum of theirs; what they mark may be no entity at all,
which is for the reward to judge.

Letters: E examples, S answers to each, R draws of an answer to all of them, K of what is told apart.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm import cli
from minillm.batching import IGNORE, Document, pack
from minillm.episodes import Actor, Drawn, Episode, Writer
from minillm.errors import UserError
from minillm.evaluate import of_documents, outputs
from minillm.generate import Sampling, draw
from minillm.heads import SequenceClassifier, TokenClassifier
from minillm.players import Player
from minillm.tagging import Tags, Window, read_windows
from minillm.tasks.base import Judged, Task
from minillm.tokenizer import Tokenizer
from minillm.turns import require_taken


def is_judged(task: type[Task]) -> bool:
    """Whether it can be learned by reward."""
    return issubclass(task, Judged) and task.head in ACTORS


def check(args: Any, task: type[Task]) -> None:
    """UserError for options of train_rl.py that do not suit the task."""
    if args.method in ("expert", "soft-q") and task.head != "lm":
        raise UserError(f"--method {args.method} is for answers that are written, not for those of --task {task.name}")
    check_turns(args, task)
    if args.options and vars(args.options).get("calibrate"):
        raise UserError("--calibrate is for train_sft.py: what a reward makes probabilities mean is another thing")
    if args.options and vars(args.options).get("class_weights"):
        raise UserError("--class-weights is for train_sft.py; by reward give --reward balanced")
    if args.options and vars(args.options).get("augment") and not args.sft_share:
        raise UserError("--augment varies texts whose answers are given, and none are learned: give --sft-share, too")


def check_turns(args: Any, task: type[Task]) -> None:
    """UserError for options of an environment that the task, or the method, does not take."""
    if args.environment:
        require_taken(args.environment, task)
    if args.turns is not None and not args.environment:
        raise UserError("--turns is of --environment; leave it out, or give that")
    cli.require_positive(args, "turns")
    if args.environment or task.environment:
        for option, is_given in (("--method expert", args.method == "expert"), ("--logged", args.logged)):
            if is_given:
                raise UserError(f"{option} learns from answers of one turn; leave it out to learn from several")


def by_reward(options: Any, sft_share: float | None) -> Any:
    """Without what the run to start from may have been trained with and verdicts do not have: weights of classes, and
    variants of texts, unless given answers are learned, too."""
    strange = {"class_weights", *([] if sft_share else ["augment", "augment_model"])} & vars(options).keys()
    return replace(options, **dict.fromkeys(strange)) if strange else options


def require_actor(task: Task) -> None:
    """UserError for one whose options ask for a model that is no policy."""
    if task.head not in ACTORS:
        raise UserError(f"--task {task.name} with several labels to a text has no policy: learn it by train_sft.py")


def actor_of(task: Task, tokenizer: Tokenizer) -> Actor:
    """How models of the head that the task asks for answer by chance."""
    return (Player if task.environment else ACTORS[task.head])(task, tokenizer)


class Chooser:
    """A classifier: its one draw is a class."""

    draws, longest = "class", 1

    def __init__(self, task: Task, tokenizer: Tokenizer):
        self.classes = task.classes
        self.document = cache(lambda example: task.documents(example, tokenizer, None)[0])  # texts come back

    def rollout(
        self, model: SequenceClassifier, examples: Sequence[Any], sampling: Sampling, samples: int
    ) -> list[Episode]:
        documents = [self.document(example) for example in examples]
        logits = torch.from_numpy(of_documents(model, documents, outputs))
        classes, logprobs = (drawn.T.tolist() for drawn in draw_several(logits, sampling, samples))
        return [
            Episode(examples[i], documents[i].tokens, [k], [logprob], self.classes[k])
            for i in range(len(examples))
            for k, logprob in zip(classes[i], logprobs[i], strict=True)
        ]

    def batch(self, episodes: Sequence[Episode], device: torch.device) -> Drawn:
        documents = [replace(self.document(episode.example), label=episode.answer[0]) for episode in episodes]
        return Drawn(pack(documents).to(device), torch.arange(len(documents), device=device), len(documents))


class Tagger:
    """A tagger: its draws are a tag for each word and behind them, where the whole has classes, one of those, as the
    first window of a long sentence has it. Words that the tokenizer leaves out are of the first tag, such as O."""

    draws = "tag"

    def __init__(self, task: Task, tokenizer: Tokenizer):
        self.tags, self.intents = task.classes, task.sequence_classes
        self.windows = cache(lambda sentence: task.reader.windows(sentence.words))
        practised = [*task.splits.train, *task.splits.unlabelled]
        self.longest = max(len(sentence.words) for sentence in practised) + bool(self.intents)

    def rollout(
        self, model: TokenClassifier, examples: Sequence[Any], sampling: Sampling, samples: int
    ) -> list[Episode]:
        windows = [self.windows(example) for example in examples]
        said = read_windows(model, [window for each in windows for window in each])
        firsts = [sum(map(len, windows[:i])) for i in range(len(windows))]
        counts = [sum(len(window.at) for window in each) for each in windows]
        drawn = draw_several(torch.cat([tags for tags, _ in said]), sampling, samples)  # (S, R)
        answers = [list(values.split(counts, dim=1)) for values in drawn]  # for each example (S, its words)
        if self.intents:
            wholes = draw_several(torch.stack([said[first][1] for first in firsts]), sampling, samples)  # (S, E)
            answers = [
                [torch.cat([tags, whole[:, None]], dim=1) for tags, whole in zip(each, values.unbind(1), strict=True)]
                for each, values in zip(answers, wholes, strict=True)
            ]
        return [
            self.episode(examples[i], windows[i], answer, logprobs)
            for i in range(len(examples))
            for answer, logprobs in zip(*(each[i].tolist() for each in answers), strict=True)
        ]

    def episode(
        self, example: Any, windows: Sequence[Window], answer: Sequence[int], logprobs: Sequence[float]
    ) -> Episode:
        tags = [self.tags[0]] * len(example.words)
        for word, k in zip((word for window in windows for word in window.words), answer, strict=not self.intents):
            tags[word] = self.tags[k]
        said = Tags(tags, self.intents[answer[-1]] if self.intents else None)
        return Episode(example, [token for window in windows for token in window.tokens], answer, logprobs, said)

    def batch(self, episodes: Sequence[Episode], device: torch.device) -> Drawn:
        found = [self.documents(episode) for episode in episodes]
        batch = pack([document for documents in found for document in documents]).to(device)
        # Losses stand in the order of heads.TokenClassifier, of all tokens and then of all sequences; draws by answers.
        sequence = torch.cat([batch.packing.sequence, torch.arange(len(batch.labels), device=device)])
        answer = torch.arange(len(found), device=device).repeat_interleave(
            torch.tensor([*map(len, found)], device=device)
        )
        at = (torch.cat([batch.targets, batch.labels]) != IGNORE).nonzero()[:, 0]
        return Drawn(batch, at[answer[sequence[at]].argsort(stable=True)], len(sequence))

    def documents(self, episode: Episode) -> list[Document]:
        """What was read, a window each, asking for what was drawn: the whole in the first one alone."""
        answer, found = iter(episode.answer), []
        for window in self.windows(episode.example):
            targets = [IGNORE] * len(window.tokens)
            for at in window.at:
                targets[at] = next(answer)
            found.append(Document(window.tokens, targets, IGNORE if self.intents else None))
        return [replace(found[0], label=next(answer)), *found[1:]] if self.intents else found


def draw_several(logits: Tensor, sampling: Sampling, samples: int) -> tuple[Tensor, Tensor]:
    """Of rows of logits (R, K): what was drawn from each, (S, R) int64, and its log p, see generate.draw."""
    drawn, logprobs = draw(logits.repeat(samples, 1), sampling)
    return drawn.view(samples, -1), logprobs.view(samples, -1)


ACTORS = {"lm": Writer, "classify": Chooser, "tag": Tagger}  # by the head of the model

"""A text for a text: translation, summaries, any prompt → answer. A GPT reads the prompt and writes the answer.

From scratch it learns a vocabulary of its own, shared by both sides, in which a token of its own stands between them.
A checkpoint brings its vocabulary, and words stand around a prompt, `--prompt-format`. Either is kept with the run's
tokenizer, so that whoever gives it a prompt need not know.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from minillm import cli, records
from minillm.baselines import copy, lead
from minillm.beam import Beams
from minillm.errors import UserError
from minillm.final_number import MARKER, last_number
from minillm.gpt import GPT
from minillm.metrics import Interval, rate, texts
from minillm.published.byte_pairs import PROMPT, learn_byte_pairs, require_subwords, set_prompt_format
from minillm.rewards import SHARED, Reward, number, of_last_turn
from minillm.tasks import files, from_scratch
from minillm.tasks.base import Example, Shape, Splits, WritingTask
from minillm.tasks.files import Fields
from minillm.tokenizer import Tokenizer
from minillm.turns import Turns, last_turn
from minillm.wording import counted

CONTEXT, LEAST_CONTEXT = 1024, 16  # tokens of a prompt with its answer, unless told otherwise
ANSWER = "<|answer|>"  # stands behind a prompt where the vocabulary is our own
FORMAT = f"{PROMPT}\n\nAnswer:\n"  # and this stands around it where the vocabulary is a checkpoint's
METRICS = {"exact": "exact", "number": "answer_accuracy", "bleu": "bleu", "rouge": "rouge_l"}  # and what counts of each
FEW_WORDS = 5  # answers that are mostly as short are right or wrong
WITHOUT_MODEL = {
    "copy": "copying the prompt",
    "lead_sentence": "the first sentence of the prompt",
    "commonest": "always the commonest answer",
}  # the names of baselines


@dataclass(frozen=True)
class Options(files.Options):
    metric: str | None = cli.option(None, "what makes a good answer (default: what suits their length)", tuple(METRICS))
    context: int | None = cli.option(None, f"most tokens of a prompt with its answer (default: {CONTEXT})")
    prompt_format: str | None = cli.option(
        None, "what stands around a prompt, with --init, such as 'Summarise: {prompt}\\nSummary:'"
    )
    max_answer_tokens: int | None = cli.option(
        None, "where an answer that the model writes is cut (default: the longest in training)"
    )
    beams: int = cli.option(1, "beginnings of an answer that are kept where held-out prompts are answered; 1: greedy")


class Seq2Seq(WritingTask):
    name = "seq2seq"
    takes_environment = True
    headline = "exact"  # or what suits the answers
    Options = Options

    def __init__(self, options: Options, seed: int):
        if options.context is not None and options.context < LEAST_CONTEXT:
            raise UserError(f"--context {options.context} must be at least {LEAST_CONTEXT}")
        cli.require_positive(options, "beams", "max_answer_tokens")
        self.beams = Beams(options.beams) if options.beams > 1 else None
        self.room = options.max_answer_tokens
        self.context, self.form = options.context, (options.prompt_format or "").replace("\\n", "\n")
        self.most_answered = CONTEXT  # tokens of an answer; what the model reads sets it
        self.splits, self.notes = load(options)
        self.metric, why = (options.metric, None) if options.metric else suitable_metric(self.splits)
        self.headline = METRICS[self.metric]
        if self.metric == "bleu":
            texts.sacrebleu()  # which may be missing: better now than after an hour's training
        self.notes = [*self.notes, *([f"--metric {self.metric}, as {why}"] if why else [])]

    def training_texts(self) -> list[str]:
        return [text for example in self.splits.train for text in (example.prompt, *example.answers)]

    def tokenizer(self) -> Tokenizer:
        tokenizer = learn_byte_pairs(self.training_texts(), from_scratch.VOCABULARY, [ANSWER])
        set_prompt_format(tokenizer, PROMPT + ANSWER)
        return tokenizer

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        if model:
            return super().recipe(model, minutes)
        return from_scratch.recipe(from_scratch.count_words(self.training_texts()), minutes)

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> GPT:
        """It reads the longest prompt with the longest answer, which is half of the context at most, as far as that is
        not beyond all bounds."""
        longest = [max(each) for each in zip(*self.lengths(tokenizer), strict=True)]
        context = self.context or min(CONTEXT, max(128, sum(longest), 2 * longest[1]))
        return from_scratch.new_model(tokenizer.vocab_size, context, shape)

    def max_answer_tokens(self, tokenizer: Tokenizer) -> int:
        """As of all who write, unless told otherwise, but never more than half of the context: the other half is the
        prompt's."""
        return min(self.room or super().max_answer_tokens(tokenizer), self.most_answered)

    def lengths(self, tokenizer: Tokenizer) -> list[tuple[int, int]]:
        """Tokens of each prompt of any split, and of its longest answer, the end included."""
        return [
            (
                len(tokenizer.prompt(example.prompt)),
                max((len(tokenizer.encode(a)) for a in example.answers), default=0) + 1,
            )
            for split in vars(self.splits).values()
            for example in split
        ]

    def adapt(self, model: GPT, tokenizer: Tokenizer) -> None:
        """Decides what stands around a prompt, unless the vocabulary remembers it, and shortens what is too long."""
        most = model.config.max_seq_len
        if self.context and self.context > most:
            raise UserError(f"--context {self.context} is more than the {counted(most, 'token')} that the model reads")
        require_subwords(tokenizer, self.name)
        if self.form or "prompt_format" not in tokenizer.config:
            set_prompt_format(tokenizer, self.form or FORMAT)
        self.shorten(tokenizer, self.context or min(most, CONTEXT))
        super().adapt(model, tokenizer)

    def shorten(self, tokenizer: Tokenizer, context: int) -> None:
        """Leaves out training answers of more than half of the context, and cuts prompts that don't fit beside the
        longest that is left."""
        self.most_answered = context // 2
        train = [within(example, tokenizer, context // 2) for example in self.splits.train]
        out = sum(len(a.answers) - len(b.answers) for a, b in zip(self.splits.train, train, strict=True))
        splits = {**vars(self.splits), "train": [example for example in train if example.answers]}
        if train and not splits["train"]:
            raise UserError(f"no answer of --train has at most {counted(context // 2, 'token')}; raise --context")
        self.splits = Splits(**splits)
        room = context - self.max_answer_tokens(tokenizer) - len(tokenizer.prompt(""))
        if room < 1:
            raise UserError(f"{context:,} tokens have no room for a prompt beside the longest answer; raise --context")
        cut = {
            name: [replace(e, prompt=beginning_of(e.prompt, tokenizer, room)) for e in split]
            for name, split in splits.items()
        }
        num_cut = sum(a.prompt != b.prompt for name in cut for a, b in zip(cut[name], splits[name], strict=True))
        self.splits = Splits(**cut)
        self.notes = [
            *self.notes,
            *([f"{counted(out, 'answer')} of over {context // 2:,} tokens left out; see --context"] if out else []),
            *([f"{counted(num_cut, 'prompt')} cut to {counted(room, 'token')}"] if num_cut else []),
        ]

    @property
    def rewards(self) -> dict[str, Reward]:
        return {name: of_last_turn(reward) for name, reward in super().rewards.items()}

    def reward(self, examples: Sequence[Example], answers: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """Of each answer by itself: 1 if it, or the number that it gives, is right, else 0; or chrF, where BLEU counts,
        and ROUGE-L, from 0 to 1."""
        if self.metric in SHARED:
            return SHARED[self.metric](examples, answers)
        name, judge = GRADED[self.metric]
        return {name: [judge(example, answer) for example, answer in zip(examples, answers, strict=True)]}

    def measure(self, examples: Sequence[Example], answers: Sequence[str | Turns]) -> dict[str, Interval]:
        """What --metric names, beside it its kin, and always how many answers are right to the last letter. Of several
        turns the last one counts."""
        references, answers = [example.answers for example in examples], [*map(last_turn, answers)]
        exact = {"exact": rate([e.is_right(a) for e, a in zip(examples, answers, strict=True)])}
        if self.metric == "bleu":
            return {"bleu": texts.bleu(references, answers), "chrf": texts.chrf(references, answers), **exact}
        if self.metric == "number":
            return {"answer_accuracy": rate([right == 1.0 for right in number(examples, answers)["number"]]), **exact}
        return (texts.rouge(references, answers) if self.metric == "rouge" else {}) | exact

    def baselines(self, examples: Sequence[Example]) -> dict[str, Interval]:
        """What needs no model: the prompt itself, its first sentence, or the answer that was commonest in training."""
        answers = (answer for example in self.splits.train for answer in example.answers)
        counts = Counter(str(last_number(answer)) if self.metric == "number" else answer for answer in answers)
        commonest = max(counts, key=counts.get, default="")
        name, guess = {
            "bleu": ("copy", copy),
            "rouge": ("lead_sentence", lead),
            "exact": ("commonest", lambda _: commonest),
            "number": ("commonest", lambda _: commonest),
        }[self.metric]
        return {name: self.measure(examples, [guess(example.prompt) for example in examples])[self.headline]}

    def remarks(self, measured: Mapping[str, Interval]) -> list[str]:
        """Where an answer that needs no model is as good."""
        for name, words in WITHOUT_MODEL.items():
            if name in measured and measured[self.headline].value <= (rule := measured[name]).value:
                return [f"{words} does as well ({rule.value:{rule.form}}): {files.MAY_HELP}"]
        return []

    def details(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Any]:
        """How BLEU was computed, for others to compare with."""
        references = [example.answers for example in examples]
        return {"bleu_signature": texts.signature("BLEU", references)} if self.metric == "bleu" else {}

    def next_command(self, folder: Path) -> str:
        return f'python -m minillm answer {shlex.quote(str(folder))} "a prompt of your own"'


def chrf(example: Example, answer: str) -> float:
    return texts.sacrebleu().CHRF().sentence_score(answer, list(example.answers)).score / 100


def rouge_l(example: Example, answer: str) -> float:
    return texts.rouge([example.answers], [answer])["rouge_l"].value


GRADED = {"bleu": ("chrf", chrf), "rouge": ("rouge_l", rouge_l)}


def within(example: Example, tokenizer: Tokenizer, limit: int) -> Example:
    """The example with those of its answers that have at most so many tokens, the end included."""
    return replace(example, answers=tuple(a for a in example.answers if len(tokenizer.encode(a)) < limit))


def beginning_of(text: str, tokenizer: Tokenizer, room: int) -> str:
    """As much of a text as has at most so many tokens."""
    ids = tokenizer.encode(text)
    if len(ids) <= room:
        return text
    while len(tokenizer.encode(text)) > room:  # what is cut may be written in more tokens than before
        ids = ids[: min(room, len(ids) - 1)]
        text = tokenizer.decode(ids).rstrip("\ufffd")  # of a letter of several tokens, which the cut went through
    return text


def suitable_metric(splits: Splits) -> tuple[str, str]:
    """The metric for these answers, and why."""
    examples = splits.train or splits.dev or splits.test
    if all(MARKER in example.answers[0] for example in examples):
        return "number", f"answers have a number behind {MARKER}"
    prompt, answer = (median(counts) for counts in zip(*map(count_words, examples), strict=True))
    if answer <= FEW_WORDS:
        return "exact", f"most answers have no more than {counted(round(answer), 'word')}"
    if answer < prompt / 2:
        return "rouge", f"answers are much shorter than prompts, {counted(round(answer), 'word')} to {prompt:.0f}"
    return "bleu", f"answers are about as long as prompts, {counted(round(answer), 'word')} to {prompt:.0f}"


def count_words(example: Example) -> tuple[int, int]:
    return len(example.prompt.split()), len(example.answers[0].split())


# ---- the data ------------------------------------------------------------------------------------


def load(options: Options) -> tuple[Splits, list[str]]:
    """Splits of examples, and notes for a person. UserError."""
    fields = Fields(options.fields, ("prompt", "answer"))
    return files.load(
        options,
        "seq2seq",
        lambda path, _: read(path, fields, may_lack=path == options.train),
        lambda example: example.prompt,
        is_answered=lambda example: bool(example.answers),
    )


def read(path: Path, fields: Fields, may_lack: bool = False) -> list[Example]:
    """The examples of a file, of which some may be prompts alone, for others to judge what the model answers."""
    name = fields.name("answer")

    def example(record: records.Record) -> Example:
        lacks = may_lack and (not fields.has(record, "answer") or record.value(name) is None)
        return Example(fields.text(record, "prompt"), () if lacks else record.texts(name))

    return records.each_told(example, records.read(path))

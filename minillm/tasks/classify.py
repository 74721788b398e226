"""Classification: which class a text, or a pair of texts, belongs to. The data is the user's own, JSONL, CSV or TSV.

Several labels at once, `--problem multi`, are in multi_label.py.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from minillm import cli, evaluate
from minillm.batching import Batch, Corpus, Document, DocumentTable
from minillm.bayes_start import JUDGED, NARROWEST, begin_as_naive_bayes, counting_tells
from minillm.errors import UserError
from minillm.heads import SequenceClassifier
from minillm.metrics import Interval, calibration_error, class_report, fitted_temperature, macro_f1, rate, ratio
from minillm.metrics.classes import TEMPERATURES
from minillm.naive_bayes import NaiveBayes
from minillm.proposals import Proposals, digest_of, proposals
from minillm.published.subwords import learn_vocabulary
from minillm.report import evenly_spaced, mistakes_table, values_of
from minillm.rewards import Reward, balanced, right_class
from minillm.run import Run
from minillm.tasks import encoders, files
from minillm.tasks.base import Judged, Shape
from minillm.tasks.classes import weights_of
from minillm.tasks.encoders import FROM_NOTHING, LONGEST, SHAPE, VOCABULARY, WIDTH
from minillm.tasks.labelled import Labelled, load
from minillm.tokenizer import Tokenizer, read_texts
from minillm.variation import AUGMENTATIONS, augmented
from minillm.wording import counted

WORST = 10
PAIRS, WEIGHTS = "learned_pairs", "learned_class_weights"  # keys of tokenizer_config.json


@dataclass(frozen=True)
class Options(encoders.Options):
    problem: str = cli.option(
        "single",
        "of one class each, or of any number of labels: a list, or in a table names joined by | (or by ; or , where "
        "the file has no |); an empty one means that none applies",
        choices=("single", "multi"),
    )
    class_weights: str | None = cli.option(
        None, "how much an example of each class counts: neg=1,pos=3, or balanced, all classes alike in sum"
    )
    augment: str | None = cli.option(
        None,
        "learn in every epoch from other variants of the texts: words left out, swapped, or replaced by what a model "
        "that fills in masks proposes",
        (*AUGMENTATIONS, "mask"),
    )
    augment_model: Path | None = cli.option(None, "which model that is, for --augment mask")
    calibrate: bool = cli.option(
        False,
        "at the end scale the last product by a temperature, so that probabilities on the dev set mean what they say",
    )


class Prediction(NamedTuple):
    label: str
    probability: float


class Classify(Judged):
    name = "classify"
    headline = "accuracy"
    lower_is_better = False
    head = "classify"
    is_redrawn, counts_examples = False, True
    looks_first, glance = True, 1000
    Options = Options
    class_weights: Mapping[str, float] = {}  # empty: all alike
    is_calibrated, temperature = False, 1.0
    counts_first = False  # whether the model begins as naive Bayes
    augment: str | None = None
    augment_model: Path | None = None
    problems: ClassVar[dict[str, type["Classify"]]] = {}  # by --problem; who they are is told in tasks/__init__.py
    guess, guessed = "majority", "class"  # what is right without reading: that baseline, and what it says

    def __new__(cls, options: Options, seed: int) -> "Classify":
        """The task that --problem names."""
        return super().__new__(Classify.problems.get(options.problem, cls) if cls is Classify else cls)

    def __init__(self, options: Options, seed: int):
        """The task from files. Texts that are held out are never trained on, also where the files overlap."""
        self.take(options)
        self.splits, self.classes, self.notes = load(options)
        counts = Counter(example.label for example in self.splits.train)
        self.majority = max(self.classes, key=lambda name: counts[name])  # in training: the guess without reading
        self.practised = counts + Counter(example.label for example in self.splits.unlabelled)
        self.limit, self.vocab_size = LONGEST, None
        self.weigh(weights_of(options.class_weights, counts) if self.splits.train else {})

    def weigh(self, weights: Mapping[str, float]) -> None:
        self.class_weights = weights
        self.headline = "weighted_accuracy" if weights else type(self).headline

    def take(self, options: Options) -> None:
        """The options that are the same whatever the labels are."""
        if (options.augment == "mask") != (options.augment_model is not None):
            raise UserError("--augment mask and --augment-model MODEL go together: give both, or neither")
        self.kind, self.is_calibrated, self.augment = options.model, options.calibrate, options.augment
        self.augment_model, self.is_redrawn = options.augment_model, options.augment is not None

    @cached_property
    def naive_bayes(self) -> NaiveBayes:
        train = self.splits.train
        return NaiveBayes([example.texts for example in train], [example.label for example in train])

    @cached_property
    def proposals(self) -> Proposals:
        return proposals(self.augment_model, [text for example in self.splits.train for text in example.texts])

    @property
    def sources(self) -> dict[str, Sequence[str]]:
        return {"augment model": [digest_of(self.augment_model)]} if self.augment_model and self.splits.train else {}

    def varied(self, text: str, rng: np.random.Generator) -> str:
        return self.proposals(text, rng) if self.augment == "mask" else augmented(text, self.augment, rng)

    def tokenizer(self) -> Tokenizer:
        texts = [text for example in self.splits.train for text in example.texts]
        tokenizer = learn_vocabulary(texts, VOCABULARY)
        encoders.without_segments(tokenizer, self.kind)
        self.vocab_size = tokenizer.vocab_size
        if self.head == "classify" and self.kind in (None, "modernbert") and not self.is_of_pairs:
            some = evenly_spaced(self.splits.train, JUDGED)  # each of one class, and a mean over tokens can say which
            table = DocumentTable([self.documents(example, tokenizer, None) for example in some])
            self.counts_first = (self.width or WIDTH) >= NARROWEST and counting_tells(table, len(self.classes))
        return tokenizer

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        """A published model learns slowly, as does one that begins as naive Bayes, others faster. Few texts need a
        least number of steps, many a most; of all looks at the dev set, that before the first step included, the best
        counts, and five that bring nothing end the training."""
        encoders.refuse_beside_init(self.kind, model)
        count = len(self.splits.train)
        both = {"optimizer": "adamw-head", "warmup": 0.06, "evaluations": 12, "keep": "best", "patience": 5}
        if model:
            rates = {"lr": 6e-5, "embedding_lr": 1e-3, "dropout": 0.1}
            return {**both, **rates, "batch_examples": 32, "epochs": encoders.epochs(4.0, count, 32, 150, 10_000)}
        rates = {"lr": 5e-5, "embedding_lr": 5e-5} if self.counts_first else FROM_NOTHING
        return {**both, **SHAPE, **rates, "batch_examples": 64, "epochs": encoders.epochs(6.0, count, 64, 400, 6000)}

    def rl_recipe(self, model: nn.Module | None) -> dict[str, Any]:
        rates = {"lr": 6e-5, "embedding_lr": 1e-3} if model else {"lr": 5e-4, "embedding_lr": 5e-4}
        both = {"optimizer": "adamw-head", "warmup": 0.06, "temperature": 1.0, "sft_share": 0.0}
        return {**both, **rates, "prompts": 32, "samples": 4, "minutes": 5.0}

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> SequenceClassifier:
        return SequenceClassifier(encoders.new_config(self.kind, tokenizer.vocab_size, shape), self.classes)

    def adapt(self, model: SequenceClassifier, tokenizer: Tokenizer) -> None:
        """Take over the order of the model's classes and what it reads of a text; keep for later whether of pairs, and
        how much each class counted, by which it is measured then, too."""
        if not self.splits.train and isinstance(learned := tokenizer.config.get(WEIGHTS), dict):
            self.weigh({str(name): float(weight) for name, weight in learned.items()})
        tokenizer.config = {**tokenizer.config, PAIRS: self.is_of_pairs, WEIGHTS: dict(self.class_weights)}
        self.classes, self.limit, self.vocab_size = list(model.classes), model.max_seq_len, model.config.vocab_size
        examples = [example for split in vars(self.splits).values() for example in split]
        num_cut = sum(len(tokens) > self.limit for tokens, _ in self.read(examples, tokenizer, limit=None))
        if num_cut:
            longer = counted(num_cut, "text is", "texts are")
            self.notes = [*self.notes, f"{longer} longer than {counted(self.limit, 'token')}; what is beyond is cut"]

    def begin(self, model: SequenceClassifier, corpus: Corpus, run: Run) -> None:
        if self.counts_first:
            begin_as_naive_bayes(model, corpus.table)
            self.notes = [*self.notes, "the model begins as naive Bayes over its tokens: step 0 is good already"]
            if self.class_weights:  # as if each class had so many times its texts
                model.classifier.bias.data += self.weight_of_class().log().to(model.classifier.bias)

    def read(
        self, examples: Sequence[Labelled], tokenizer: Tokenizer, limit: int | None
    ) -> list[tuple[list[int], list[int]]]:
        return read_texts(tokenizer, [example.texts for example in examples], self.vocab_size, limit)

    def documents(self, example: Labelled, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        if rng is not None:
            example = replace(example, texts=tuple(self.varied(text, rng) for text in example.texts))
        ((tokens, segments),) = self.read([example], tokenizer, self.limit)
        return [Document(tokens, label=self.label_of(example), segments=segments)]

    def label_of(self, example: Labelled) -> int:
        return self.classes.index(example.label)

    def importance(self, batch: Batch) -> Tensor | float:
        """Of every text, the weight of its class: the loss of a step is their weighted mean."""
        if not self.class_weights:
            return 1.0
        return self.weight_of_class().to(batch.labels.device)[batch.labels]

    def weight_of_class(self) -> Tensor:
        """(K,), in the model's order."""
        return torch.tensor([self.class_weights.get(name, 1.0) for name in self.classes])

    def count(self, batch: Batch) -> float:
        return float(self.importance(batch).sum()) if self.class_weights else batch.count

    def calibrate(self, model: SequenceClassifier, tokenizer: Tokenizer) -> None:
        """Puts the temperature into the last product, so that whoever reads the model has it."""
        if self.is_calibrated:
            dev = self.splits.dev
            logits = evaluate.read(model, tokenizer, [example.texts for example in dev])
            found = self.temperature_of(logits, [self.label_of(example) for example in dev])
            least, most = TEMPERATURES  # at which no answer is wrong, or they are no better than any
            self.temperature = found if 1.01 * least < found < most / 1.01 else 1.0
            for parameter in model.classifier.parameters():
                parameter.data.div_(self.temperature)

    def temperature_of(self, logits: np.ndarray, labels: Sequence[Any]) -> float:
        return fitted_temperature(logits, np.array(labels))

    def answer(self, model: SequenceClassifier, tokenizer: Tokenizer, examples: Sequence[Labelled]) -> list[Prediction]:
        probabilities = evaluate.classify(model, tokenizer, [example.texts for example in examples])
        best = probabilities.argmax(axis=1)
        return [Prediction(model.classes[k], float(p[k])) for k, p in zip(best, probabilities, strict=True)]

    def reward(self, examples: Sequence[Labelled], answers: Sequence[Prediction]) -> dict[str, list[float]]:
        return right_class(examples, list(map(self.said, answers)))

    def said(self, answer: Prediction) -> str:
        return answer.label

    @property
    def rewards(self) -> dict[str, Reward]:
        """Of classes that were drawn."""
        return {"right": right_class, "balanced": balanced(self.practised)}

    def measure(self, examples: Sequence[Labelled], answers: Sequence[Prediction]) -> dict[str, Interval]:
        """With --class-weights first the accuracy with these weights, which is then what the training is after: by the
        plain one the best of its looks would be that at which the weights had changed least."""
        truth = [example.label for example in examples]
        right = [answer.label == label for answer, label in zip(answers, truth, strict=True)]
        return {
            self.headline: self.share_of_right(examples, right),
            "accuracy": rate(right),
            "macro_f1": macro_f1(truth, [answer.label for answer in answers]),
            "calibration_error": calibration_error([answer.probability for answer in answers], right),
        }

    def share_of_right(self, examples: Sequence[Labelled], right: Sequence[bool]) -> Interval:
        """The accuracy; with --class-weights each example counts as much as it does in training."""
        if not self.class_weights:
            return rate(right)
        weights = np.array([self.class_weights.get(example.label, 1.0) for example in examples])
        return ratio(weights * right, weights, ceiling=1.0)

    def baselines(self, examples: Sequence[Labelled]) -> dict[str, Interval]:
        """What naive Bayes gets right, and always the commonest class of training; as the headline counts."""
        counted = [self.naive_bayes.answer(e.texts) == e.label for e in examples]
        always = [e.label == self.majority for e in examples]
        return {
            "naive_bayes": self.share_of_right(examples, counted),
            "majority": self.share_of_right(examples, always),
        }

    def remarks(self, measured: dict[str, Interval]) -> list[str]:
        return [*self.remarks_on_calibration(), *self.remarks_on_rules(measured)]

    def remarks_on_calibration(self) -> list[str]:
        if not self.is_calibrated:
            return []
        if self.temperature == 1:
            why = "on dev no answer is wrong, or they are no better than chance, so that there is nothing to learn"
            return [f"--calibrate left the model as it is: {why}"]
        what = "how well its probabilities fit can be told from other examples only, such as those of --test"
        return [f"the last product was divided by the temperature {self.temperature:.3g}, fitted on dev: {what}"]

    def remarks_on_rules(self, measured: dict[str, Interval]) -> list[str]:
        """Where nothing, or less than by counting words, was learned."""
        accuracy, majority, bayes = (measured[name] for name in (self.headline, self.guess, "naive_bayes"))
        if accuracy.low <= majority.value:
            commonest = f"{self.majority!r}, the commonest {self.guessed}"
            return [f"this is hardly better than always answering {commonest}: {files.MAY_HELP}"]
        if accuracy.value < bayes.value:
            return [f"naive Bayes, which only counts words, does better here ({bayes.value:.1%}): {files.MAY_HELP}"]
        return []

    def details(self, examples: Sequence[Labelled], answers: Sequence[Prediction]) -> dict[str, Any]:
        """What else is worth keeping: who is taken for whom, and the worst mistakes."""
        confusion: dict[str, Counter[str]] = {name: Counter() for name in self.classes}
        for example, answer in zip(examples, answers, strict=True):
            confusion[example.label][answer.label] += 1
        worst = [
            {"texts": example.texts, "label": example.label, "answer": answer.label, "probability": answer.probability}
            for example, answer in worst_mistakes(examples, answers)
        ]
        report = class_report([example.label for example in examples], [answer.label for answer in answers])
        return {"confusion": confusion, "by_class": values_of(report), "worst_mistakes": worst}

    def table(self, examples: Sequence[Labelled], answers: Sequence[Prediction]) -> Table:
        return mistakes_table(worst_mistakes(examples, answers), "the mistakes that it was surest of")

    @property
    def is_of_pairs(self) -> bool:
        examples = self.splits.train or self.splits.dev or self.splits.test
        return bool(examples) and len(examples[0].texts) == 2

    def next_command(self, folder: Path) -> str:
        """Of a task of pairs, both texts are one word for the shell, with a tab between them."""
        texts = r"--pairs $'a text\tanother'" if self.is_of_pairs else '"a text of your own"'
        return f"python -m minillm classify {shlex.quote(str(folder))} {texts}"


def worst_mistakes(examples: Sequence[Labelled], answers: Sequence[Prediction]) -> list[tuple[Labelled, Prediction]]:
    """The wrong answers that the classifier was surest of, the surest first."""
    wrong = [pair for pair in zip(examples, answers, strict=True) if pair[0].label != pair[1].label]
    return sorted(wrong, key=lambda pair: -pair[1].probability)[:WORST]

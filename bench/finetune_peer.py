"""The peer in bench/finetune.py: transformers fine-tunes the same weights on the same examples, in its own process.

    python bench/finetune_peer.py FOLDER

FOLDER holds spec.json; answers.json is written beside it. A new task is a class with three functions, as below.

Letters: B examples of a batch, T tokens of the longest.
"""

import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

LONGEST = 512


class Tag:
    """As run_ner.py has it: the first piece of a word bears its tag. A class of the whole, which transformers has no
    head for, is read from the first token, and its loss is added (Chen, Zhuo and Wang 2019, arXiv:1902.10909)."""

    def __init__(self, spec: SimpleNamespace):
        self.spec = spec
        self.tokenizer = AutoTokenizer.from_pretrained(spec.init)
        self.model = AutoModelForTokenClassification.from_pretrained(spec.init, num_labels=len(spec.classes))
        if spec.sequence_classes:
            self.model.sequence_classifier = nn.Linear(self.model.config.hidden_size, len(spec.sequence_classes))

    def batch(self, examples: list[dict]) -> tuple[Any, Tensor]:
        """What the tokenizer makes of the words, and which word each token is the first of, (B, T); −1 for others."""
        words = [example["words"] for example in examples]
        given = self.tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt"
        )
        rows = [given.word_ids(i) for i in range(len(words))]
        first = [[w if w is not None and w != before else -1 for before, w in zip([None, *r], r)] for r in rows]  # noqa: B905
        return given, torch.tensor(first)

    def logits(self, given: Any) -> tuple[Tensor, Tensor | None]:
        hidden = self.model.dropout(self.model.base_model(**given).last_hidden_state)
        whole = self.model.sequence_classifier(hidden[:, 0]) if self.spec.sequence_classes else None
        return self.model.classifier(hidden), whole

    def loss(self, examples: list[dict]) -> Tensor:
        given, first = self.batch(examples)
        number = {name: k for k, name in enumerate(self.spec.classes)}
        rows = zip(first.tolist(), examples, strict=True)
        targets = torch.tensor([[number[e["tags"][w]] if w >= 0 else -100 for w in row] for row, e in rows])
        logits, whole = self.logits(given)
        loss, count = (
            F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum"),
            (first >= 0).sum(),
        )
        if whole is not None:
            labels = torch.tensor([self.spec.sequence_classes.index(example["label"]) for example in examples])
            loss, count = loss + F.cross_entropy(whole.float(), labels, reduction="sum"), count + len(labels)
        return loss / count

    def answers(self, examples: list[dict]) -> list[dict]:
        given, first = self.batch(examples)
        logits, whole = self.logits(given)
        found = []
        for i, example in enumerate(examples):
            tags = ["O"] * len(example["words"])  # of words that the tokenizer cut off, too
            for w, k in zip(first[i].tolist(), logits[i].argmax(-1).tolist(), strict=True):
                if w >= 0:
                    tags[w] = self.spec.classes[k]
            label = None if whole is None else self.spec.sequence_classes[int(whole[i].argmax())]
            found.append({"tags": tags, "label": label})
        return found


class Classify:
    """As run_glue.py has it."""

    def __init__(self, spec: SimpleNamespace):
        self.spec = spec
        self.tokenizer = AutoTokenizer.from_pretrained(spec.init)
        self.model = AutoModelForSequenceClassification.from_pretrained(spec.init, num_labels=len(spec.classes))

    def logits(self, examples: list[dict]) -> Tensor:
        columns = [list(column) for column in zip(*(example["texts"] for example in examples), strict=True)]
        given = self.tokenizer(*columns, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt")
        return self.model(**given).logits.float()

    def loss(self, examples: list[dict]) -> Tensor:
        labels = torch.tensor([self.spec.classes.index(example["label"]) for example in examples])
        return F.cross_entropy(self.logits(examples), labels)

    def answers(self, examples: list[dict]) -> list[dict]:
        return [{"label": self.spec.classes[k]} for k in self.logits(examples).argmax(-1).tolist()]


TASKS = {"tag": Tag, "classify": Classify}


def optimizer_of(model: nn.Module, spec: SimpleNamespace, steps: int) -> tuple[Any, Any]:
    """One rate for the encoder, one for the head; both rise, then fall to nothing."""
    body = {id(p) for p in model.base_model.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in body], "lr": spec.lr},
        {"params": [p for p in model.parameters() if id(p) not in body], "lr": spec.embedding_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    rise = max(1, round(spec.warmup * steps))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))
    )


@torch.inference_mode()
def answers_of(task: Any, spec: SimpleNamespace) -> list[dict]:
    task.model.eval()
    parts = [spec.dev[i : i + spec.batch_examples] for i in range(0, len(spec.dev), spec.batch_examples)]
    with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
        found = [answer for part in parts for answer in task.answers(part)]
    task.model.train()
    return found


def score(found: list[dict], spec: SimpleNamespace) -> float:
    """What the best look is chosen by: words with the right tag, or texts with the right class."""
    pairs = zip(found, spec.dev, strict=True)
    if spec.task == "tag":
        right = [a == b for x, y in pairs for a, b in zip(x["tags"], y["tags"], strict=True)]
    else:
        right = [x["label"] == y["label"] for x, y in pairs]
    return sum(right) / len(right)


def main() -> None:
    folder = Path(sys.argv[1])
    spec = SimpleNamespace(**json.loads((folder / "spec.json").read_text()))
    torch.manual_seed(spec.seed)
    task, rng = TASKS[spec.task](spec), random.Random(spec.seed)
    task.model.train()
    per_epoch = math.ceil(len(spec.train) / spec.batch_examples)
    steps = max(1, round(spec.epochs * per_epoch))
    looks = {round(steps * (i + 1) / spec.evaluations) for i in range(spec.evaluations)} | {steps}
    optimizer, schedule = optimizer_of(task.model, spec, steps)
    order: list[dict] = []
    best, kept = -1.0, None
    for step in range(1, steps + 1):
        order = order or rng.sample(spec.train, len(spec.train))
        examples, order = order[: spec.batch_examples], order[spec.batch_examples :]
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
            loss = task.loss(examples)
        loss.backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step in looks and (value := score(found := answers_of(task, spec), spec)) > best:
            best, kept = value, found
    (folder / "answers.json").write_text(json.dumps(kept))


if __name__ == "__main__":
    main()

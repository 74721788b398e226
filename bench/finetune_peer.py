"""The peer in bench/finetune.py: transformers fine-tunes the same weights on the same examples, in its own process.

    python bench/finetune_peer.py FOLDER

FOLDER holds spec.json; answers.json is written beside it. A new task is a class with `loss`, `answers` and `good`, how
good an answer is, by the mean of which the best look is chosen.

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
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

LONGEST = 512
IGNORED = -100


class Peer:
    """What most of them have in common."""

    batch_answered: int | None = None  # examples at once; as many as in a step

    def finish(self) -> None:
        """Called when nothing is trained any more, before the last look."""


class Tag(Peer):
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
        targets = torch.tensor([[number[e["tags"][w]] if w >= 0 else IGNORED for w in row] for row, e in rows])
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

    def good(self, answer: dict, example: dict) -> float:
        return sum(a == b for a, b in zip(answer["tags"], example["tags"], strict=True)) / len(example["tags"])


class Whole(Peer):
    """One text or a pair of them, and what is said of the whole, as run_glue.py has it."""

    def __init__(self, spec: SimpleNamespace):
        self.spec = spec
        self.tokenizer = AutoTokenizer.from_pretrained(spec.init)
        self.model = AutoModelForSequenceClassification.from_pretrained(spec.init, num_labels=len(spec.classes))

    def logits(self, columns: list[list[str]]) -> Tensor:
        """Of texts, or of pairs as two columns: (B, classes)."""
        given = self.tokenizer(*columns, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt")
        return self.model(**given).logits.float()

    def of_texts(self, examples: list[dict]) -> Tensor:
        return self.logits([list(column) for column in zip(*(example["texts"] for example in examples), strict=True)])


class Classify(Whole):
    def loss(self, examples: list[dict]) -> Tensor:
        labels = torch.tensor([self.spec.classes.index(example["label"]) for example in examples])
        return F.cross_entropy(self.of_texts(examples), labels)

    def answers(self, examples: list[dict]) -> list[dict]:
        return [{"label": self.spec.classes[k]} for k in self.of_texts(examples).argmax(-1).tolist()]

    def good(self, answer: dict, example: dict) -> float:
        return float(answer["label"] == example["label"])


class Regress(Whole):
    """The squared error of the labels as they are."""

    def loss(self, examples: list[dict]) -> Tensor:
        return F.mse_loss(self.of_texts(examples)[:, 0], torch.tensor([float(e["label"]) for e in examples]))

    def answers(self, examples: list[dict]) -> list[dict]:
        return [{"value": value} for value in self.of_texts(examples)[:, 0].tolist()]

    def good(self, answer: dict, example: dict) -> float:
        return -((answer["value"] - example["label"]) ** 2)


class Prefer(Whole):
    """One number for a prompt with an answer; the difference of two is learned, as TRL's RewardTrainer has it."""

    def scores(self, examples: list[dict]) -> tuple[Tensor, Tensor]:
        prompts = [example["prompt"] for example in examples]
        answers = [example[which] for which in ("chosen", "rejected") for example in examples]
        return self.logits([prompts + prompts, answers])[:, 0].chunk(2)

    def loss(self, examples: list[dict]) -> Tensor:
        chosen, rejected = self.scores(examples)
        return -F.logsigmoid(chosen - rejected).mean()

    def answers(self, examples: list[dict]) -> list[dict]:
        pairs = zip(*(part.tolist() for part in self.scores(examples)), strict=True)
        return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]

    def good(self, answer: dict, example: dict) -> float:
        return float(answer["chosen"] > answer["rejected"])


class Write(Peer):
    """What is learned is said behind what is read; LoRA beside every linear layer of weights that stay as they are, in
    the precision of the activations, or they were cast anew for every token that is written."""

    def __init__(self, spec: SimpleNamespace):
        from peft import LoraConfig, get_peft_model

        self.spec, path = spec, Path(spec.init)
        where = {"gguf_file": path.name} if path.is_file() else {}
        dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(path.parent if where else path, dtype=dtype, **where)
        pairs = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(model, pairs)

    def losses(self, examples: list[dict]) -> tuple[Tensor, Tensor]:
        """−log p of every target, (B, T), 0 where nothing is asked; and how many are, (B)."""
        longest = max(len(example["tokens"]) for example in examples)
        pads = [longest - len(example["tokens"]) for example in examples]
        ids = torch.tensor([e["tokens"] + [0] * pad for e, pad in zip(examples, pads, strict=True)])
        targets = torch.tensor([e["targets"] + [IGNORED] * pad for e, pad in zip(examples, pads, strict=True)])
        mask = torch.tensor([[1] * (longest - pad) + [0] * pad for pad in pads])
        logits = self.model(input_ids=ids, attention_mask=mask).logits.float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view_as(targets), (targets != IGNORED).sum(1)

    def loss(self, examples: list[dict]) -> Tensor:
        losses, counts = self.losses(examples)
        return losses.sum() / counts.sum()

    def good(self, answer: dict, example: dict) -> float:
        return 0.0  # there is one look


class Chat(Write):
    def answers(self, examples: list[dict]) -> list[dict]:
        losses, counts = self.losses(examples)
        return [{"nats": n, "tokens": k} for n, k in zip(losses.sum(1).tolist(), counts.tolist(), strict=True)]


class Seq2Seq(Write):
    batch_answered = 32

    def finish(self) -> None:
        """What was learned becomes part of the weights."""
        self.model = self.model.merge_and_unload()

    def answers(self, examples: list[dict]) -> list[dict]:
        """Greedy, prompts padded on their left."""
        stops = self.spec.stops
        longest = max(len(example["prompt"]) for example in examples)
        pads = [longest - len(example["prompt"]) for example in examples]
        ids = torch.tensor([[stops[0]] * pad + e["prompt"] for e, pad in zip(examples, pads, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        how = {"do_sample": False, "max_new_tokens": self.spec.new, "eos_token_id": stops, "pad_token_id": stops[0]}
        rows = self.model.generate(input_ids=ids, attention_mask=mask, **how)[:, longest:].tolist()
        ends = [next((i for i, token in enumerate(row) if token in stops), len(row)) for row in rows]
        return [{"written": row[:end]} for row, end in zip(rows, ends, strict=True)]


TASKS = {"tag": Tag, "classify": Classify, "regress": Regress, "preference": Prefer, "chat": Chat, "seq2seq": Seq2Seq}


def optimizer_of(model: nn.Module, spec: SimpleNamespace, steps: int) -> tuple[Any, Any]:
    """One rate for the encoder, one for the head, as far as they learn; both rise, then fall to nothing."""
    learned = [p for p in model.parameters() if p.requires_grad]
    body = {id(p) for p in model.base_model.parameters()}
    groups = [
        {"params": [p for p in learned if id(p) in body], "lr": spec.lr},
        {"params": [p for p in learned if id(p) not in body], "lr": spec.embedding_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    rise = max(1, round(spec.warmup * steps))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))
    )


@torch.inference_mode()
def answers_of(task: Any, spec: SimpleNamespace) -> list[dict]:
    """In the order of the examples; read in that of their lengths, where the task knows them."""
    task.model.eval()
    order = sorted(range(len(spec.dev)), key=lambda i: len(spec.dev[i].get("tokens", ())))
    size, found = task.batch_answered or spec.batch_examples, {}
    with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
        for start in range(0, len(order), size):
            some = order[start : start + size]
            found |= dict(zip(some, task.answers([spec.dev[i] for i in some]), strict=True))
    task.model.train()
    return [found[i] for i in range(len(order))]


def score(task: Any, found: list[dict], spec: SimpleNamespace) -> float:
    good = [task.good(answer, example) for answer, example in zip(found, spec.dev, strict=True)]
    return sum(good) / len(good)


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
    best, kept = -math.inf, None
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
        if step == steps:
            task.finish()
        if step in looks and (value := score(task, found := answers_of(task, spec), spec)) > best:
            best, kept = value, found
    (folder / "answers.json").write_text(json.dumps(kept))


if __name__ == "__main__":
    main()

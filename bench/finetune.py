"""Published weights fine-tuned from end to end: the figure on the dev set, and the time, of transformers and of ours.

    python bench/finetune.py --data FOLDER                         # every case, one after the other: hours
    python bench/finetune.py --data FOLDER --only SNIPS --epochs 2
    python bench/finetune.py --data FOLDER --encoder MODEL --only SST-2

FOLDER has a folder for each case with train.jsonl and dev.jsonl. What reads starts from MiniLM, what writes from
SmolLM2-135M with LoRA, as their packages bring them; --encoder and --decoder name others. Both sides start from the
same weights and see the same examples for as many epochs, in batches of as many, at the same learning rates. What reads
keeps the best of as many looks at the dev set; what writes is looked at once, at the end. Ours is train_sft.py as it
comes. The peer is transformers as its examples use it: AdamW, batches padded to their longest, peft for LoRA. Each side
is a process of its own; the time is that of the whole process. Both sides' answers are measured by the same functions,
on all of the dev set.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness  # first: puts the repository root on the path
import report
import trainings

from minillm.lora import ALPHA
from minillm.metrics import Interval
from minillm.published.checkpoint import resolve
from minillm.start import adapt, complete, open_start, recipe_of
from minillm.tagging import Tagged
from minillm.tasks import TASKS
from minillm.tasks.base import Task
from minillm.tasks.chat import Reply
from minillm.tasks.classify import Prediction
from minillm.tasks.preference import Judged
from minillm.tasks.regress import Estimate
from minillm.tokenizer import Tokenizer
from train_sft import Args

BENCH = Path(__file__).resolve().parent
RANK = 16  # of LoRA


class Case(NamedTuple):
    name: str
    task: str
    folder: str  # in FOLDER
    fields: str | None = None
    made: Callable[[dict], dict] | None = None  # of a record, where the file has others

    @property
    def writes(self) -> bool:
        return self.task in ("seq2seq", "chat")


def size_of_answer(record: Mapping[str, Any]) -> dict[str, Any]:
    """The logarithm, as answers go from 0 to millions."""
    return {"text": record["question"], "label": math.log1p(abs(float(record["answer"])))}


CASES = (
    Case("WNUT-17 entities", "tag", "ner_wnut17"),
    Case("SST-2", "classify", "sentiment_sst2"),
    Case("MR", "classify", "sentiment_mr"),
    Case("SNIPS slots + intents", "tag", "slots_snips"),
    Case("SST's classes as numbers", "regress", "sentiment_sst2"),
    Case("MAWPS, size of the answer", "regress", "math_mawps", made=size_of_answer),
    Case("politeness pairs", "preference", "pref_polite", "prompt=instruction+input"),
    Case("PandaLM pairs", "preference", "pref_pandalm", "prompt=instruction+input"),
    Case("instructions", "chat", "sft_instructions", "prompt=instruction+input,answer=output"),
    Case("SciTLDR", "seq2seq", "summ_scitldr", "prompt=text,answer=summary"),
)


# ---- what the peer is told of an example, and what its answer to one is to us, by task ----------------


def told_texts(task: Task, tokenizer: Tokenizer, example: Any) -> dict[str, Any]:
    return {"texts": example.texts, "label": example.label}


def told_words(task: Task, tokenizer: Tokenizer, example: Any) -> dict[str, Any]:
    return {"words": example.words, "tags": example.tags, "label": example.intent}


def told_pair(task: Task, tokenizer: Tokenizer, example: Any) -> dict[str, Any]:
    return {"prompt": example.prompt, "chosen": example.chosen, "rejected": example.rejected}


def told_tokens(task: Task, tokenizer: Tokenizer, example: Any) -> dict[str, Any]:
    """What stands around prompts and answers is no part of the comparison."""
    document = task.documents(example, tokenizer, None)[0]
    prompt = tokenizer.prompt(example.prompt) if task.name == "seq2seq" else []
    return {"tokens": list(document.tokens), "targets": list(document.targets), "prompt": prompt}


TOLD = {
    "tag": told_words,
    "classify": told_texts,
    "regress": told_texts,
    "preference": told_pair,
    "chat": told_tokens,
    "seq2seq": told_tokens,
}
ANSWER: Mapping[str, Callable[[Any, Tokenizer], Any]] = {
    "tag": lambda answer, _: Tagged(answer["tags"], [], answer["label"], None),
    "classify": lambda answer, _: Prediction(answer["label"], 1.0),
    "regress": lambda answer, _: Estimate(answer["value"]),
    "preference": lambda answer, _: Judged(answer["chosen"], answer["rejected"]),
    "chat": lambda answer, _: Reply(answer["nats"], answer["tokens"]),
    "seq2seq": lambda answer, tokenizer: tokenizer.decode(answer["written"]),
}


# ---- both sides ----------------------------------------------------------------------------------------


def files_of(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The data, made where it is to be made."""
    files = {name: args.data / case.folder / f"{name}.jsonl" for name in ("train", "dev")}
    for name, path in files.items() if case.made else ():
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(case.made(r)) + "\n" for r in trainings.records_of(path)))
    return files


def options_of(case: Case) -> dict[str, Any]:
    """Of train_sft.py, besides the data and what is the same for all cases."""
    return {"lora": RANK, "evaluations": 1} if case.writes else {}


def start_of(case: Case, args: argparse.Namespace) -> Path:
    start, option = (args.decoder, "--decoder") if case.writes else (args.encoder, "--encoder")
    if not start:
        sys.exit(f"{case.name} needs a model to start from: give {option}")
    return resolve(start)


class Plan(NamedTuple):
    """What both sides do."""

    case: Case
    files: Mapping[str, Path]
    task: Task
    tokenizer: Tokenizer
    options: Args  # of train_sft.py, complete


def plan_of(case: Case, args: argparse.Namespace, folder: Path) -> Plan:
    files, start = files_of(case, args, folder), start_of(case, args)
    task = TASKS[case.task](TASKS[case.task].Options(**files, fields=case.fields), args.seed)
    model, tokenizer = open_start(start, task)
    given = Args(**options_of(case), epochs=args.epochs, init=start, seed=args.seed, precision=args.precision)
    options = complete(given, recipe_of(task, model, given))
    adapt(task, model, tokenizer, start)
    return Plan(case, files, task, tokenizer, options)


def ours(plan: Plan, folder: Path) -> dict[str, Any]:
    """train_sft.py on the command line."""
    given = {name: vars(plan.options)[name] for name in ("init", "epochs", "seed", "precision")}
    given |= {"task": plan.case.task, "fields": plan.case.fields, "out": folder / "run"}
    command = [sys.executable, harness.ROOT / "train_sft.py"]
    for name, value in {**given, **plan.files, **options_of(plan.case)}.items():
        command += [f"--{name}", value] if value is not None else []
    seconds = timed(command)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    names = [name for name in metrics if name.startswith("dev_") and f"{name}_high" in metrics]
    measured = {
        name.removeprefix("dev_"): Interval(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])
        for name in names
    }
    return row(plan, "ours", measured, seconds)


def peers(plan: Plan, folder: Path) -> dict[str, Any]:
    """transformers, in a process that never sees this repository."""
    task, tokenizer, options, name = plan.task, plan.tokenizer, plan.options, plan.case.task
    told = {
        split: [TOLD[name](task, tokenizer, example) for example in vars(task.splits)[split]]
        for split in ("train", "dev")
    }
    same = ("lr", "embedding_lr", "warmup", "epochs", "evaluations", "seed", "precision")
    spec = {"task": name, "init": str(options.init), **{option: vars(options)[option] for option in same}, **told}
    spec |= {"classes": task.classes, "sequence_classes": list(task.sequence_classes)}
    spec["batch_examples"] = options.batch_examples or as_many_as(options.batch_tokens, told["train"])
    if plan.case.writes:
        new = task.max_answer_tokens(tokenizer) if name == "seq2seq" else 0
        spec |= {"rank": RANK, "alpha": ALPHA, "new": new, "stops": sorted(tokenizer.stops)}
    (folder / "spec.json").write_text(json.dumps(spec))
    seconds = timed([sys.executable, BENCH / "finetune_peer.py", folder])
    answers = [ANSWER[name](answer, tokenizer) for answer in json.loads((folder / "answers.json").read_text())]
    return row(plan, "transformers", task.measure(task.splits.dev, answers), seconds)


def as_many_as(tokens: int, told: Sequence[Mapping[str, Any]]) -> int:
    """Examples of so many tokens."""
    return max(1, round(tokens * len(told) / sum(len(example["tokens"]) for example in told)))


def timed(command: Sequence[object]) -> float:
    start = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, env=harness.ENVIRONMENT, cwd=BENCH, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def row(plan: Plan, provider: str, measured: Mapping[str, Interval], seconds: float) -> dict[str, Any]:
    metrics = {name: list(interval) for name, interval in measured.items()}
    ran = {"seconds": seconds, "epochs": plan.options.epochs, "seed": plan.options.seed}
    return {"case": plan.case.name, "provider": provider, "metrics": metrics, **ran}


def main() -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--encoder", default=trainings.minilm(), help="what reads: a folder in Hugging Face's layout")
    parser.add_argument("--decoder", default=trainings.smollm2(), help="what writes: such a folder, or a .gguf file")
    parser.add_argument("--data", type=Path, default=trainings.DATA, help="the folder of the data sets")
    parser.add_argument("--epochs", type=float, help="instead of what our recipe says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the activations, both sides'")
    args = parser.parse_args()
    args.data = args.data.resolve()  # both sides work in another folder
    args.encoder, args.decoder = trainings.absolute(args.encoder), trainings.absolute(args.decoder)
    device, rows = harness.device_of(args), []
    environment = harness.environment(device)
    out = args.out or report.RESULTS / f"finetune_{report.slug(str(environment['device']))}"
    for case in (case for case in CASES if args.only in case.name):
        with tempfile.TemporaryDirectory() as name:
            plan = plan_of(case, args, Path(name))
            for side in (ours, peers):
                rows.append(side(plan, Path(name)))
                print(line(rows[-1]), flush=True)
                report.write_json(out.with_suffix(".json"), {"environment": environment, "rows": rows})
    return 0


def line(row: dict[str, Any]) -> str:
    figures = " · ".join("{} {:.4g} [{:.4g}, {:.4g}]".format(name, *values) for name, values in row["metrics"].items())
    return f"{row['case']}, {row['provider']}: {figures}; {row['seconds']:.0f} s, {row['epochs']:g} epochs"


if __name__ == "__main__":
    sys.exit(main())

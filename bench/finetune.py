"""Published weights fine-tuned from end to end: the figure on the dev set, and the time, of transformers and of ours.

    python bench/finetune.py --init MODEL --data FOLDER              # every case, one after the other
    python bench/finetune.py --init MODEL --data FOLDER --only SNIPS --epochs 2

MODEL is an encoder in Hugging Face's layout; FOLDER has a folder for each case with train.jsonl and dev.jsonl. Both
sides start from the same weights and see the same examples for as many epochs, in batches of as many, at the same
learning rates, and keep the best of as many looks at the dev set. Ours is train_sft.py as it comes. The peer is
transformers as its examples use it: AdamW, batches padded to their longest. Each side is a process of its own; the time
is that of the whole process. Both sides' answers are measured by the same functions, on all of the dev set.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness  # first: puts the repository root on the path
import report

from minillm.metrics import Interval
from minillm.published.checkpoint import open_checkpoint, resolve
from minillm.start import complete
from minillm.tagging import Tagged
from minillm.tasks import TASKS
from minillm.tasks.base import Task
from minillm.tasks.classify import Prediction
from train_sft import Args

BENCH = Path(__file__).resolve().parent


class Case(NamedTuple):
    name: str
    task: str
    folder: str  # in FOLDER


CASES = (
    Case("WNUT-17 entities", "tag", "ner_wnut17"),
    Case("SST-2", "classify", "sentiment_sst2"),
    Case("MR", "classify", "sentiment_mr"),
    Case("SNIPS slots + intents", "tag", "slots_snips"),
)


# What the peer is told of an example, and what its answer to one is to us, by task.
TOLD = {
    "tag": lambda example: {"words": example.words, "tags": example.tags, "label": example.intent},
    "classify": lambda example: {"texts": example.texts, "label": example.label},
}
ANSWER = {
    "tag": lambda answer: Tagged(answer["tags"], [], answer["label"], None),
    "classify": lambda answer: Prediction(answer["label"], 1.0),
}


def load(case: Case, args: argparse.Namespace) -> Task:
    data = args.data / case.folder
    options = TASKS[case.task].Options(train=data / "train.jsonl", dev=data / "dev.jsonl")
    return TASKS[case.task](options, args.seed)


def ours(case: Case, task: Task, options: Args, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """train_sft.py on the command line."""
    data = args.data / case.folder
    command = [sys.executable, harness.ROOT / "train_sft.py", "--task", case.task, "--init", args.init]
    command += ["--train", data / "train.jsonl", "--dev", data / "dev.jsonl", "--out", folder / "run"]
    command += ["--epochs", options.epochs, "--seed", args.seed, "--precision", args.precision]
    seconds = timed(command)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    names = [name for name in metrics if name.startswith("dev_") and f"{name}_high" in metrics]
    measured = {
        name.removeprefix("dev_"): Interval(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])
        for name in names
    }
    return row(case, "ours", measured, seconds, options)


def peers(case: Case, task: Task, options: Args, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """transformers, in a process that never sees this repository."""
    told = {split: [TOLD[case.task](example) for example in vars(task.splits)[split]] for split in ("train", "dev")}
    recipe = {name: vars(options)[name] for name in ("epochs", "batch_examples", "lr", "embedding_lr", "warmup")}
    names = {"classes": task.classes, "sequence_classes": list(task.sequence_classes)}
    looks = {"evaluations": options.evaluations, "seed": args.seed, "precision": args.precision}
    spec = {"task": case.task, "init": str(resolve(args.init)), **recipe, **names, **looks, **told}
    (folder / "spec.json").write_text(json.dumps(spec))
    seconds = timed([sys.executable, BENCH / "finetune_peer.py", folder])
    answers = [ANSWER[case.task](answer) for answer in json.loads((folder / "answers.json").read_text())]
    return row(case, "transformers", task.measure(task.splits.dev, answers), seconds, options)


def timed(command: Sequence[object]) -> float:
    start = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, env=harness.ENVIRONMENT, cwd=BENCH, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def row(case: Case, provider: str, measured: dict[str, Interval], seconds: float, options: Args) -> dict[str, Any]:
    metrics = {name: list(interval) for name, interval in measured.items()}
    return {"case": case.name, "provider": provider, "metrics": metrics, "seconds": seconds, "epochs": options.epochs}


def recipe_of(task: Task, args: argparse.Namespace) -> Args:
    """What train_sft.py will take, as far as the peer has it too."""
    saved = open_checkpoint(resolve(args.init))
    model = saved.load(task.head, task.classes, sequence_classes=task.sequence_classes)
    recipe = task.recipe(model, None)
    return complete(Args(), {**recipe, "epochs": args.epochs or recipe["epochs"]})


def main() -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--init", required=True, help="the encoder that both sides start from")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--epochs", type=float, help="instead of what our recipe says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the activations, both sides'")
    args = parser.parse_args()
    args.data = args.data.resolve()  # both sides work in another folder
    args.init = Path(args.init).resolve() if Path(args.init).exists() else args.init
    device, rows = harness.device_of(args), []
    environment = harness.environment(device)
    out = args.out or report.RESULTS / f"finetune_{report.slug(str(environment['device']))}"
    for case in (case for case in CASES if args.only in case.name):
        task = load(case, args)
        options = recipe_of(task, args)
        for side in (ours, peers):
            with tempfile.TemporaryDirectory() as name:
                rows.append(side(case, task, options, args, Path(name)))
            print(line(rows[-1]), flush=True)
            report.write_json(out.with_suffix(".json"), {"environment": environment, "rows": rows})
    return 0


def line(row: dict[str, Any]) -> str:
    figures = " · ".join(f"{name} {Interval(*values)}" for name, values in row["metrics"].items())
    return f"{row['case']}, {row['provider']}: {figures}; {row['seconds']:.0f} s, {row['epochs']:g} epochs"


if __name__ == "__main__":
    sys.exit(main())

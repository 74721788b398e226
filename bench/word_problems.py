"""Word problems in folds: what a reward adds to supervised learning, where all or some of the answers are known.

    python bench/word_problems.py --data FOLDER                       # train.jsonl and dev.jsonl of MAWPS in FOLDER
    python bench/word_problems.py --labels 0.3                        # most of the problems are only judged
    python bench/word_problems.py --folds 2 --seeds 1 --start-steps 4 --steps 2       # does everything run?

A GPT from scratch learns to write the equation of a question, by train_sft.py with default settings, from all folds but
one, of which a tenth chooses its best look. From there it goes on twice: by train_rl.py on all the problems, whose
reward counts any equation of the right value (bench/equations.py), half of each gradient still being that of the given
answers; and as the control by train_sft.py, for as long as that took. Told is how many problems of the fold that was
left out each solves, mean over seeds and problems, and the differences, paired by both: intervals are over seeds and
problems at once (experiment/effects.py).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import harness  # noqa: F401, first: puts the repository root on the path

# isort: split

import numpy as np
from equations import solves
from experiment.effects import bounded, effect, mean_of
from report import write_json
from trainings import DATA, made, records_of

import train_rl
import train_sft
from minillm.files import read_json
from minillm.metrics import Interval
from minillm.start import adapt, open_start
from minillm.tasks.seq2seq import Options, Seq2Seq

FIELDS = "prompt=question,answer=equation"
REWARD = f"{Path(__file__).with_name('equations.py')}:score"
START, MORE, REWARDED = "the start", "more SFT", "REINFORCE"
SLOWER = 0.5  # times the rate of its start is that of the control
DRAWN = {"prompts": 32, "samples": 8, "sft_share": 0.5, "watch": 0}


class Fold:
    """The problems that are left out, and a seed of all that is drawn."""

    def __init__(self, args: argparse.Namespace, problems: Sequence[dict], number: int, seed: int):
        self.args, self.seed = args, seed
        kind = "-".join(str(vars(args)[name] or "usual") for name in ("folds", "labels", "start_steps", "steps"))
        self.work = args.work / kind / f"fold-{number}"
        self.work.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(0).permutation(len(problems))
        others = [problems[i] for k in range(args.folds) if k != number for i in order[k :: args.folds]]
        tenth = len(others) // 10
        self.files = {"train": self.file("train", others[tenth:]), "dev": self.file("dev", others[:tenth])}
        self.test = self.file("test", [problems[i] for i in order[number :: args.folds]])

    def file(self, name: str, problems: Sequence[dict]) -> Path:
        path = self.work / f"{name}.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in problems))
        return path

    def right(self) -> dict[str, np.ndarray]:
        """Of each way, which problems of the fold it solves."""
        start = self.run(train_sft, START, steps=self.args.start_steps)
        rewarded = self.run(train_rl, REWARDED, init=start, reward=(REWARD,), steps=self.args.steps, **DRAWN)
        went = read_json(start / "args.json")
        rates = {name: SLOWER * went[name] for name in ("lr", "embedding_lr")}
        same = {name: went[name] for name in ("optimizer", "batch_tokens", "dropout")}
        minutes = read_json(rewarded / "metrics.json")["seconds"] / 60
        more = self.run(train_sft, MORE, init=start, minutes=minutes, keep="last", **same, **rates)
        return {name: self.solved(run) for name, run in ((START, start), (MORE, more), (REWARDED, rewarded))}

    def run(self, script: ModuleType, name: str, **given: Any) -> Path:
        """A run of the script in the work folder."""
        own = Options(**self.files, fields=FIELDS, labels=self.args.labels)
        out = self.work / f"{name.replace(' ', '-')}-{self.seed}"
        return made(script, script.Args(task="seq2seq", seed=self.seed, out=out, options=own, **given))

    def solved(self, run: Path) -> np.ndarray:
        task = Seq2Seq(Options(test=self.test, fields=FIELDS), 0)
        examples = task.splits.test  # as they stand in the file, and not as the model reads them
        model, tokenizer = open_start(run, task)
        adapt(task, model, tokenizer, run)
        answers = task.answer(model.eval(), tokenizer, task.splits.test)
        return np.array([solves(e.prompt, e.answers, a) for e, a in zip(examples, answers, strict=True)], dtype=float)


def compare(args: argparse.Namespace, problems: Sequence[dict]) -> dict[str, Interval]:
    """Each way, and what it gains; a row of results is one seed, over the problems of all folds."""
    ways: dict[str, list[np.ndarray]] = {}
    for seed in range(args.seeds):
        folds = [Fold(args, problems, number, seed).right() for number in range(args.folds)]
        for name in folds[0]:
            ways.setdefault(name, []).append(np.concatenate([fold[name] for fold in folds]))
    right = {name: np.array(rows) for name, rows in ways.items()}
    gains = {f"{name}, less {other}": effect(right[name], right[other])
             for name, other in ((MORE, START), (REWARDED, START), (REWARDED, MORE))}  # fmt: skip
    return {name: bounded(mean_of(rows)) for name, rows in right.items()} | gains


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "math_mawps", help="folder with train.jsonl and dev.jsonl")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=float, help="share of the problems whose answers are known (default: all)")
    parser.add_argument("--steps", type=int, default=60, help="of reinforcement learning")
    parser.add_argument("--start-steps", type=int, help="of the start (default: as train_sft.py has it)")
    parser.add_argument("--work", type=Path, help="folder for data and runs, which are used again or gone on with")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not (args.data / "train.jsonl").exists():
        sys.exit(f"there is no {args.data / 'train.jsonl'}: give --data FOLDER with train.jsonl and dev.jsonl of MAWPS")
    args.work = (args.work or Path(tempfile.mkdtemp())).resolve()
    rows = (row for name in ("train", "dev") for row in records_of(args.data / f"{name}.jsonl"))
    problems = [*{row["question"]: row for row in rows}.values()]  # some are there twice, which no two folds may share
    found = compare(args, problems)
    for name, value in found.items():
        print(f"{name:28} {100 * value.value:5.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]")
    if args.out:
        names = ("folds", "seeds", "labels", "steps")
        given = {"problems": len(problems), **{name: vars(args)[name] for name in names}}
        write_json(args.out, {**given, **{name: value._asdict() for name, value in found.items()}})


if __name__ == "__main__":
    main()

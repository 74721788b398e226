"""Steps of policy gradients: TRL's RLOOTrainer, and ours, of the same model, prompts, reward and number of answers.

    python bench/rl.py                  # on two CPU cores about a quarter of an hour; pip install trl first
    python bench/rl.py --only "6 × 384" # the cases whose name contains this
    python bench/rl.py --quick          # does everything run?

16 prompts of 16 tokens, 8 answers to each of up to 32, leave-one-out, temperature 1, one update a step. The weights are
random, so that few answers end by themselves and few are alike: nothing is saved by scoring equal ones once. All but
the last token of a prompt is computed once for its answers, where TRL computes it for each. The reward is the share of
even words. Both sides run in processes of their own that take turns, so that a slow minute hits both. TRL is measured
twice: without checkpointing and without a KL penalty, as ours is, and with its defaults. Ours is `train_rl.train`,
whose session waits for its turn before every step; where its time goes is printed, too. The rate counts drawn tokens,
at most; memory is the peak of the process, libraries included.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, NamedTuple

import harness  # first: puts the repository root on the path
import report
import torch
from harness import Row
from rich.console import Console
from train import BENCH, fill, started
from train_worker import peak_mb, send

import train_rl
from minillm.episodes import Agent
from minillm.files import read_json, write_json
from minillm.gpt import GPT, GPTConfig
from minillm.metrics import Interval, average
from minillm.published import checkpoint
from minillm.session import Session
from minillm.tasks import TASKS
from minillm.tasks.base import Example, Splits, WritingTask
from minillm.tokenizer import SymbolTokenizer

BASELINE = "TRL"
PROMPTS, SAMPLES, READ, NEW = 16, 8, 16, 32
WORDS = 500
WARM = 2  # steps before the first that counts


class Case(NamedTuple):
    layers: int
    width: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.layers} × {self.width} {self.dtype}"


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case(1, 32, "float32")]
    return [Case(4, 128, "float32"), Case(6, 384, "float32"), Case(6, 384, "bfloat16")]


def prepare(case: Case, folder: Path) -> None:
    """A model, its vocabulary and prompts."""
    torch.manual_seed(0)
    shape = {"num_layers": case.layers, "width": case.width, "num_heads": max(2, case.width // 64)}
    tokenizer = SymbolTokenizer("words", r" [^ ]+", [f" w{i}" for i in range(WORDS)])
    checkpoint.save(GPT(GPTConfig(tokenizer.vocab_size, 64, positions="learned", bias=True, **shape)), folder)
    tokenizer.save(folder)
    rng = random.Random(0)
    write_json(
        folder / "prompts.json", ["".join(f" w{rng.randrange(WORDS)}" for _ in range(READ)) for _ in range(4 * PROMPTS)]
    )


# ---- our side, in a process of its own -------------------------------------------------------------


class Words(WritingTask):
    """Prompts of random words, and answers whose even words are good."""

    name = "words"
    headline = "even"
    prompts: Sequence[str] = ()

    def __init__(self, options: Any, seed: int):
        examples = [Example(prompt, (" w0",)) for prompt in self.prompts]
        self.splits = Splits(examples, examples[:2], [])

    def max_answer_tokens(self, tokenizer: SymbolTokenizer) -> int:
        return NEW

    def reward(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[float]]:
        words = [answer.split() for answer in answers]
        return {"even": [sum(int(word[1:]) % 2 == 0 for word in some) / max(1, len(some)) for some in words]}

    def measure(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Interval]:
        return {"even": average(self.reward(examples, answers)["even"])}


# What a step of ours consists of, and which function each part is.
PARTS = {
    "sampling": (Agent, "rollout"),
    "reward": (train_rl, "judge"),
    "scoring": (train_rl, "require_parity"),  # in every tenth step
    "gradient": (train_rl, "climb"),
    "optimiser": (Session, "update"),
}


def clock(spent: Counter, part: str) -> None:
    """The milliseconds of a part's calls are added up from now on."""
    owner, name = PARTS[part]
    plain = getattr(owner, name)

    def call(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return plain(*given, **named)
        finally:
            spent[part] += 1e3 * (time.perf_counter() - start)

    setattr(owner, name, call)


class Paced(Session):
    """A step for each line of standard input."""

    spent: ClassVar[Counter] = Counter()

    def __iter__(self) -> Iterator[int]:
        send(ready=1)
        for step in super().__iter__():
            if not sys.stdin.readline():
                sys.exit(0)
            self.spent.clear()
            start = time.perf_counter()
            yield step
            send(ms=1e3 * (time.perf_counter() - start), peak_mb=peak_mb(), parts=self.spent)


def work(folder: Path, dtype: str) -> None:
    Words.prompts = read_json(folder / "prompts.json", list)
    for part in PARTS:
        clock(Paced.spent, part)
    TASKS["words"], train_rl.Session = Words, Paced
    numbers = {"prompts": PROMPTS, "samples": SAMPLES, "temperature": 1.0, "steps": 10_000, "lr": 1e-5, "watch": 0}
    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    alike = {"sft_share": 0.0, "optimizer": "adamw", "evaluations": 1, "precision": precision}
    train_rl.train(
        train_rl.Args(task="words", init=folder, out=folder / "ours", **numbers, **alike), Console(quiet=True)
    )


# ---- both sides ------------------------------------------------------------------------------------


def measure(case: Case, args: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        prepare(case, folder := Path(name))
        threads = torch.get_num_threads()
        peer = BENCH / "rl_peer.py", folder, PROMPTS, SAMPLES, NEW, case.dtype, threads
        ours = Path(__file__).resolve(), "--worker", folder, case.dtype, "--threads", threads
        with started({BASELINE: peer, "TRL, its defaults": (*peer, "--defaults"), "ours": ours}) as workers:
            steps = {name: [] for name in workers}
            for number in range(WARM + args.rounds):
                for name in steps if number % 2 else reversed(steps):
                    steps[name].append(workers[name].step())
    rows = []
    for name, taken in steps.items():
        fill(row := Row(case.name, name, "step"), [s["ms"] for s in taken[WARM:]], PROMPTS * SAMPLES * NEW)
        row.peak_mb = taken[-1]["peak_mb"]
        rows.append(row)
    print(f"  ours: {shares(steps['ours'][WARM:])}", flush=True)
    harness.add_ratios(rows, BASELINE)
    return rows


def shares(taken: Sequence[dict[str, Any]]) -> str:
    """Where the time of the steps went, in words; medians."""
    found = {part: median(step["parts"].get(part, 0.0) / step["ms"] for step in taken) for part in PARTS}
    return ", ".join(f"{part} {share:.0%}" for part, share in found.items())


def main() -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = harness.device_of(args)
    if args.worker:
        work(Path(args.worker[0]), args.worker[1])
        return 0
    rows = []
    for case in cases(args.quick):
        if args.only in case.name:
            print(f"{case.name} …", flush=True)
            rows += measure(case, args)
    title = f"A step of policy gradients: {PROMPTS} prompts × {SAMPLES} answers × {NEW} tokens"
    return report.finish(rows, "rl", title, args.out, harness.environment(device), {})


if __name__ == "__main__":
    sys.exit(main())

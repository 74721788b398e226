"""A training step, forward, backward and AdamW: transformers as it is, transformers compiled, and ours.

    python bench/train.py                   # on two CPU cores about ten minutes, most of it compiling
    python bench/train.py --only MiniLM     # the cases whose name contains this
    python bench/train.py --quick           # does everything run?

Both sides start from the same checkpoint and read the same batch, bfloat16 over float32 weights, in processes of
their own that take turns, so that a slow minute hits all and peak memory, libraries included, is each one's own. No
provider is timed whose first losses are not those of transformers. The rate counts real tokens, never padding; the
ratio is the time of transformers over the provider's.

Letters: B sequences, T tokens of each, V vocabulary, K classes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import harness  # first: puts the repository root on the path
import report
import torch
from harness import Row
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_worker import serve

from kernels import Packing
from minillm.batching import IGNORE, Batch
from minillm.bert import BERTConfig
from minillm.gpt import GPT, GPTConfig
from minillm.heads import SequenceClassifier, TokenClassifier
from minillm.objective import backward
from minillm.published import checkpoint

BENCH = Path(__file__).resolve().parent
BASELINE = "transformers"
MODE = "step"
WARM_UP = 2  # steps whose losses are compared; the second already depends on the gradients
TOLERANCE = 0.02  # of a loss, relative: bfloat16 keeps 8 bits


class Case(NamedTuple):
    name: str
    config: GPTConfig | BERTConfig
    lengths: Sequence[int]
    compiles: bool  # whether torch.compile is asked, too
    tags: int = 0  # classes of a token; 0: the texts are classified, or a GPT reads them


# Sentences of SNIPS in MiniLM's tokens, control tokens included: 32 quantiles of them, and 32 of like length.
AS_THEY_COME = [
    6,
    7,
    7,
    8,
    8,
    9,
    9,
    9,
    *[10] * 4,
    *[11] * 4,
    *[12] * 3,
    *[13] * 3,
    14,
    14,
    15,
    15,
    16,
    16,
    17,
    18,
    19,
    21,
]
LIKE_LENGTHS = [12] * 11 + [13] * 21


def cases(quick: bool) -> list[Case]:
    ragged = [8 + round(56 * i / 31) for i in range(32)]  # 8 to 64: when padded, almost half of it is padding
    if quick:
        return [
            Case("BERT 1 × 16, B=3", BERTConfig(99, 16, 1, 16, 2, dropout=0, classifier_dropout=0), [3, 8, 5], False),
            Case(
                "BERT 1 × 16 tagging, B=2",
                BERTConfig(99, 16, 1, 16, 2, dropout=0, classifier_dropout=0),
                [3, 8],
                False,
                5,
            ),
            Case("GPT 1 × 16, B=2 T=8", gpt(50, 8, 1, 16, 2), [8] * 2, False),
        ]
    bert = {"vocab_size": 30522, "num_layers": 6, "width": 384, "num_heads": 12}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}
    return [
        Case("MiniLM 6 × 384, 32 of 8–64, no dropout", BERTConfig(**bert, **still), ragged, False),
        Case("MiniLM 6 × 384, 32 of 8–64, dropout 0.1", BERTConfig(**bert, attention_dropout=0.1), ragged, False),
        Case("MiniLM 6 × 384 tagging, sentences as they come", BERTConfig(**bert, **still), AS_THEY_COME, False, 72),
        Case("MiniLM 6 × 384 tagging, of like length", BERTConfig(**bert, **still), LIKE_LENGTHS, False, 72),
        Case("GPT 6 × 384, B=16 T=256 V=65", gpt(65, 256, 6, 384, 6), [256] * 16, True),
        Case("GPT-2 124M 12 × 768, B=4 T=512 V=50257", gpt(50257, 512, 12, 768, 12), [512] * 4, True),
    ]


def gpt(V: int, T: int, layers: int, width: int, heads: int) -> GPTConfig:
    """In the shape of GPT-2, so that both sides have the same parameters."""
    return GPTConfig(V, T, layers, width, heads, positions="learned", bias=True)


def prepare(case: Case, folder: Path) -> None:
    """A random checkpoint and a batch for it."""
    torch.manual_seed(0)
    model = model_of(case)
    checkpoint.save(model, folder)
    N, V = sum(case.lengths), case.config.vocab_size
    batch = {"tokens": torch.randint(V, (N,)), "lengths": torch.tensor(case.lengths)}
    if isinstance(model, SequenceClassifier):
        batch["labels"] = torch.randint(len(model.classes), (len(case.lengths),))
    else:
        batch["targets"] = torch.randint(case.tags or V, (N,))
    save_file(batch, folder / "batch.safetensors")


def model_of(case: Case) -> GPT | SequenceClassifier | TokenClassifier:
    if isinstance(case.config, GPTConfig):
        return GPT(case.config)
    if case.tags:
        return TokenClassifier(case.config, [str(k) for k in range(case.tags)])
    return SequenceClassifier(case.config, ["no", "yes"])


def work(folder: Path) -> None:
    """Our side, in a process of its own: the very function that the scripts call."""
    batch = load_file(folder / "batch.safetensors")
    model = checkpoint.load(folder).train()
    model.compute_dtype = torch.bfloat16
    tokens = batch["tokens"]
    targets, labels = batch.get("targets", torch.full_like(tokens, IGNORE)), batch.get("labels", tokens[:0])
    count = int((targets != IGNORE).sum()) + len(labels)

    def step() -> Tensor:
        packing = Packing.from_lengths(batch["lengths"].tolist())
        return backward(model, Batch(tokens, targets, labels, None, packing, count), 1 / count)

    serve(model, step)


class Worker:
    """A process that takes a step whenever it is asked to."""

    def __init__(self, *command: object):
        line = [sys.executable, *map(str, command)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(line, **pipes, text=True, cwd=BENCH, env=harness.ENVIRONMENT)
        self.greeting = self.read()

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with exit code {self.process.wait()}; its error is above")
        return json.loads(line)

    def step(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def started(commands: Mapping[str, tuple]) -> Iterator[dict[str, Worker]]:
    """A worker for each provider; all end with the block, also where one of them cannot begin."""
    workers: dict[str, Worker] = {}
    try:
        for name, command in commands.items():
            workers[name] = Worker(*command)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def measure(case: Case, args: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        prepare(case, folder := Path(name))
        threads = torch.get_num_threads()
        peer = BENCH / "train_peer.py", folder, threads
        commands = {BASELINE: peer}
        if case.compiles and not args.fast:
            commands["transformers, torch.compile"] = (*peer, "--compile")
        commands["ours"] = (Path(__file__).resolve(), "--worker", folder, "--threads", threads)
        with started(commands) as workers:
            return compare(case, workers, args.rounds)


def compare(case: Case, workers: dict[str, Worker], rounds: int) -> list[Row]:
    """Steps in turn, after a look at whether all of them learn alike."""
    first = {name: [worker.step() for _ in range(WARM_UP)] for name, worker in workers.items()}
    rows = {name: Row(case.name, name, MODE) for name in workers}
    for name, worker in workers.items():
        rows[name].error = difference(first[name], first[BASELINE])
        if worker.greeting != workers[BASELINE].greeting:
            rows[name].note = f"WRONG: {worker.greeting}, not {workers[BASELINE].greeting}"
        elif is_deterministic(case) and rows[name].error > TOLERANCE:
            rows[name].note = f"WRONG: losses differ by {rows[name].error:.1%}"
    able = {name: worker for name, worker in workers.items() if not rows[name].note}
    steps = {name: [] for name in able}
    for number in range(rounds):
        for name in able if number % 2 else reversed(able):
            steps[name].append(able[name].step())
    for name, taken in steps.items():
        fill(rows[name], [step["ms"] for step in taken], sum(case.lengths))
        rows[name].peak_mb = taken[-1]["peak_mb"]
    harness.add_ratios(list(rows.values()), BASELINE)
    return list(rows.values())


def fill(row: Row, times: Sequence[float], num_tokens: int) -> None:
    """The figures of rounds that took so many milliseconds for so many tokens."""
    row.ms, row.ms_low, row.ms_high = statistics.median(times), min(times), max(times)
    row.rate, row.unit = 1e-6 * num_tokens / row.ms, "tokens/s"


def difference(steps: list[dict], others: list[dict]) -> float:
    return max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(steps, others, strict=True))


def is_deterministic(case: Case) -> bool:
    return case.config.dropout == 0


def main() -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--fast", action="store_true", help="leave out torch.compile, which takes minutes to compile")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = harness.device_of(args)
    if args.worker:
        work(args.worker)
        return 0
    rows = []
    for case in cases(args.quick):
        if args.only in case.name:
            print(f"{case.name} …", flush=True)
            rows += measure(case, args)
    title = "Training steps, bfloat16 over float32 weights"
    return report.finish(rows, "train", title, args.out, harness.environment(device), {})


if __name__ == "__main__":
    sys.exit(main())

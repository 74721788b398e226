"""Greedy answers in the order of their examples, whatever the batches."""

import pytest
from tiny import gpt

from minillm import evaluate
from minillm.generate import generate
from minillm.metrics import rate
from minillm.generate import GREEDY
from minillm.tasks import Arithmetic, Example


@pytest.fixture
def task():
    return Arithmetic(10, 0)


def prompts_of_many_lengths(task):
    texts = [example.prompt for example in task.splits.dev[:9]]
    return [Example(text[i % 4 :], ("0000",)) for i, text in enumerate(texts)]


@pytest.mark.parametrize("batch", [1, 4, 1024])
def test_answers_are_in_order(task, monkeypatch, batch):
    monkeypatch.setattr(evaluate, "BATCH", batch)
    model, examples = gpt(vocab_size=13), prompts_of_many_lengths(task)
    alone = [
        generate(model, [task.tokenizer.encode(e.prompt)], task.max_answer_tokens, task.tokenizer.end, GREEDY)
        for e in examples
    ]
    truth = [task.tokenizer.decode(sample.tokens) for (sample,) in alone]
    assert len(set(truth)) > 3
    assert evaluate.answer(model, task, examples) == truth


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_model_is_left_alone(task, training):
    model = gpt(vocab_size=13, dropout=0.5).train(training)
    first, second = (evaluate.answer(model, task, task.splits.dev[:20]) for _ in range(2))
    assert first == second  # no dropout meanwhile
    assert model.training == training


def test_metrics_are_of_the_answers(task):
    model, examples = gpt(vocab_size=13), prompts_of_many_lengths(task)
    answers = evaluate.answer(model, task, examples)
    right = [i % 3 > 0 for i in range(9)]
    truth = [answer if told else "no" for answer, told in zip(answers, right, strict=True)]
    knowing = [Example(example.prompt, (told,)) for example, told in zip(examples, truth, strict=True)]
    assert evaluate.evaluate(model, task, knowing)["accuracy"] == rate(right)

"""Greedy answers in the order of their examples, and what is read of texts, whatever the batches."""

import numpy as np
import pytest
import torch
from tiny import bert_config, gpt, shake

from kernels import Packing
from minillm import evaluate
from minillm.beam import Beams, beam_search
from minillm.errors import UserError
from minillm.generate import GREEDY, generate
from minillm.heads import SequenceClassifier
from minillm.metrics import rate
from minillm.tasks.arithmetic import Arithmetic, Options
from minillm.tasks.base import Example
from minillm.tokenizer import SymbolTokenizer, read_texts


@pytest.fixture
def task():
    return Arithmetic(Options(10), 0)


@pytest.fixture
def tokenizer(task):
    return task.tokenizer()


def prompts_of_many_lengths(task):
    texts = [example.prompt for example in task.splits.dev[:9]]
    return [Example(text[i % 4 :], ("0000",)) for i, text in enumerate(texts)]


# ---- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 50, 16_384])
def test_answers_are_in_order(task, tokenizer, monkeypatch, most):
    monkeypatch.setattr(evaluate, "WRITTEN_TOKENS", most)
    model, examples = gpt(vocab_size=13), prompts_of_many_lengths(task)
    room = task.max_answer_tokens(tokenizer)
    alone = [generate(model, [tokenizer.encode(e.prompt)], room, tokenizer.end, GREEDY) for e in examples]
    truth = [tokenizer.decode(sample.tokens) for (sample,) in alone]
    assert len(set(truth)) > 3
    assert evaluate.write(model, tokenizer, [e.prompt for e in examples], room) == truth
    assert task.answer(model, tokenizer, examples) == truth
    assert evaluate.write(model, tokenizer, [e.prompt for e in examples], room, Beams(1)) == truth
    found = [beam_search(model, [tokenizer.encode(e.prompt)], room, tokenizer.end, Beams(3, 0.5)) for e in examples]
    searched = [tokenizer.decode(best.tokens) for ((best, *_),) in found]
    assert searched != truth
    assert evaluate.write(model, tokenizer, [e.prompt for e in examples], room, Beams(3, 0.5)) == searched


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_model_is_left_alone(task, tokenizer, training):
    model = gpt(vocab_size=13, dropout=0.5).train(training)
    first, second = (task.answer(model, tokenizer, task.splits.dev[:20]) for _ in range(2))
    assert first == second  # no dropout meanwhile
    assert model.training == training


def test_metrics_are_of_the_answers(task, tokenizer):
    model, examples = gpt(vocab_size=13), prompts_of_many_lengths(task)
    answers = task.answer(model, tokenizer, examples)
    right = [i % 3 > 0 for i in range(9)]
    truth = [answer if told else "no" for answer, told in zip(answers, right, strict=True)]
    knowing = [Example(example.prompt, (told,)) for example, told in zip(examples, truth, strict=True)]
    assert task.measure(knowing, task.answer(model, tokenizer, knowing))["accuracy"] == rate(right)


# ---- what is read --------------------------------------------------------------------------------

LETTERS = SymbolTokenizer("letters", r"[\s\S]", "abcdefghij")  # and its end: the eleven of the tiny models
TEXTS = [("abc",), ("j",), ("cde", "fg"), ("abcdefghij",), ("hh", "i"), ("b" * 40,)]


def classifier(**choices):
    return shake(SequenceClassifier(bert_config(**choices), "xyz")).eval()


@torch.no_grad()
def one_by_one(model, texts):
    """Of each text alone, cut to what the model reads."""

    found = []
    for text in texts:
        ((tokens, segments),) = read_texts(LETTERS, [text], model.config.vocab_size, model.max_seq_len)
        packing = Packing.from_lengths([len(tokens)])
        found.append(model(torch.tensor(tokens), packing, torch.tensor(segments)).numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("batch_tokens", [1, 12, 4096])
def test_what_is_read_is_in_order_and_depends_on_nothing_but_the_text(monkeypatch, batch_tokens):
    monkeypatch.setattr(evaluate, "BATCH_TOKENS", batch_tokens)
    model = classifier()
    found = evaluate.read(model, LETTERS, TEXTS)
    assert found.shape == (len(TEXTS), 3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, one_by_one(model, TEXTS), rtol=1e-10, atol=1e-10)


def test_probabilities_are_the_softmax():
    model, texts = classifier(), TEXTS[:3]
    truth = torch.from_numpy(one_by_one(model, texts)).softmax(-1).numpy()
    found = evaluate.classify(model, LETTERS, texts)
    np.testing.assert_allclose(found, truth, rtol=1e-10)
    assert found.sum(axis=1) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("training", [False, True])
def test_reading_leaves_the_mode_alone(training):
    model = classifier(dropout=0.5).train(training)
    first, second = (evaluate.read(model, LETTERS, TEXTS[:3]) for _ in range(2))
    assert (first == second).all()  # no dropout meanwhile
    assert model.training == training


def test_texts_are_lowered_where_the_model_wants_it():
    model = classifier()
    with pytest.raises(UserError, match="'A'"):
        evaluate.read(model, LETTERS, [("ABC",)])
    model.lower_case = True
    assert (evaluate.read(model, LETTERS, [("ABC",)]) == evaluate.read(model, LETTERS, [("abc",)])).all()


def test_what_is_not_finite_is_an_error():
    model = classifier()
    model.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(UserError):
        evaluate.read(model, LETTERS, TEXTS[:2])

"""Arithmetic: right answers, held-out problems that nobody practises, a reward that only counts right answers."""

import signal
from itertools import islice

import pytest
import torch

from minillm.batching import answering
from minillm.episodes import Writer
from minillm.errors import UserError
from minillm.generate import Sampling
from minillm.gpt import GPT, GPTConfig
from minillm.tasks.arithmetic import Arithmetic, Options
from minillm.tokenizer import SymbolTokenizer


@pytest.fixture(scope="module")
def task():
    return Arithmetic(Options(), 0)


def prompts(examples):
    return {example.prompt for example in examples}


def test_answers_are_right(task):
    for example in [*task.splits.train, *task.splits.dev, *islice(task.practice(0), 100)]:
        a, b = example.prompt.removesuffix("=").split("+")
        assert len(a) == len(b) == 2
        assert example.answers == (f"{int(a) + int(b):03d}",)


def numbers(prompt):
    return tuple(map(int, prompt.removesuffix("=").split("+")))


def test_no_number_is_larger_than_the_largest():
    """In no split and in no practice; what is held out is the same, but for the problems that fall away."""
    small, all_of_them = Arithmetic(Options(largest=40, examples=500), 0), Arithmetic(Options(), 0)
    practised = list(islice(small.practice(0), 300))
    for example in [*small.splits.train, *small.splits.dev, *small.splits.test, *practised]:
        assert max(numbers(example.prompt)) <= 40
    known = [e for e in all_of_them.splits.test if max(numbers(e.prompt)) <= 40]
    assert small.splits.test == known
    held_out = prompts([*all_of_them.splits.dev, *all_of_them.splits.test])
    assert not prompts([*small.splits.train, *practised]) & held_out
    assert small.num_practised == 41**2 - sum(max(numbers(prompt)) <= 40 for prompt in held_out)


@pytest.mark.parametrize("digits", [3, 9])
def test_numbers_of_more_digits(digits):
    task = Arithmetic(Options(digits=digits, examples=300), 0)
    splits = task.splits
    assert [len(split) for split in (splits.train, splits.dev, splits.test)] == [300, 1000, 1000]
    practised = list(islice(task.practice(0), 300))
    for example in [*splits.train, *splits.dev, *splits.test, *practised]:
        a, b = example.prompt.removesuffix("=").split("+")
        assert len(a) == len(b) == digits
        assert example.answers == (f"{int(a) + int(b):0{digits + 1}d}",)
    assert max(max(numbers(e.prompt)) for e in splits.dev) > 0.9 * 10**digits
    assert not prompts([*splits.train, *practised]) & prompts([*splits.dev, *splits.test])
    assert task.num_practised == 10 ** (2 * digits) - 2000


@pytest.mark.parametrize("digits", [-1, 0, 1, 10])
def test_numbers_of_too_few_or_too_many_digits(digits):
    with pytest.raises(UserError, match=f"--digits {digits} must be from 2 to 9"):
        Arithmetic(Options(digits=digits), 0)


def test_the_largest_of_more_digits():
    task = Arithmetic(Options(digits=3, largest=700), 0)
    assert max(max(numbers(e.prompt)) for e in islice(task.practice(0), 300)) in range(600, 701)
    with pytest.raises(UserError, match="--largest 1000 must be from 9 to 999"):
        Arithmetic(Options(digits=3, largest=1000), 0)


def test_both_orders_are_other_prompts_and_no_more_labels():
    once, both = (Arithmetic(Options(examples=200, both_orders=each), 0) for each in (False, True))
    pairs = {numbers(prompt) for prompt in prompts(both.splits.train)}
    assert {frozenset(pair) for pair in pairs} == {frozenset(numbers(p)) for p in prompts(once.splits.train)}
    assert prompts(once.splits.train) < prompts(both.splits.train)
    assert not prompts(both.splits.train) & prompts([*both.splits.dev, *both.splits.test])
    assert all(example.answers == (f"{sum(numbers(example.prompt)):03d}",) for example in both.splits.train)


@pytest.mark.parametrize("largest", [-1, 8, 100])
def test_a_largest_number_that_makes_no_sense(largest):
    with pytest.raises(UserError, match=f"--largest {largest} must be from 9 to 99"):
        Arithmetic(Options(largest=largest), 0)


def test_splits_are_disjoint_and_of_the_size_asked_for(task):
    train, dev, test, _ = map(prompts, vars(task.splits).values())
    assert (len(train), len(dev), len(test)) == (2000, 1000, 1000)
    assert not train & dev
    assert not train & test
    assert not dev & test


def test_nobody_practises_what_is_held_out():
    held_out = None
    for seed in range(3):
        task = Arithmetic(Options(50), seed)
        held_out = held_out or prompts(task.splits.dev) | prompts(task.splits.test)
        practised = prompts(islice(task.practice(seed), 20_000))
        assert len(practised) > 7_000  # of the 8,000 that are not held out
        assert not practised & held_out
        assert not prompts(task.splits.train) & held_out


def test_held_out_problems_are_the_same_for_every_seed_and_number(task):
    other = Arithmetic(Options(10), seed=5)
    assert (other.splits.dev, other.splits.test) == (task.splits.dev, task.splits.test)
    assert len(other.splits.train) == 10
    assert other.splits.train != task.splits.train[:10]


def test_practice_is_fixed_by_the_seed(task):
    first, same, other = (list(islice(task.practice(seed), 50)) for seed in (0, 0, 1))
    assert first == same != other
    assert first != task.splits.train[:50]


@pytest.mark.parametrize(
    ("answer", "reward"), [("067", 1.0), ("068", 0.0), ("67", 0.0), ("0670", 0.0), ("067=", 0.0), ("", 0.0)]
)
def test_reward(task, answer, reward):
    example = next(e for e in islice(task.practice(0), 10**6) if e.answers == ("067",))
    assert task.reward([example], [answer]) == {"right": [reward]}


def test_rewards_are_in_the_order_of_the_answers(task):
    examples = task.splits.dev[:3]
    answers = [examples[0].answers[0], "no", examples[2].answers[0]]
    assert task.reward(examples, answers) == {"right": [1.0, 0.0, 1.0]}


def test_accuracy(task):
    examples = task.splits.dev[:4]
    answers = [e.answers[0] for e in examples[:3]] + [""]
    assert task.measure(examples, answers)["accuracy"].value == 0.75


def test_everything_fits(task):
    tokenizer = task.tokenizer()
    for example in task.splits.dev:
        (document,) = task.documents(example, tokenizer, None)
        prompt, answer = tokenizer.encode(example.prompt), [*tokenizer.encode(example.answers[0]), tokenizer.end]
        assert document == answering(prompt, answer)
        assert len(answer) == task.max_answer_tokens(tokenizer) == 4
    assert task.tokens_needed(tokenizer) == 6 + 4


@pytest.mark.parametrize("examples", [0, -3])
def test_there_must_be_examples(examples):
    with pytest.raises(UserError, match=f"--examples {examples} must be at least 1"):
        Arithmetic(Options(examples), 0)


def test_there_are_not_so_many_problems():
    """A thousand times a thousand, less those held out; asking for more must not go on for ever."""

    def give_up(*_):
        raise TimeoutError("still looking for different problems after 3 seconds")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(3)
    try:
        with pytest.raises(UserError, match="--examples 1000000"):
            Arithmetic(Options(1_000_000), 0)
    finally:
        signal.alarm(0)


def test_more_examples_than_there_are():
    assert len(Arithmetic(Options(8000), 0).splits.train) == 8000
    with pytest.raises(UserError, match=r"--examples 8001 .* 8,?000"):
        Arithmetic(Options(8001), 0)


# ---- models that it is learned by ----------------------------------------------------------------


def model_of(tokenizer, **choices):
    return GPT(GPTConfig(**{"vocab_size": tokenizer.vocab_size, "max_seq_len": 10, "width": 16} | choices))


def test_a_model_must_have_room_for_the_longest_answer(task):
    tokenizer = task.tokenizer()
    task.adapt(model_of(tokenizer), tokenizer)
    with pytest.raises(UserError, match=r"max_seq_len=9 of the model is too short: .* takes up to 10 tokens"):
        task.adapt(model_of(tokenizer, max_seq_len=9), tokenizer)


def test_a_model_must_know_the_vocabulary(task):
    tokenizer = task.tokenizer()
    with pytest.raises(UserError, match="the vocabulary has 13 tokens, but the model knows 12"):
        task.adapt(model_of(tokenizer, vocab_size=12), tokenizer)
    task.adapt(model_of(tokenizer, vocab_size=50), tokenizer)  # as published ones that were padded


def test_a_vocabulary_must_have_the_symbols(task):
    strange = SymbolTokenizer("strange", r"[\s\S]", "0123456789+")
    with pytest.raises(UserError, match=r"does not know what --task arithmetic is written in: .*'='"):
        task.adapt(model_of(strange), strange)


def test_recipes_suit_the_model(task):
    scratch, small, large = (
        task.recipe(m, None) for m in (None, *(model_of(task.tokenizer(), width=w) for w in (16, 256)))
    )
    assert scratch["steps"] == 400
    assert {"layers", "width", "heads"} <= scratch.keys()
    assert not {"layers", "width", "heads"} & large.keys()
    assert small["lr"] == 3e-4
    assert large["lr"] == 1.5e-4


def test_prompts_are_read_as_beginnings_are(task):
    """A vocabulary may put a token before every text, as Llama's does: then a prompt that is learned has it, too, and
    so has one that is answered."""

    class Begins(SymbolTokenizer):
        def wrap(self, *texts, **choices):
            ids, segments = super().wrap(*texts, **choices)
            return [self.end, *ids], [0, *segments]

    tokenizer = Begins("begins", r"[\s\S]", "0123456789+=")
    (document,) = task.documents(task.splits.train[0], tokenizer, None)
    assert document.tokens[0] == tokenizer.end
    assert document.tokens[1:7] == tokenizer.encode(task.splits.train[0].prompt)
    torch.manual_seed(0)
    model = model_of(tokenizer, max_seq_len=11).eval()
    episodes = Writer(task, tokenizer).rollout(model, task.splits.train[:1], Sampling(0.5), 2)
    assert [episode.prompt for episode in episodes] == [document.tokens[:7]] * 2

"""Arithmetic: right answers, held-out problems that nobody practises, a reward that only counts right answers."""

import signal
from itertools import islice

import pytest

from minillm.errors import UserError
from minillm.tasks import Arithmetic, load_task, to_documents, tokens_needed


@pytest.fixture(scope="module")
def task():
    return load_task("arithmetic")


def prompts(examples):
    return {example.prompt for example in examples}


def test_answers_are_right(task):
    for example in [*task.splits.train, *task.splits.dev, *islice(task.practice(0), 100)]:
        a, b = example.prompt.removesuffix("=").split("+")
        assert len(a) == len(b) == 2
        assert example.answers == (f"{int(a) + int(b):03d}",)


def test_splits_are_disjoint_and_of_the_size_asked_for(task):
    train, dev, test = map(prompts, vars(task.splits).values())
    assert (len(train), len(dev), len(test)) == (task.num_examples, 1000, 1000)
    assert not train & dev
    assert not train & test
    assert not dev & test


def test_nobody_practises_what_is_held_out():
    held_out = None
    for seed in range(3):
        task = Arithmetic(50, seed)
        held_out = held_out or prompts(task.splits.dev) | prompts(task.splits.test)
        practised = prompts(islice(task.practice(seed), 20_000))
        assert len(practised) > 7_000  # of the 8,000 that are not held out
        assert not practised & held_out
        assert not prompts(task.splits.train) & held_out


def test_held_out_problems_are_the_same_for_every_seed_and_number(task):
    other = Arithmetic(10, seed=5)
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
    assert task.reward(example, answer) == reward


def test_accuracy(task):
    examples = task.splits.dev[:4]
    answers = [e.answers[0] for e in examples[:3]] + [""]
    assert task.measure(examples, answers)["accuracy"].value == 0.75


def test_everything_fits(task):
    documents = to_documents(task.splits.dev, task.tokenizer)
    assert {len(d.answer) for d in documents} == {task.max_answer_tokens} == {4}
    assert tokens_needed(task) == 6 + 4
    assert task.tokenizer.decode(documents[0].prompt) == task.splits.dev[0].prompt


@pytest.mark.parametrize("examples", [0, -3])
def test_there_must_be_examples(examples):
    with pytest.raises(UserError, match=f"--examples {examples} must be at least 1"):
        load_task("arithmetic", examples=examples)


def test_there_are_not_so_many_problems():
    """A thousand times a thousand, less those held out; asking for more must not go on for ever."""

    def give_up(*_):
        raise TimeoutError("still looking for different problems after 3 seconds")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(3)
    try:
        with pytest.raises(UserError, match="--examples 1000000"):
            load_task("arithmetic", examples=1_000_000)
    finally:
        signal.alarm(0)


def test_files_are_for_pronunciation(tmp_path):
    for name in ("train", "dev", "test"):
        with pytest.raises(UserError, match="arithmetic makes its own problems"):
            load_task("arithmetic", **{name: tmp_path / "words.txt"})


def test_more_examples_than_there_are():
    assert len(Arithmetic(8000, 0).splits.train) == 8000
    with pytest.raises(UserError, match=r"--examples 8001 .* 8,?000"):
        Arithmetic(8001, 0)

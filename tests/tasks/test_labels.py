"""--labels: which training examples are learned from, the same for every task, order and seed, and inherited."""

import json
import random

import pytest
import scripts
from rich.console import Console
from scripts import FEW, SMALL

import train_rl
import train_sft
from minillm.errors import UserError
from minillm.start import documents_of_epoch
from minillm.tasks import TASKS, pronounce
from minillm.tasks.files import by_labels, place_of

PROMPTS = [f"prompt {i}" for i in range(2000)]


def same(key):
    return key


def test_shares_are_nested_and_of_their_size():
    seen = {share: set(by_labels(PROMPTS, share, same)[0]) for share in (0.02, 0.05, 0.1, 0.5, 1.0)}
    assert seen[0.02] < seen[0.05] < seen[0.1] < seen[0.5] < seen[1.0] == set(PROMPTS)
    for share, kept in seen.items():
        assert abs(len(kept) / len(PROMPTS) - share) < 3 * (share * (1 - share) / len(PROMPTS)) ** 0.5 + 1e-9


def test_the_choice_depends_on_the_prompt_alone():
    kept, others = by_labels(PROMPTS, 0.1, same)
    assert sorted([*kept, *others]) == sorted(PROMPTS)
    shuffled = random.Random(1).sample(PROMPTS, len(PROMPTS))
    assert set(by_labels(shuffled, 0.1, same)[0]) == set(kept)
    assert set(by_labels(shuffled[:500], 0.1, same)[0]) == set(kept) & set(shuffled[:500])
    assert place_of("prompt 1") == place_of("prompt 1") != place_of("prompt 2")
    assert by_labels(PROMPTS, None, same) == (PROMPTS, [])


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_shares_that_are_none(share):
    with pytest.raises(UserError, match=r"--labels .* must be a share of the training examples, above 0 and at most 1"):
        by_labels(PROMPTS, share, same)


def test_a_share_that_leaves_nothing():
    with pytest.raises(UserError, match="leaves none of the 3 training examples"):
        by_labels(PROMPTS[:3], 1e-6, same)


def test_text_has_no_answers_to_hide(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n")
    for name in ("lm", "mlm"):
        with pytest.raises(UserError, match=r"--labels 0\.1 hides answers, but text has none"):
            TASKS[name](TASKS[name].Options(train=tmp_path / "a.txt", labels=0.1), 0)


FILES = {
    "classify": lambda i: {"text": f"text {i}", "label": "ab"[i % 2]},
    "regress": lambda i: {"text": f"text {i}", "label": float(i)},
    "tag": lambda i: {"tokens": [f"w{i}", "x"], "tags": ["B-a", "O"]},
    "seq2seq": lambda i: {"prompt": f"text {i}", "answer": str(i)},
    "chat": lambda i: {"prompt": f"text {i}", "answer": str(i)},
    "preference": lambda i: {"prompt": f"text {i}", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("name", FILES)
def test_every_task_of_files_heeds_it(name, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(FILES[name](i)) + "\n" for i in range(300)))
    whole, part = (TASKS[name](TASKS[name].Options(train=path, labels=labels), 0) for labels in (None, 0.3))
    assert 30 < len(part.splits.train) < 0.5 * len(whole.splits.train)
    assert set(map(repr, part.splits.train)) < set(map(repr, whole.splits.train))
    if name != "preference":  # of which nothing is learned from prompts
        both = [*part.splits.train, *part.splits.unlabelled]
        assert sorted(map(repr, both)) == sorted(map(repr, whole.splits.train))
    assert list(map(repr, part.splits.dev)) == list(map(repr, whole.splits.dev))


def test_practice_is_on_all_prompts_and_what_is_given_on_the_labelled(tmp_path):
    task = pronounce.Pronounce(pronounce.Options(**scripts.write_words(tmp_path), labels=0.4), 0)
    assert task.splits.unlabelled
    stream = task.practice(0)
    count = len(task.splits.train) + len(task.splits.unlabelled)
    assert len({next(stream).prompt for _ in range(count)}) == count == 64
    documents = documents_of_epoch(task, task.tokenizer(), 0, 0)
    assert len(documents) == len(task.splits.train) < count


def test_a_run_by_reward_inherits_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, quiet = scripts.write_words(tmp_path), Console(quiet=True)
    options = pronounce.Options(**words, labels=0.4)
    start = train_sft.train(train_sft.Args(out=tmp_path / "a", steps=1, options=options, **SMALL), quiet)
    assert start.options()["labels"] == 0.4
    common = {"task": "pronounce", "init": start.folder, "steps": 1, **FEW}
    assert train_rl.train(train_rl.Args(**common), quiet).options()["labels"] == 0.4
    other = pronounce.Options(labels=1.0)
    assert train_rl.train(train_rl.Args(**common, options=other), quiet).options()["labels"] == 1.0

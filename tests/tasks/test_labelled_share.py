"""--labels: which training examples are learned from, the same for every task, order and seed, and inherited."""

import json
import random

import pytest
import scripts
from rich.console import Console
from scripts import FEW, SMALL

import minillm.curves
import train_rl
import train_sft
from minillm.errors import UserError
from minillm.start import documents_of_epoch
from minillm.tasks import TASKS, pronounce, seq2seq
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


def test_every_class_keeps_an_example_of_any_share():
    """A rare one, too; smaller shares lie within larger ones all the same, in any order."""

    def class_of(prompt):
        number = int(prompt.split()[1])
        return None if number % 7 == 0 else "rare" if number % 400 == 1 else "common"

    shares = (1e-6, 0.001, 0.02, 0.1, 0.5, 1.0)
    seen = [set(by_labels(PROMPTS, share, same, class_of)[0]) for share in shares]
    for fewer, more, share in zip(seen, seen[1:], shares[1:], strict=False):
        assert fewer <= more
        assert {"rare", "common"} <= {class_of(prompt) for prompt in fewer}
        assert set(by_labels(PROMPTS[::-1], share, same, class_of)[0]) == more
    assert len(seen[0]) == 2
    for share, kept in zip(shares, seen, strict=True):
        assert 0 <= len(kept - set(by_labels(PROMPTS, share, same)[0]) if share > 1e-3 else kept) <= 2


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


@pytest.mark.parametrize("script", ["sft", "rl"])
def test_a_classifier_always_sees_all_its_classes(script, tmp_path):
    """By the same examples in both scripts, which make the same task of the same options."""
    path = tmp_path / "train.jsonl"
    rows = [{"text": f"text {i}", "label": "rare" if i % 50 == 0 else "common"} for i in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"sft": TASKS, "rl": train_rl.JUDGED}[script]
    for share in (0.003, 0.02):
        task = tasks["classify"](tasks["classify"].Options(train=path, labels=share), 0)
        assert {example.label for example in task.splits.train} == {"rare", "common"}


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


# ---- prompts that have no answer --------------------------------------------------------------------


@pytest.fixture(scope="module")
def translated(tmp_path_factory):
    """A run of train_sft.py on a few sentences, and files: prompts without answers, dev examples, a reward."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("translated")
    rows = [{"prompt": f"{a} {b}", "answer": f"{b}"} for a in "abcd" for b in "efgh"]
    for name, some in (
        ("given", rows),
        ("bare", [{"prompt": row["prompt"]} for row in rows]),
        ("mixed", [*rows[:8], *({"prompt": row["prompt"]} for row in rows[8:])]),
        ("dev", [{"prompt": "a a", "answer": "a"}, {"prompt": "b b", "answer": "b"}]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "short.py").write_text("def score(examples, answers):\n    return [1 / (1 + len(a)) for a in answers]\n")
    options = seq2seq.Options(train=folder / "given.jsonl", dev=folder / "dev.jsonl")
    args = train_sft.Args(task="seq2seq", out=folder / "run", steps=3, options=options, **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        train_sft.train(args, Console(quiet=True))
    return folder


def by_reward(folder, name, out, **options):
    own = seq2seq.Options(train=folder / f"{name}.jsonl", dev=folder / "dev.jsonl", max_answer_tokens=5)
    common = {"task": "seq2seq", "init": folder / "run", "steps": 2, "out": out, "options": own, **FEW}
    return train_rl.train(train_rl.Args(**{**common, **options}), Console(quiet=True))


def test_prompts_alone_are_learned_from_by_rewards(translated, tmp_path):
    judge = (f"{translated / 'short.py'}:score",)
    run = by_reward(translated, "bare", tmp_path / "a", reward=judge)
    assert run.options()["sft_share"] == 0.0
    assert 0 < json.loads(run.path("metrics.json").read_text())["dev_reward"] <= 1
    run = by_reward(translated, "bare", tmp_path / "b", reward=judge, method="expert", threshold=0.01, rounds=1)
    finds = [json.loads(line) for line in run.path("finds.jsonl").read_text().splitlines()]
    assert finds
    assert max(len(each["tokens"]) for each in finds) <= 5
    run = by_reward(translated, "mixed", tmp_path / "c", reward=judge, sft_share=0.5)
    assert run.is_finished


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "bare",
            {},
            "the reward 'own' compares with given answers, but some training prompts have none: give",
        ),
        ("mixed", {"reward": ("exact",)}, "the reward 'exact' compares with given answers"),
        ("bare", {"sft_share": 0.5, "reward": ("length",)}, r"--sft-share 0\.5 learns from given answers"),
        ("bare", {"reward": ("length",), "method": "expert"}, "say from which reward on an answer is right"),
        (
            "bare",
            {"reward": ("length",), "method": "expert", "threshold": 1e9},
            "the answers to 4 prompts reached",
        ),
    ],
)
def test_what_prompts_alone_cannot_do(translated, tmp_path, name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        by_reward(translated, name, tmp_path / "run", **options)


def test_prompts_alone_are_no_examples(translated):
    bare, dev = translated / "bare.jsonl", translated / "dev.jsonl"
    with pytest.raises(UserError, match=r"no example of .*bare.jsonl has an answer: .* or give --dev FILE"):
        seq2seq.Seq2Seq(seq2seq.Options(train=bare), 0)
    with pytest.raises(UserError, match=r"dev.jsonl:1 has no field 'answer'|bare.jsonl:1 has no field 'answer'"):
        seq2seq.Seq2Seq(seq2seq.Options(train=translated / "given.jsonl", dev=bare), 0)
    args = train_sft.Args(task="seq2seq", init=translated / "run", options=seq2seq.Options(train=bare, dev=dev))
    with pytest.raises(UserError, match="no training example of --task seq2seq has an answer"):
        train_sft.train(args, Console(quiet=True))
    task = seq2seq.Seq2Seq(seq2seq.Options(train=translated / "mixed.jsonl", dev=dev), 0)
    assert (len(task.splits.train), len(task.splits.unlabelled)) == (8, 8)

"""Tagging: files become sentences, mistakes in them are named, answers are measured."""

import gzip
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from minillm.errors import UserError
from minillm.tagging import Tagged
from minillm.tasks.tag import Options, Sentence, Tag, worst_mistakes

ROWS = [
    ("play westbam now", "O B-artist O", "play"),
    ("play little robin", "O B-track I-track", "play"),
    ("rate it five", "O O B-stars", "rate"),
    ("rate this book four", "O O O B-stars", "rate"),
]


@pytest.fixture
def write(tmp_path):
    """Rows (words, tags[, intent]) to a JSONL file."""

    def write(name, rows, as_lists=False):
        path = tmp_path / name
        fields = ("tokens", "tags", "intent")
        rows = [[*(part.split() for part in row[:2]), *row[2:]] if as_lists else row for row in rows]
        path.write_text("".join(json.dumps(dict(zip(fields, row, strict=False))) + "\n" for row in rows))
        return path

    return write


def load(train, dev=None, test=None, fields=None):
    return Tag(Options(train, dev, test, fields), seed=0)


def sentence(words, tags, intent=None):
    return Sentence(tuple(words.split()), tuple(tags.split()), intent)


# ---- files ---------------------------------------------------------------------------------------


def test_lists_texts_and_columns_are_the_same_task(write, tmp_path):
    dev = write("dev.jsonl", [("stop westbam", "O B-artist")])
    plain = [row[:2] for row in ROWS]
    columns = "".join(
        "".join(f"{w} x {t}\n" for w, t in zip(*map(str.split, row), strict=True)) + "\n" for row in plain
    )
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O\n\n" + columns)
    (tmp_path / "a.txt").write_text(columns.replace(" x ", "\t"))
    with gzip.open(tmp_path / "a.bio.gz", "wt") as file:
        file.write(columns)
    (tmp_path / "a.csv").write_text("tokens,tags\n" + "".join(",".join(row) + "\n" for row in plain))
    paths = [write("a.jsonl", plain), write("b.jsonl", plain, as_lists=True)]
    paths += [tmp_path / name for name in ("a.conll", "a.txt", "a.bio.gz", "a.csv")]
    for task in [load(path, dev) for path in paths]:
        assert task.splits.train == [sentence(*row) for row in plain]
        assert task.splits.dev == [sentence("stop westbam", "O B-artist")]
        assert task.classes == ["O", "B-artist", "B-stars", "B-track", "I-track"]
        assert (task.sequence_classes, task.headline) == ([], "f1")


def test_an_intent_is_learned_where_there_is_one(write):
    task = load(write("a.jsonl", ROWS), write("b.jsonl", [("go on", "O O", "play")]))
    assert task.sequence_classes == ["play", "rate"]
    assert task.splits.train[0].intent == "play"
    assert "2 intents: play 2, rate 2" in task.notes


def test_fields_have_names_of_ones_own(tmp_path):
    for name in "ab":
        (tmp_path / name).with_suffix(".jsonl").write_text(
            json.dumps({"words": [name, "c"], "ner": ["O", "B-x"], "kind": 1})
            + "\n"
            + json.dumps({"words": [name, "d"], "ner": ["O", "B-y"], "kind": 2})
        )
    task = load(tmp_path / "a.jsonl", tmp_path / "b.jsonl", fields="tokens=words,tags=ner,intent=kind")
    assert task.splits.train == [sentence("a c", "O B-x", "1"), sentence("a d", "O B-y", "2")]


def test_what_is_held_out_is_never_trained_on(write):
    rows = [*ROWS, ("sing it", "O O", "play")]
    task = load(write("a.jsonl", rows), write("b.jsonl", [rows[4]]), write("c.jsonl", [rows[0]]))
    assert task.splits.train == [sentence(*row) for row in ROWS[1:]]
    many = [(f"play {a}{b} now", "O B-artist O", intent) for a in "abcde" for b in "abcd" for intent in ("play",)]
    many += [(f"rate {a}{b}", "O B-book", "rate") for a in "abcde" for b in "abcd"]
    task = load(write("a.jsonl", many))
    assert [sorted(e.intent for e in task.splits.dev)] == [["play", "play", "rate", "rate"]]  # a share of each
    assert not {e.words for e in task.splits.dev} & {e.words for e in task.splits.train}


def test_malformed_sequences_are_mended_and_named(write):
    train = write("a.jsonl", [("a b c", "O I-x I-x"), ("d e f", "B-x I-y O"), ("g h", "B-x I-x"), ("i", "B-y")])
    task = load(train, write("b.jsonl", [("a c", "I-x O")]))
    assert [each.tags for each in task.splits.train[:2]] == [("O", "B-x", "I-x"), ("B-x", "B-y", "O")]
    assert task.splits.dev[0].tags == ("B-x", "O")
    notes = " ".join(task.notes)
    assert "2 of 4 sentences of a.jsonl have tags that cannot stand so, such as I-x behind O" in notes
    assert f"{train}:1, word 2" in notes
    assert "1 of 1 sentence of b.jsonl" in notes
    assert "I-x behind the beginning" in notes


@pytest.mark.parametrize(
    ("tags", "classes"),
    [
        ("U-x B-x I-x L-x O", ["O", "B-x", "I-x", "L-x", "U-x"]),
        ("S-x B-x I-x E-x O", ["O", "B-x", "E-x", "I-x", "S-x"]),
        ("I-x I-x O O I-y", ["O", "I-x", "I-y"]),
        ("NOUN VERB DET NOUN ADV", ["O", "ADV", "DET", "NOUN", "VERB"][1:]),
        ("O B A B O", ["O", "A", "B"]),
    ],
)
def test_each_way_of_marking_stays_as_it_is(write, tags, classes):
    train = write("a.jsonl", [("a b c d e", tags)] * 2)
    task = load(train, write("b.jsonl", [("f", tags.split()[-1])]))
    assert task.classes == classes
    assert task.splits.train[0].tags == tuple(tags.split())
    assert not any("cannot stand so" in note for note in task.notes)
    assert task.headline == ("f1" if any("-" in tag for tag in classes) else "accuracy")


def test_files_that_are_only_to_be_answered_may_hold_anything(write):
    task = load(None, write("b.jsonl", [("x y", "O O", "sing")]))
    assert task.splits.dev == [sentence("x y", "O O", "sing")]
    assert (task.classes, task.sequence_classes, task.notes) == (["O"], ["sing"], [])


def test_what_training_lacks_is_said(write):
    task = load(write("a.jsonl", ROWS), write("b.jsonl", [("x y", "B-album O", "sing")]))
    assert "dev has 'B-album', 'sing', which --train has not: no model can learn that" in task.notes
    assert "B-album" not in task.classes


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"tokens": "a b", "tags": "O"}, r":1 has 2 words but 1 tag; give every word"),
        ({"tokens": "a b"}, r":1 has no field 'tags', only 'tokens'"),
        ({"tokens": ["a", "b c"], "tags": "O O"}, r":1: 'tokens' must hold words, none of them empty, without blanks"),
        ({"tokens": ["a", ""], "tags": "O O"}, r":1: 'tokens' must hold words, none of them empty"),
        ({"tokens": "a b", "tags": [0, 1]}, r":1: 'tags' is 0, but a text was expected"),
        ({"tokens": "a b", "tags": "O O"}, r"all words bear the tag 'O'; there is nothing to tell apart"),
        ({"tokens": "a b", "tags": "O B-x", "intent": "i"}, r"all sentences have the intent 'i'; leave it out"),
        (
            {"tokens": "a b", "tags": "O B-x", "intent": None},
            r":1: 'intent' is empty, so that",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, write, row, sentence):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "a.jsonl", write("b.jsonl", ROWS))


def test_more_mistakes(tmp_path, write):
    with pytest.raises(UserError, match=r"--task tag learns from your own examples: give --train FILE"):
        load(None)
    (tmp_path / "a.conll").write_text("word\n")
    with pytest.raises(UserError, match=r"a.conll:1 has one column"):
        load(tmp_path / "a.conll")
    many = [(" ".join("abcdefghij"), " ".join(f"B-{n}{k}" for k in range(10))) for n in range(101)]
    with pytest.raises(UserError, match=r"there are 1,010 different tags; are these the tags\?"):
        load(write("a.jsonl", many), write("b.jsonl", ROWS))
    with pytest.raises(UserError, match=r"b.jsonl:1 has no field 'intent'"):
        load(write("a.jsonl", ROWS), write("b.jsonl", [("a", "O")]))


# ---- answers -------------------------------------------------------------------------------------


def answers_to(examples, rng):
    """Some of them right."""
    found = []
    for example in examples:
        tags = [rng.choice(["O", "B-x", "I-x", "B-y", "I-y"]) if rng.random() < 0.4 else tag for tag in example.tags]
        found.append(Tagged(tags, [0.5] * len(tags), rng.choice(["a", "b"]) if example.intent else None, 0.5))
    return found


def some_examples(rng, number=60, has_intent=True):
    tags = [rng.choices(["O", "B-x", "I-x", "B-y", "I-y"], k=rng.randint(1, 9)) for _ in range(number)]
    return [Sentence(tuple("abcdefghi"[: len(t)]), tuple(t), rng.choice("ab") if has_intent else None) for t in tags]


def some_task(write, has_intent=True):
    rows = [("a b", "B-x I-x", "a"), ("c d", "B-y I-y", "b"), ("e", "O", "b")]
    rows = rows if has_intent else [row[:2] for row in rows]
    return load(write("a.jsonl", rows), write("b.jsonl", [("f", "O", "a")]))


def test_f1_is_that_of_seqeval(write):
    seqeval = pytest.importorskip("seqeval.metrics", reason="pip install seqeval")
    rng = random.Random(0)
    for _ in range(5):
        examples = some_examples(rng)
        answers = answers_to(examples, rng)
        measured = some_task(write).measure(examples, answers)
        truth, found = [list(e.tags) for e in examples], [a.tags for a in answers]
        assert measured["f1"].value == pytest.approx(seqeval.f1_score(truth, found), abs=1e-12)
        assert measured["accuracy"].value == pytest.approx(seqeval.accuracy_score(truth, found), abs=1e-12)
        report = seqeval.classification_report(truth, found, output_dict=True)
        by_type = some_task(write).details(examples, answers)["by_type"]
        for kind, values in by_type.items():
            assert values["f1"] == pytest.approx(report[kind]["f1-score"], abs=1e-12)
            assert values["precision"] == pytest.approx(report[kind]["precision"], abs=1e-12)
            assert values["recall"] == pytest.approx(report[kind]["recall"], abs=1e-12)
            assert values["support"] == report[kind]["support"]
        right = [e.intent == a.intent for e, a in zip(examples, answers, strict=True)]
        assert measured["intent_accuracy"].value == pytest.approx(np.mean(right))


def test_intervals_hold_what_was_measured_and_narrow_down(write):
    rng, task, widths = random.Random(1), some_task(write), []
    for number in (20, 2000):
        examples = some_examples(rng, number)
        for name, interval in task.measure(examples, answers_to(examples, rng)).items():
            assert 0 <= interval.low <= interval.value <= interval.high <= 1, name
            widths.append(interval.high - interval.low)
    assert all(wide > 5 * narrow for wide, narrow in zip(widths[:3], widths[3:], strict=True))


def test_without_entities_f1_is_unknown(write):
    examples = [sentence("a b", "O O", "a")]
    measured = some_task(write).measure(examples, [Tagged(["O", "O"], [1.0, 1.0], "a", 1.0)])
    assert measured["f1"] == (0, 0, 1)
    assert measured["accuracy"].value == 1


def test_rewards_are_parts_of_one(write):
    task = some_task(write)
    examples = [sentence("a b c", "B-x I-x B-y", "a"), sentence("a", "O", "b")]
    answers = [Tagged(["B-x", "I-x", "O"], [1.0] * 3, "b", 1.0), Tagged(["O"], [1.0], "b", 1.0)]
    assert task.reward(examples, answers) == {"f1": [pytest.approx(1 / 3), 0.5], "intent": [0, 0.5]}
    plain = [replace(example, intent=None) for example in examples]
    assert some_task(write, has_intent=False).reward(plain, answers) == {"f1": [pytest.approx(2 / 3), 1]}


def test_baselines_look_words_up_and_count_them(write):
    rows = [("play x", "O B-x", "a"), ("x plays", "B-x O", "a"), ("stop x now", "O O O", "b"), ("stop", "O", "b")]
    task = load(write("a.jsonl", rows), write("b.jsonl", [("play x there", "O B-x O", "a"), ("stop y", "O B-x", "b")]))
    measured = task.baselines(task.splits.dev)
    assert measured["look_up"].value == pytest.approx(2 / 3)  # x is found, y is unknown
    assert measured["naive_bayes"].value == 1
    assert task.remarks({"f1": measured["look_up"], **measured}) == [
        "giving each word its commonest tag does as well (66.7%): a longer training (--minutes or --epochs), "
        "more examples, or a published model (--init) may help"
    ]
    assert task.remarks({"f1": measured["naive_bayes"], **measured}) == []


def test_the_worst_are_shown(write):
    task = some_task(write)
    examples = [sentence("a b c", "B-x I-x O", "a"), sentence("d [e]", "O B-y", "b"), sentence("f", "O", "b")]
    answers = [Tagged(t.split(), [1.0], "a", 1.0) for t in ("B-x I-x O", "B-x O", "O")]
    assert worst_mistakes(examples, answers) == [(examples[1], answers[1])]
    table = task.table(examples, answers)
    assert [str(column._cells[0]) for column in table.columns] == ["d [e]", "d (x)", "[e] (y)"]
    details = task.details(examples, answers)
    assert (details["by_type"]["y"]["f1"], details["by_type"]["y"]["support"]) == (0, 1)
    assert json.loads(json.dumps(details["worst_mistakes"]))[0]["answer"] == ["B-x", "O"]

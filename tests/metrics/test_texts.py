"""BLEU and chrF against sacrebleu called as anybody would, ROUGE against rouge-score."""

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import UserError
from minillm.metrics import bleu, chrf, rouge
from minillm.metrics.texts import longest_common, signature

WORDS = "the a cat dog sat on under mat, running ran runs isn't 3.5 % Straße Ärger — ein Hund . The"


def corpus(seed, n=60, several=False):
    """Right answers, and answers that share words with them."""
    rng, known = random.Random(seed), WORDS.split()
    references, answers = [], []
    for _ in range(n):
        words = rng.choices(known, k=rng.randint(1, 15))
        other = [rng.choice(known) if rng.random() < 0.3 else word for word in words]
        references.append([" ".join(words), " ".join(rng.choices(known, k=9))][: rng.randint(1, 2) if several else 1])
        answers.append(" ".join(other[: rng.randint(0, 15)]) if rng.random() < 0.5 else " ".join(other))
    return references, answers


@pytest.mark.parametrize("several", [False, True], ids=["one right answer", "one or two"])
@pytest.mark.parametrize("name", ["BLEU", "CHRF"])
def test_bleu_and_chrf_are_those_of_sacrebleu(name, several):
    metrics = pytest.importorskip("sacrebleu.metrics", reason="needs sacrebleu: pip install -e '.[metrics]'")
    references, answers = corpus(1, several=several)
    streams = [[each[i] if i < len(each) else None for each in references] for i in range(1 + several)]
    metric = getattr(metrics, name)()
    expected = metric.corpus_score(answers, streams)
    found = {"BLEU": bleu, "CHRF": chrf}[name](references, answers)
    assert found.value == pytest.approx(expected.score, abs=1e-9)
    assert signature(name, references) == str(metric.get_signature())
    assert str(found) == f"{expected.score:.1f} [{found.low:.1f}, {found.high:.1f}]"


@pytest.mark.parametrize("name", ["BLEU", "CHRF"])
def test_intervals_are_about_as_wide_as_those_of_sacrebleu(name):
    """Its bootstrap, whose half-width is of the mean of the resamples."""
    metrics = pytest.importorskip("sacrebleu.metrics", reason="needs sacrebleu: pip install -e '.[metrics]'")
    references, answers = corpus(2, n=300)
    metric = getattr(metrics, name)()
    theirs = metric.corpus_score(answers, [[each[0] for each in references]], n_bootstrap=1000)
    found = {"BLEU": bleu, "CHRF": chrf}[name](references, answers)
    assert (found.high - found.low) / 2 == pytest.approx(theirs._ci, rel=0.15)


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[metrics\]'"):
        bleu([["a"]], ["a"])


@pytest.mark.parametrize("several", [False, True])
def test_rouge_is_that_of_rouge_score(several):
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="needs rouge-score: pip install -e '.[test]'")
    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = scorers.RougeScorer(list(names.values()))
    references, answers = corpus(3, n=200, several=several)
    theirs = [scorer.score_multi(right, answer) for right, answer in zip(references, answers, strict=True)]
    for ours, name in names.items():
        expected = sum(score[name].fmeasure for score in theirs) / len(theirs)
        assert rouge(references, answers)[ours].value == pytest.approx(expected, abs=1e-12)


@given(st.text(alphabet="ab .İß-1", max_size=30), st.text(alphabet="ab .İß-1", max_size=30))
@settings(max_examples=200, deadline=None)
def test_rouge_of_any_text(first, second):
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="needs rouge-score: pip install -e '.[test]'")
    theirs = scorers.RougeScorer(["rougeL"]).score(first, second)["rougeL"].fmeasure
    assert rouge([[first]], [second])["rouge_l"].value == pytest.approx(theirs, abs=1e-12)


@given(st.text(alphabet="abc", max_size=12), st.text(alphabet="abc", max_size=12))
def test_longest_common_subsequence_is_its_definition(first, second):
    table = {}
    for i in range(len(first) + 1):
        for j in range(len(second) + 1):
            if not i or not j:
                table[i, j] = 0
            elif first[i - 1] == second[j - 1]:
                table[i, j] = table[i - 1, j - 1] + 1
            else:
                table[i, j] = max(table[i - 1, j], table[i, j - 1])
    assert longest_common(first, second) == table[len(first), len(second)]

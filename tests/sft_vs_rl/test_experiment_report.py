"""The report finds what is true of made-up results, says no more than its intervals do, and can be looked at."""

import re
import shutil

import pytest
import trials
from experiment import page, questions, report
from experiment.results import Results, pass_at_k

from minillm.pages import blocks

NOTHING = "no (change|difference)|nothing that was seen"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    study, design, work = trials.made(folder)
    return study, design, work, report.write(study, design, work, {"dpo": f"of {trials.EVIL}"})


def test_what_is_true_is_found(made):
    study, design, work, _ = made
    results = Results(study, design, work)
    for arm, other in (("rl", "sft"), ("rl", "start"), ("shuffled", "sft")):
        found = results.difference(arm, other)
        assert found.low < trials.TRUTH[arm] - trials.TRUTH[other] < found.high
    assert "ahead: REINFORCE by " in questions.headline(results)
    said = " ".join(sentence for question in questions.answered(results) for sentence in question.sentences)
    assert "REINFORCE made more answers right than its start: +" in said
    assert "More SFT: no change of right answers was seen: " in said
    assert "Verdicts that say nothing made fewer answers right" in said


def test_no_sentence_says_more_than_its_interval(made):
    """Of every printed sentence with an interval: it tells a difference just where the interval holds no 0."""
    study, design, work, _ = made
    asked = questions.answered(Results(study, design, work))
    count = 0
    for sentence in (s for question in asked for s in question.sentences):
        if bounds := re.search(r"\[([+−][\d.]+), ([+−][\d.]+)\]", sentence):
            low, high = (float(bound.replace("−", "-")) for bound in bounds.groups())
            says_nothing = re.search(NOTHING, sentence, re.IGNORECASE)
            assert bool(says_nothing) == (low <= 0 <= high), sentence
            count += 1
    assert count > 10


def test_all_five_questions_are_answered_with_a_picture(made):
    study, design, work, path = made
    asked = questions.answered(Results(study, design, work))
    assert len(asked) == 5
    assert all(question.sentences and any(question.pictures) for question in asked)
    text = path.read_text()
    for number, question in enumerate(asked, 1):
        assert f"<h2>{number}. {blocks.escaped(question.title)}</h2>" in text
    pictures = {p.name for question in asked for p in question.pictures if p} | {"by_operations", "by_seconds"}
    assert pictures == {png.stem for png in path.parent.glob("*.png")}


def test_the_page_is_one_file_and_texts_stay_texts(made):
    text = made[-1].read_text()
    assert trials.EVIL not in text
    assert blocks.escaped(trials.EVIL) in text
    assert not re.findall(r"<(script|img|link|iframe|a) |src=|@import|url\(", text)


def test_costs_are_counted(made):
    study, design, work, _ = made
    results = Results(study, design, work)
    cost = results.mean_cost("rl")
    assert cost.labels == 320
    assert cost.verdicts == 4 * 4 * 2  # steps of the log, prompts, samples
    assert cost.operations == 4 * (4 * 2 * 10.0 * 8) * 1000
    assert results.mean_cost("sft").operations == 6 * 99 * 4 * 1000
    assert results.mean_cost("sft-rl").seconds == 80.0  # both halves
    assert results.mean_cost("sft-rl").operations == cost.operations + results.mean_cost("sft").operations


def test_pass_at_k():
    import numpy as np

    assert pass_at_k(np.array([[0, 0, 1], [0, 0, 0]])).tolist() == [1, 0]
    assert pass_at_k(np.array([[0.5]]), 2).tolist() == [0.75]


def test_a_report_of_what_is_there_so_far(made, tmp_path):
    """Half of the jobs done: it says so, and leaves out what it does not know."""
    shutil.copytree(made[2].folder, tmp_path / "half")
    for name in ("rl-5pct-0", "rl-5pct-1", "rl-5pct-2", "shuffled-5pct-1"):
        shutil.rmtree(tmp_path / "half" / name)
    study, design, work = made[0], made[1], type(made[2])(made[0], made[2].jobs.values(), tmp_path / "half", None)
    text = report.write(study, design, work, {}).read_text()
    assert "Not finished: " in text
    assert "REINFORCE made" not in text
    assert page.design_in_words(Results(study, design, work)).count("jobs are done") == 1

"""What a person sees: figures and samples."""

import io
from itertools import pairwise
from types import SimpleNamespace

import pytest
from rich.console import Console

from minillm import report
from minillm.metrics import Interval
from minillm.tasks.base import Example


def printed(thing, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue()


def test_figures():
    metrics = {"wer": Interval(0.382, 0.363, 0.401), "accuracy": Interval(1, 0.5, 1)}
    assert report.figures(metrics) == "WER 38.2% [36.3%, 40.1%] · accuracy 100.0% [50.0%, 100.0%]"
    assert printed(report.figures(metrics)).strip() == report.figures(metrics)  # the brackets are no markup
    assert report.flat(metrics, "dev") == {
        "dev_wer": 0.382,
        "dev_wer_low": 0.363,
        "dev_wer_high": 0.401,
        "dev_accuracy": 1,
        "dev_accuracy_low": 0.5,
        "dev_accuracy_high": 1,
    }


@pytest.mark.parametrize("size", [1, 9, 10, 27, 499, 999])
def test_evenly_spaced_is_that_and_of_the_size(size):
    numbers = list(range(size))
    chosen = report.evenly_spaced(numbers, 10)
    assert len(chosen) == min(size, 10)
    assert chosen[0] == 0
    gaps = {b - a for a, b in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("size", [1, 10, 11, 25, 1000])
def test_ten_samples(size):
    examples = [Example(f"<{i}>", (f" a{i}", f" b{i}")) for i in range(size)]
    answers = [f" b{i}" if i % 2 else " x" for i in range(size)]
    text = printed(report.samples_table(examples, answers, "samples"))
    assert text.count("<") == min(size, 10)
    assert "a0 or b0" in text
    assert text.count("✗") + text.count("✓") == min(size, 10)


def test_of_what_is_only_judged_nothing_is_called_wrong():
    text = printed(report.samples_table([Example("2+2=", ()), Example("3+3=", ("6",))], ["4", "5"], "samples"))
    assert text.count("✗") == 1


def test_words_with_brackets_are_no_markup():
    text = printed(report.samples_table([Example("[b]x:", (" y",))], [" [red]z"], "samples"))
    assert "[b]x:" in text
    assert "[red]z" in text


@pytest.mark.parametrize(
    ("values", "last", "score", "expected"),
    [
        ([0.7, 0.5, 0.6], 30, 0.65, "before the first step: no training was as good as the start, the best of 4 looks"),
        ([0.5, 0.7, 0.7], 30, 0.7, "after step 30 of 30, the best of 4 looks"),
        ([0.5, 0.7, 0.7], 30, 0.6, "after step 20 of 30, the best of 4 looks"),
        ([0.5, 0.6, 0.7], 30, 0.8, "after step 30 of 30, the best of 4 looks"),
        ([0.5, 0.6, 0.7], 20, 0.1, "after step 20 of 20, the best of 3 looks"),
    ],
)
def test_which_look_was_kept(values, last, score, expected):
    log = [{"step": 10 * i, "dev_accuracy": value} for i, value in enumerate(values)] + [{"step": 5, "loss": 1.0}]
    task = SimpleNamespace(lower_is_better=False, headline="accuracy")
    assert expected in report.which_look(task, log, last, score)
    errors = [{**record, "dev_accuracy": -record["dev_accuracy"]} for record in log if "loss" not in record]
    assert expected in report.which_look(
        SimpleNamespace(lower_is_better=True, headline="accuracy"), errors, last, score
    )

"""The page of a run, from the files of its folder."""

import dataclasses
import html
import json
import re
import shlex
from pathlib import Path

import made_up
import pytest
from made_up import EVIL
from rich.console import Console

import minillm.curves
import train_rl
import train_sft
from minillm import cli
from minillm.commands import report
from minillm.errors import UserError
from minillm.pages.run_page import run_page, series
from minillm.run import Run
from minillm.tasks import TASKS
from minillm.tasks.arithmetic import Options


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of both scripts, the second from the first."""
    folder = tmp_path_factory.mktemp("runs")
    shape = {"width": 16, "layers": 1, "heads": 2, "batch_tokens": 64}
    both = {"task": "arithmetic", "evaluations": 2, "precision": "fp32", "options": Options(examples=50)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        sft = train_sft.Args(out=folder / "a start", steps=70, **shape, **both)
        train_sft.train(sft, Console(quiet=True))
        rl = train_rl.Args(out=folder / "rl", init=folder / "a start", steps=4, prompts=4, samples=4, **both)
        train_rl.train(rl, Console(quiet=True))
    return {"sft": (folder / "a start", sft), "rl": (folder / "rl", rl)}


ENDS = ("", "_low", "_high")


def page(options=None, found=None, metrics=None, log=None):
    parts = (options or made_up.options(), found or made_up.findings(), metrics or made_up.metrics())
    return run_page("a <run>", *parts, made_up.log() if log is None else log)


def sentence(page):
    return html.unescape(re.search("<h1>(.*?)</h1>", page).group(1))


def text_of(page):
    return html.unescape(re.sub("<[^>]*>", " ", page))


def headings(page):
    return [html.unescape(each) for each in re.findall("<h2>(.*?)</h2>", page)]


# ---- of real runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_every_run_has_its_page_and_gets_it_anew(trained, kind, capsys):
    folder, _ = trained[kind]
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    report.main(report.Args((str(folder),)))
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_text() == before


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_the_command_gives_the_same_options_again(trained, kind, monkeypatch):
    folder, args = trained[kind]
    script = {"sft": train_sft, "rl": train_rl}[kind]
    commands = re.findall("<pre><code>(.*?)</code></pre>", (folder / "report.html").read_text())
    words = shlex.split(html.unescape(commands[0]))
    assert words[:2] == ["python", f"{script.__name__}.py"]
    tasks = {"sft": TASKS, "rl": train_rl.JUDGED}[kind]
    assert cli.parse_with_task(script.Args, tasks, "", words[2:]) == args


def test_what_a_page_of_a_run_says(trained):
    page = (trained["rl"][0] / "report.html").read_text()
    metrics = json.loads((trained["rl"][0] / "metrics.json").read_text())
    before, after = (f"{metrics[name]:.1%}" for name in ("start_dev_accuracy", "dev_accuracy"))
    assert sentence(page).startswith(f"arithmetic: accuracy {before} → {after} [")
    assert sentence(page).endswith("on 1,000 dev examples")
    changed = ["What it changed, on dev", "What it changed, on test"]
    wanted = ["Figures", "Curves", *changed, "Held-out examples", "Answers while it learned"]
    wanted += ["What the figures mean", "Do it again"]
    assert headings(page) == wanted
    assert "GPT" in text_of(page)
    found = json.loads((trained["rl"][0] / "report.json").read_text())
    *_, shown = found["tables"]
    assert shown["columns"] == ["prompt", "answer", "", "truth"]
    assert len(shown["rows"]) == 10
    assert {mark for _, _, mark, _ in shown["rows"]} <= {"✓", "✗"}
    assert found["environment"]["weights"] == "float32"


def test_a_run_that_goes_on_has_a_page_too(trained, tmp_path):
    folder, _ = trained["sft"]
    for name in ("args.json", "log.jsonl", "config.json", "report.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    report.main(report.Args((str(tmp_path),)))
    page = (tmp_path / "report.html").read_text()
    assert sentence(page) == "arithmetic: not finished yet"
    assert headings(page) == ["Curves", "Do it again"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("report.json", '{"task": "classify"}', "is spoiled: it is not what a run writes"),
        ("report.json", json.dumps(made_up.findings(tables=[3])), "is spoiled: it is not what a run writes"),
        ("metrics.json", "[]", "holds no JSON object"),
        ("args.json", "{", "cannot read"),
    ],
)
def test_spoiled_files_are_named(trained, tmp_path, name, content, said):
    for path in trained["sft"][0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}.*{said}|{said}.*{name}"):
        report.main(report.Args((str(tmp_path),)))


def test_where_nothing_has_happened_yet(trained, tmp_path):
    """A page there would keep the same command from beginning it anew."""
    for name in ("args.json", "config.json"):
        (tmp_path / name).write_bytes((trained["sft"][0] / name).read_bytes())
    with pytest.raises(UserError, match="has taken no step yet"):
        report.main(report.Args((str(tmp_path),)))
    assert not (tmp_path / "report.html").exists()


def test_where_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match="there is no run folder"):
        report.main(report.Args((str(tmp_path / "none"),)))


# ---- of made-up ones -----------------------------------------------------------------------------


def test_the_sentence():
    words = "classify: accuracy 44.0% → 88.1% [86.1%, 90.1%] on 872 dev examples; naive Bayes 79.7%"
    assert sentence(page()) == f"{words}, always the commonest class 50.9%"
    only_test = {name.replace("dev_", "test_"): value for name, value in made_up.metrics().items()}
    found = made_up.findings(examples={"train": 9, "dev": 0, "test": 50}, baselines=[])
    words = "classify: accuracy 44.0% → 88.1% [86.1%, 90.1%] on 50 test examples"
    assert sentence(page(found=found, metrics=only_test)) == words
    assert sentence(page(metrics={"seconds": 3})) == "classify: finished"


def test_figures_beside_their_baselines():
    text = page()
    rows = re.findall(r'<tr(?: class="(own)")?><th scope="row">([^<]*)</th><td class="value', text)
    assert rows == [
        ("own", "accuracy"),
        ("", "accuracy, before"),
        ("", "naive Bayes"),
        ("", "always the commonest class"),
        ("own", "macro-F1"),
        ("own", "nats a token"),
    ]
    assert "1.700" in text  # no share
    assert "170" not in text_of(text)


def test_what_the_figures_mean():
    """One line each, whatever the splits; of the metric of a task of somebody's own at least which way is better."""
    text = text_of(page())
    assert text.count("as the task has it, higher is better") == 1
    assert "mean over the classes" in text
    assert "what counting words and pairs of words gives" in text
    assert "matrix rate" not in text
    values = {f"dev_own_thing{end}": 0.5 for end in ENDS}
    found = made_up.findings(headline="own_thing", baselines=[], forms={}, lower_is_better=True)
    assert "own thing lower is better" in " ".join(text_of(page(found=found, metrics=values)).split())


def test_a_rule_is_drawn_over_the_axis_of_the_metric_by_which_it_is_measured():
    """Over axes of their own, a rule of 1.4 BLEU would lie to the right of a model of 87."""
    values = {f"dev_{name}{end}": v for name, v in {"bleu": 87.0, "copy": 1.4, "chrf": 93.0}.items() for end in ENDS}
    found = made_up.findings(headline="bleu", baselines=["copy"], forms=dict.fromkeys(("bleu", "copy", "chrf"), ".1f"))
    tables = re.findall(r'<table class="marks">(.*?)</table>', page(found=found, metrics=values))
    assert [re.findall('<th scope="row">([^<]*)<', each) for each in tables] == [["BLEU", "copy"], ["chrF2"]]


def test_what_is_said_of_the_data_has_a_line_each():
    text = page(found=made_up.findings(notes=["one thing", "another"]))
    assert "What was noticed in the data" in headings(text)
    assert "<li>one thing</li><li>another</li>" in text
    assert "What was noticed in the data" not in headings(page(found=made_up.findings(notes=[])))


def test_curves_of_all_that_was_logged():
    figures = re.findall(r"<figcaption>([^<]*)<", page())
    first = ["Accuracy", "Loss", "Parts of the reward", "Reward", "Gradient norm", "KL", "Learning rate"]
    assert figures == first


def test_of_two_looks_at_a_step_the_last_one_counts():
    """That at the very end, at all dev examples."""
    looks = [{"step": step, "seconds": 1.0, "dev_wer": wer} for step, wer in ((1, 0.9), (2, 0.5), (2, 0.4))]
    assert series("dev_wer", looks)[:3] == ("WER", [1, 2], [0.9, 0.4])


@pytest.mark.parametrize("steps", [0, 1, 2, 5000])
def test_logs_of_any_length(steps):
    text = page(log=made_up.log(steps))
    assert ("Curves" in headings(text)) == (steps > 0)
    assert len(text) < 200_000


def test_what_was_measured_by_type():
    by_type = {"city": {"f1": 0.5, "support": 13}, EVIL: {"f1": 0.0, "support": 2}}
    text = page(metrics=made_up.metrics(dev_by_type=by_type, dev_worst=[{"text": "x"}], dev_other={"a": 1}))
    assert [each for each in headings(text) if each.startswith("By")] == ["By type, dev"]
    assert re.findall(r"<td>city</td><td[^>]*>50.0%</td><td[^>]*>13</td>", text)


def test_no_text_becomes_markup():
    text = page()
    assert "<script" not in text
    assert "<img" not in text
    assert text.count(html.escape(EVIL[:20])) > 10
    assert not re.findall(r"<[^>]* on\w+=", text)


def test_what_only_the_clock_says_is_marked():
    slow, fast = (page(metrics=made_up.metrics(seconds=seconds)) for seconds in (9999.0, 1.0))
    assert slow != fast
    assert "1 h 2 min" in page()
    without = (re.sub('<span class="clock">[^<]*</span>', "", each) for each in (slow, fast))
    assert len(set(without)) == 1


def test_options_that_were_given_and_that_were_chosen():
    text = page()
    given = html.escape(shlex.join(["--epochs", "3.0", "--train", "a file.csv"]))
    assert f"python train_sft.py --task classify {given}" in text
    after = text_of(text[text.index("Options as chosen") :])
    assert "6e-05" in after
    assert "keep" in after
    assert "None" not in after


def test_given_options():
    args = train_sft.Args(task="arithmetic", seed=0, lr=0.5, out=Path("x"), options=Options(examples=9))
    assert cli.given(args) == {"task": "arithmetic", "out": Path("x"), "lr": 0.5, "examples": 9}
    assert cli.command_line({"json": True, "lr": 0.5, "stop": ("a b", "c")}) == "--json --lr 0.5 --stop 'a b' --stop c"
    assert cli.given(dataclasses.replace(args, options=None)).keys() == {"task", "out", "lr"}


def test_a_run_remembers_what_was_given(tmp_path):
    run = Run.create(tmp_path / "run", "run", {"train": Path("a.csv"), "lr": 0.5})
    assert run.given == {"train": "a.csv", "lr": 0.5}

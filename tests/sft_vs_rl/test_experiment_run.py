"""The whole command with tiny models: it runs, resumes, and leaves all it promises."""

import csv
import json

import pytest
import sft_vs_rl
import trials
from experiment import measure, plan, results, runner
from rich.console import Console

import train_rl
import train_sft
from minillm.errors import UserError

OPTIONS = ["--quick", "--steps", "2", "--starts", "50", "--arms", "sft,rl"]


class Stopped(Exception):
    pass


def test_the_command_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Stopped within the third of five trainings, and called again: none is trained twice, and all is there."""
    out, calls = tmp_path / "out", []
    train = {"sft": train_sft.train, "rl": train_rl.train}

    def counted(name):
        def call(args, console=None):
            calls.append((name, bool(args.resume)))
            if len(calls) == 3:
                raise Stopped
            return train[name](args, console)

        return call

    monkeypatch.setattr(train_sft, "train", counted("sft"))
    monkeypatch.setattr(train_rl, "train", counted("rl"))
    with pytest.raises(Stopped):
        sft_vs_rl.main([*OPTIONS, "--out", str(out)])
    report = sft_vs_rl.main([*OPTIONS, "--out", str(out)])
    assert len(calls) == 6  # five, and the one that was stopped
    said = capsys.readouterr().out
    assert "total: 5 jobs (1 start, 2 search, 2 arm), 2 steps of reinforcement learning" in said
    assert "min left" in said
    again = sft_vs_rl.main([*OPTIONS, "--out", str(out)])
    assert (len(calls), again) == (6, report)

    rows = list(csv.DictReader((out / "evaluations.csv").open()))
    assert list(rows[0]) == list(results.COLUMNS)
    assert {row["kind"] for row in rows} == {"start", "search", "arm", "look"}
    assert {row["set"] for row in rows if row["kind"] == "arm"} == {"dev", "test", "shift"}
    commands = (out / "commands.txt").read_text().splitlines()
    assert len(commands) == 5
    assert sum(line.startswith("python train_rl.py ") for line in commands) == 2
    assert (out / "learning_rates.png").stat().st_size > 1000
    with pytest.raises(UserError, match="holds an experiment with sizes = "):
        sft_vs_rl.main(["--steps", "2", "--starts", "50", "--seeds", "2", "--arms", "sft,rl", "--out", str(out)])


def test_a_training_that_was_cut_off_is_resumed(tmp_path, monkeypatch):
    """By the scripts' own --resume, not from the beginning."""
    study, work = trials.study(tmp_path), None
    job = next(job for job in plan.jobs(study, trials.design()) if job.kind == "start")
    work = runner.Runner(study, [job], tmp_path, Console(quiet=True))
    begin = train_sft.Session.log

    def log(session, *args, **values):
        begin(session, *args, **values)
        if session.progress.step == 2 and not session.budget.resume:
            session.save()
            raise Stopped

    monkeypatch.setattr(train_sft.Session, "log", log)
    with pytest.raises(Stopped):
        work.run()
    assert not work.is_done(job)
    work.run()
    assert work.is_done(job)
    steps = [record["step"] for record in runner.Run(work.path(job)).read_log() if "loss" in record]
    assert steps == [1, 2, 3, 4]


def test_a_training_that_breaks_is_shown_and_counts_as_right_nowhere(tmp_path, monkeypatch):
    study, design, work = trials.made(tmp_path)
    job = work.jobs["rl-5pct-1"]

    def broken(args, console=None):
        raise UserError("the loss became nan at step 3; try a lower --lr")

    monkeypatch.setattr(train_rl, "train", broken)
    (work.path(job) / measure.FILE).unlink()
    work.run()
    found = results.Results(study, design, work)
    assert found.failures() == ["rl-5pct-1: the loss became nan at step 3; try a lower --lr"]
    matrix = found.matrix("rl", "right", "test", 0.05, [0, 1, 2])
    assert matrix[1].sum() == 0
    assert matrix[0].sum() > 0
    assert found.matrix("rl", "kl", "test", 0.05, [0, 1, 2]) is None


def test_other_mistakes_end_the_run(tmp_path, monkeypatch):
    _, _, work = trials.made(tmp_path)
    (work.path(work.jobs["rl-5pct-1"]) / measure.FILE).unlink()

    def wrong(args, console=None):
        raise UserError("there is no file x")

    monkeypatch.setattr(train_rl, "train", wrong)
    with pytest.raises(UserError, match="there is no file x"):
        work.run()


def test_the_search_takes_the_best_rate(tmp_path):
    _, _, work = trials.made(tmp_path)
    name = next(job for job in work.jobs.values() if job.kind == "search" and job.arm == "rl" and job.factor == 0.3)
    measure.save(work.path(name), {"dev": {"right": measure.np.ones(9, dtype=bool)}})
    assert work.factor("rl") == 0.3
    assert work.args(work.jobs["rl-5pct-2"]).lr == pytest.approx(0.3 * work.jobs["rl-5pct-2"].base)
    measure.save(work.path(name), {})  # it broke
    assert work.factor("rl") == 1.0


def test_results_survive_being_saved(tmp_path):
    some = {"test": {"right": measure.np.array([True, False]), "kl": measure.np.array([0.5, -1.0])}}
    tmp_path.mkdir(exist_ok=True)
    measure.save(tmp_path, some)
    found = measure.load(tmp_path)
    assert found["test"]["right"].tolist() == [1.0, 0.0]
    assert found["test"]["kl"].tolist() == [0.5, -1.0]
    (tmp_path / measure.FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="is spoiled"):
        measure.load(tmp_path)


def test_what_folders_hold_is_compared(tmp_path):
    runner.require_same(tmp_path, {"task": "arithmetic", "seeds": 3})
    runner.require_same(tmp_path, {"task": "arithmetic", "seeds": 4})
    assert json.loads((tmp_path / "experiment.json").read_text())["seeds"] == 4
    with pytest.raises(UserError, match="with task = arithmetic, not pronounce"):
        runner.require_same(tmp_path, {"task": "pronounce", "seeds": 4})

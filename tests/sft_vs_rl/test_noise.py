"""How much of a gradient is signal: cosines of batches, by the scripts' own functions."""

import math

import numpy as np
import pytest
import torch
import trials
from experiment import measure, noise, plan, results, runner
from experiment.questions import answered
from rich.console import Console

import train_sft


def test_cosines_are_those_of_every_pair():
    e = torch.eye(3, dtype=torch.float64)
    found = noise.cosines(iter([e[0], 2 * (e[0] + e[1]), -e[0]]))
    assert found.tolist() == pytest.approx([math.sqrt(0.5), -1, -math.sqrt(0.5)])
    assert noise.cosines(iter([e[0], 0 * e[0]])).tolist() == [0]  # which taught nothing


def test_the_mean_cosine_is_the_share_of_signal():
    """Of gradients μ + noise, whose share is known."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.ones(1000, dtype=torch.float64)
    drawn = (signal + 2 * torch.randn(1000, generator=generator, dtype=torch.float64) for _ in range(12))
    assert noise.cosines(drawn).mean() == pytest.approx(1 / (1 + 4), abs=0.02)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A study, its start, and the folder of it."""
    folder = tmp_path_factory.mktemp("noise")
    study = trials.study(folder)
    study.prepare()
    jobs = plan.jobs(study, trials.design(arms=["sft"], shares=[0.5], seeds=1, trials=0))
    work = runner.Runner(study, jobs, folder, Console(quiet=True))
    job = next(job for job in jobs if job.kind == "start")
    work.do(job)
    return study, work, job


def test_it_is_measured_at_a_start(start):
    _, work, job = start
    found = measure.load(work.path(job))[noise.NOISE]
    assert {name: values.shape for name, values in found.items()} == {"labels": (28,), "verdicts": (28,)}
    assert np.all(np.abs(found["labels"]) <= 1)
    assert found["labels"].mean() > 0.05  # sums share digits


def test_gradients_of_labels_are_those_that_training_follows(start, monkeypatch):
    """The same batches as the first steps of train_sft.py, from the same weights."""
    study, work, job = start
    task = study.made(job.share, job.seed)
    model, tokenizer = measure.opened(work.path(job), task)
    ours = next(noise.of_labels(study, task, model, tokenizer, job.seed))
    norms, log = [], train_sft.Session.log

    def watched(session, counts, **values):
        norms.append(values["gradient_norm"])
        log(session, counts, **values)

    monkeypatch.setattr(train_sft.Session, "log", watched)
    lengths = [len(task.documents(example, tokenizer, None)[0].tokens) for example in task.splits.train]
    tokens = round(study.sizes.prompts * sum(lengths) / len(lengths))
    options = {"task": "arithmetic", "init": work.path(job), "steps": 1, "evaluations": 1, "precision": "fp32"}
    options |= {"batch_tokens": tokens, "dropout": 0.0, "optimizer": "adamw", "lr": 1e-4, "embedding_lr": 1e-4}
    task_options = type(task).Options(**study.options(job.share))
    train_sft.train(
        train_sft.Args(**options, options=task_options, out=work.folder / "one", seed=job.seed), Console(quiet=True)
    )
    assert norms == [pytest.approx(float(ours.norm()), rel=1e-4)]


def test_the_report_says_which_agree_more(tmp_path):
    about, what, work = trials.made(tmp_path)
    for job in work.jobs.values():
        if job.kind == "start":
            found = measure.load(work.path(job))
            shift = 0.01 * job.seed
            cosines = {"labels": np.full(6, 0.5 + shift), "verdicts": np.full(6, 0.1 - shift)}
            measure.save(work.path(job), {**found, noise.NOISE: cosines})
    stable = answered(results.Results(about, what, work))[-1]
    assert any("atches of labels agree more" in line for line in stable.sentences)
    picture = next(p for p in stable.pictures if p.name == "gradient_noise")
    assert [series.name for series in picture.series] == ["labels", "verdicts"]

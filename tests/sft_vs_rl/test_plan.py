"""What is planned: arms × starts × seeds, the same budget and as many trials for all, each after what it needs."""

from collections import Counter
from dataclasses import fields

import pytest
import sft_vs_rl
import trials
from experiment import arms, plan, runner, studies

import train_rl
from minillm.errors import UserError


def jobs(tmp_path, **changes):
    return plan.jobs(trials.study(tmp_path), trials.design(**changes))


def test_all_arms_at_the_shared_start_and_some_at_every_one(tmp_path):
    found = Counter((job.arm, job.share) for job in jobs(tmp_path) if job.kind == "arm")
    everywhere = {(arm, share): 3 for arm in ("sft", "rl") for share in (0.05, 0.3, 1.0)}
    assert found == everywhere | {("sft-rl", 0.05): 3, ("shuffled", 0.05): 3}
    assert sum(job.kind == "start" for job in jobs(tmp_path)) == 9


def test_as_many_trials_for_each_arm(tmp_path):
    found = [job for job in jobs(tmp_path, trials=3) if job.kind == "search"]
    assert Counter(job.arm for job in found) == dict.fromkeys(trials.design().arms, 3)
    assert {job.factor for job in found} == set(plan.FACTORS[:3])
    assert {job.seed for job in found} == {0}


def test_every_job_comes_after_what_it_needs(tmp_path):
    seen = set()
    for job in jobs(tmp_path, arms=list(arms.ARMS)):
        assert {job.init, job.helper} - {None} <= seen
        assert job.name not in seen
        seen.add(job.name)


def test_arms_of_a_seed_begin_at_its_start(tmp_path):
    of = {job.name: job for job in jobs(tmp_path, arms=list(arms.ARMS))}
    for job in of.values():
        origin = job
        while origin.init:
            origin = of[origin.init]
        assert (origin.kind, origin.seed, origin.share) == ("start", job.seed, job.share)


def test_equal_operations(tmp_path):
    """Whatever a step of each arm costs, all its steps together cost the same, to half a step."""
    study = trials.study(tmp_path)
    budget = plan.Budget(steps=1000)
    found = [job for job in jobs(tmp_path, arms=list(arms.ARMS), budget=budget) if job.kind == "arm"]
    totals = {}
    for job in found:
        tokens = job.budget.steps * study.sizes.batch_tokens
        halves = 2 if job.arm == "sft-rl" else 1  # the first half is a job of its own
        totals[job.arm] = halves * plan.operations(study, job, job.budget.steps, tokens)
    assert totals.keys() == arms.ARMS.keys()
    assert max(totals.values()) / min(totals.values()) < 1.02
    # Counted anew: REINFORCE reads all it draws, learns from it, and each token costs 2 and 6 operations a parameter.
    assert totals["rl"] == 1000 * 4 * 2 * 10.0 * (2 + 6)


def test_minutes_are_the_same_for_all(tmp_path):
    found = jobs(tmp_path, budget=plan.Budget(minutes=6.0))
    assert {job.budget.minutes for job in found if job.kind == "arm" and job.arm != "sft-rl"} == {6.0}
    assert {job.budget.minutes for job in found if job.arm == "sft-rl" and job.kind == "arm"} == {3.0}
    assert {job.budget.minutes for job in found if job.kind == "half"} == {3.0}
    assert {job.budget.minutes for job in found if job.kind == "search" and job.arm == "rl"} == {3.0}


def test_arms_that_make_no_sense_are_named(tmp_path):
    texts = studies.Sentiment(tmp_path, studies.Sizes())
    _, left_out = sft_vs_rl.design_of(sft_vs_rl.Args(task="sentiment"), texts)
    assert {"dpo", "expert", "best-of", "sft-diverse"} <= left_out.keys()
    assert "written answers" in left_out["dpo"]
    words = studies.Pronunciation(tmp_path, studies.Sizes())
    assert "no other prompts" in arms.obstacle(arms.ARMS["sft-diverse"], words)


def test_cards_change_their_rule(tmp_path):
    """Nobody trains on what is held out, and what is unlike the training is so by its rule alone."""
    study = studies.Cards(tmp_path, studies.Sizes())
    learned = {example.hand for example in study.made(0.05, 0).splits.train}
    assert len(study.made(0.05, 0).splits.train) == 400
    for name, examples in study.sets.items():
        assert not learned & {example.hand for example in examples}
        assert {example.prompt.partition(",")[0] for example in examples} == {
            "J=11 Q=12 K=13" if name == "shift" else "J=10 Q=10 K=10"
        }
        assert {len(example.hand) for example in examples} == {4}
    assert len(study.sets["shift"]) >= 300 > len(study.sets["test"]) >= 80
    assert "no other prompts" in arms.obstacle(arms.ARMS["sft-diverse"], study)


def test_an_arm_that_the_script_does_not_know_is_left_out(tmp_path):
    arm = arms.Arm("new", "New", arms.LABELS, "rl", {"method": "magic"})
    assert arms.obstacle(arm, trials.study(tmp_path)) == "train_rl.py has no --method magic"
    arm = arms.Arm("new", "New", arms.LABELS, "rl", {"wand": 1})
    assert arms.obstacle(arm, trials.study(tmp_path)) == "train_rl.py has no --wand"


def test_all_arms_are_options_that_scripts_have(tmp_path):
    """Each job of this version is a call that the script's own check accepts."""
    study = trials.study(tmp_path)
    names = [name for name in arms.ARMS if arms.obstacle(arms.ARMS[name], study) is None]
    work = runner.Runner(study, plan.jobs(study, trials.design(arms=names)), tmp_path, None)
    for job in work.jobs.values():
        if job.script in runner.SCRIPTS:
            args = work.args(job)
            runner.SCRIPTS[job.script].check(args)
            assert args.steps or job.kind == "start"
    assert "method" in {field.name for field in fields(train_rl.Args)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--starts", "5,200"], "numbers from above 0 to 100"),
        (["--starts", "x"], "numbers from above 0 to 100"),
        (["--arms", "sft,magic"], "magic is not one of sft"),
        (["--steps", "3", "--minutes", "2"], "exclude each other"),
        (["--seeds", "0"], "--seeds 0 must be positive"),
    ],
)
def test_mistakes_end_in_a_sentence(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        sft_vs_rl.main([*options, "--out", str(tmp_path / "out")])


def test_files_and_a_reward_of_ones_own(tmp_path):
    """They reach the scripts, but no arm with a reward of its own."""
    lines = "".join(f'{{"prompt": "say {n}", "answer": "{n}"}}\n' for n in range(40))
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text(lines.replace("say", name))
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "dev", "test")}
    study = studies.Own(tmp_path, studies.Sizes(), studies.Given(**files, reward=("mine.py:score",)))
    study.prepare()
    assert [example.prompt for example in study.sets["shift"][:1]] == ["test 0"]
    assert study.tokens() > study.answer_tokens() > 1
    work = runner.Runner(study, plan.jobs(study, trials.design(arms=["sft", "rl", "learned"])), tmp_path, None)
    of = {name: work.args(work.jobs[name]) for name in ("start-5pct-0", "rl-5pct-0", "learned-5pct-0")}
    assert (of["start-5pct-0"].options.train, of["start-5pct-0"].options.labels) == (files["train"], 0.05)
    assert of["rl-5pct-0"].reward == ("mine.py:score",)
    assert of["learned-5pct-0"].reward == (str(tmp_path / "judge-5pct-0"),)
    with pytest.raises(UserError, match="--train is for --task seq2seq, not for arithmetic"):
        sft_vs_rl.main(["--train", str(files["train"]), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="give --train FILE"):
        sft_vs_rl.main(["--task", "seq2seq", "--out", str(tmp_path / "out")])


def test_missing_data_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--task sentiment needs .*train.jsonl; name the folder"):
        sft_vs_rl.main(["--task", "sentiment", "--data", str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_control_learns_to_the_end_whatever_its_task_would_do(tmp_path):
    """Classifiers keep their best look by default, the start among them: no control, where that is the best."""
    for kind in studies.STUDIES.values():
        study = kind(tmp_path, studies.Sizes(), studies.Given())
        options = study.supervised()
        assert options["keep"] == "last"
        assert options["patience"] >= options["evaluations"]

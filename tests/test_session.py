"""What surrounds the steps: budget, learning rate, signals, saving, logging, the best model, the end."""

import dataclasses
import io
import json
import signal
import threading
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from test_state import full_disk
from tiny import batch_of, gpt, packed, sequences

import minillm.curves
from minillm import optim, session, state
from minillm.batching import IGNORE, Document, pack
from minillm.cli import STOP_SIGNALS, postponed_signals
from minillm.errors import UserError
from minillm.files import write_tensors
from minillm.findings import conclude
from minillm.metrics import Interval
from minillm.origin import begin
from minillm.run import Run
from minillm.session import BEST, CHECKPOINT, ProgressBar, Session, schedule
from minillm.state import Progress, weights_of
from minillm.tokenizer import SymbolTokenizer

TOKENIZER = SymbolTokenizer("arithmetic", r"[\s\S]", "0123456789+=")


def budget(**choices):
    return SimpleNamespace(
        **{"minutes": None, "steps": None, "warmup": 0.02, "schedule": "linear", "evaluations": 4} | choices
    )


@pytest.fixture
def make(tmp_path):
    """A session over a new run, with a GPT and two optimisers; `name` of an old run goes on with it."""

    def make(name="run", **choices):
        torch.manual_seed(0)
        model = gpt().float()
        run = Run(tmp_path / name)
        run.folder.mkdir(exist_ok=True)
        run.path("args.json").write_text('{"script": "sft"}')
        console = Console(file=io.StringIO(), width=200)
        return Session(budget(**choices), run, model, optim.muon(model, 0.01, 0.005), console)

    return make


@pytest.fixture
def clock(monkeypatch):
    """Time that only goes on when it is told to."""
    now = SimpleNamespace(now=100.0)
    monkeypatch.setattr(session.time, "monotonic", lambda: now.now)
    return now


def backward(model, seed=0):
    tokens, packing = packed(sequences((5, 3), seed=seed))
    model.loss(batch_of(tokens, packing, tokens), 1 / 8).backward()


def go_through(session, work):
    for step in session:
        work(step)


def said(session):
    return session.console.file.getvalue()


# ---- learning rate and budget --------------------------------------------------------------------


def test_schedule_is_up_and_down():
    assert schedule(0.0, 0.02) == 0.0
    assert schedule(0.01, 0.02) == pytest.approx(0.5)
    assert schedule(0.02, 0.02) == pytest.approx(1.0)
    assert schedule(0.51, 0.02) == pytest.approx(0.5)
    assert schedule(1.0, 0.02) == schedule(1.5, 0.02) == 0.0
    assert schedule(0.0, 0.0) == 1.0
    values = [schedule(i / 1000, 0.02) for i in range(1001)]
    assert max(abs(a - b) for a, b in pairwise(values)) < 0.06  # no jumps


def rates(session):
    return [group["lr"] for optimizer in session.optimizers for group in optimizer.param_groups]


def test_learning_rates_are_shares_of_the_first(make):
    session = make(steps=1)
    for factor in (0.5, 0.0, 1.0, 0.25):
        session.set_lr(factor)
        assert rates(session) == [pytest.approx(0.01 * factor), 0.005 * factor]


def test_learning_rates_follow_the_share_of_the_steps(make):
    session, seen = make(steps=8, warmup=0.25), []
    for step in session:
        middle = (step + 0.5) / 8  # so that a training of one step learns, too
        assert rates(session) == pytest.approx([0.01 * schedule(middle, 0.25), 0.005 * schedule(middle, 0.25)])
        seen.append(step)
        session.log(loss=1.0)
    assert seen == list(range(8))


def test_a_budget_of_steps_goes_before_one_of_minutes(make, clock):
    session = make(steps=4, minutes=0.001)
    for _ in session:
        clock.now += 1000.0
        session.log(loss=1.0)
    assert session.progress.step == 4


def test_a_budget_of_minutes(make, clock):
    session, shares = make(minutes=2.0), []
    for _ in session:
        shares.append(session.share)
        clock.now += 50.0
        session.log(loss=1.0)
    assert shares == pytest.approx([0.0, 50 / 120, 100 / 120])
    assert session.progress.seconds == 150.0


def test_a_budget_of_minutes_counts_what_was_spent_before_an_interruption(make, clock):
    session = make(minutes=2.0)
    for _ in session:
        clock.now += 40.0
        session.log(loss=1.0)
        break
    session.save()
    clock.now += 10_000.0  # while nothing ran
    other, shares = make(minutes=2.0), []
    other.restore()
    for _ in other:
        shares.append(other.share)
        clock.now += 40.0
        other.log(loss=1.0)
    assert shares == pytest.approx([40 / 120, 80 / 120])
    assert other.progress.seconds == 120.0


# ---- a step --------------------------------------------------------------------------------------


def test_update_steps_along_the_gradients_and_forgets_them(make):
    session = make(steps=1)
    backward(session.model)
    gradients = [p.grad.clone() for p in session.model.parameters()]
    before = {name: p.clone() for name, p in weights_of(session.model).items()}
    norm = session.update()
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()))
    assert all(not torch.equal(before[name], p) for name, p in weights_of(session.model).items())
    assert all(p.grad is None for p in session.model.parameters())
    assert session.update() == 0.0  # nothing to follow


def test_what_is_apart_has_a_norm_of_its_own(make, monkeypatch):
    """The gradient of a value head, however long, shortens no other, and is no part of the norm that is told."""
    session = make(steps=1)
    head = torch.nn.Linear(2, 1)
    session.model.add_module("value", head)
    others = [p for name, p in session.model.named_parameters() if not name.startswith("value.")]
    for clip, lengths in ((None, (0.5, 100.0)), (1.0, (0.5, 1.0)), (0.1, (0.1, 0.1))):
        for parameters, length in ((others, 0.5), ([*head.parameters()], 100.0)):
            count = sum(p.numel() for p in parameters)
            for p in parameters:
                p.grad = torch.full_like(p, length / count**0.5)
        monkeypatch.setattr(session, "optimizers", [SimpleNamespace(step=lambda: None, zero_grad=lambda: None)])
        assert session.update(clip, apart=head) == pytest.approx(0.5)
        assert [norm_of(others), norm_of(head.parameters())] == pytest.approx(lengths, rel=1e-4)
        session.model.zero_grad()
    assert session.update(1.0, apart=head) == 0.0


def norm_of(parameters):
    return float(torch.cat([p.grad.flatten() for p in parameters]).norm())


def test_a_step_is_a_line_of_the_log_and_totals_add_up(make):
    session = make(steps=3)
    for step in session:
        session.log({"tokens": 10 + step}, loss=0.5 - step / 8)
    records = session.run.read_log()
    assert [record["step"] for record in records] == [1, 2, 3]
    assert [record["tokens"] for record in records] == [10, 21, 33]
    assert [record["loss"] for record in records] == [0.5, 0.375, 0.25]
    assert all(record.keys() == {"step", "seconds", "lr", "loss", "tokens"} for record in records)
    assert records[0]["lr"] > records[-1]["lr"] > 0  # of the middle of each step
    assert session.progress.totals == {"tokens": 33}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_ends_the_training_unsaved(make, value):
    session = make(steps=5)
    session.save()
    good = session.run.path(CHECKPOINT).read_bytes()
    with pytest.raises(UserError, match=rf"the loss became {value} at step 2; try a lower --lr"):
        go_through(session, lambda step: session.log(loss=value if step == 1 else 1.0))
    assert session.run.path(CHECKPOINT).read_bytes() == good


def test_a_log_that_cannot_be_written_is_named(make):
    session = make(steps=5)
    session.write(loss=1.0)
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*log\.jsonl: File too large"):
        session.write(long="x" * 2000)


def test_a_training_may_end_early(make):
    session = make(steps=100)
    for step in session:
        session.log(loss=1.0)
        if step == 6:
            session.end("enough")
    assert session.progress.step == 7
    assert session.progress.is_over
    assert "step 7: enough" in said(session)


# ---- evaluations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("evaluations", "due"), [(1, []), (2, [4]), (4, [2, 4, 6]), (8, [1, 2, 3, 4, 5, 6, 7])])
def test_evaluations_are_spread_and_the_last_one_is_after_the_training(make, evaluations, due):
    session, seen = make(steps=8, evaluations=evaluations), []
    for step in session:
        session.log(loss=1.0)
        if session.evaluation_is_due():
            seen.append(step)
    assert seen == due


def test_what_is_measured_is_shown_and_logged(make):
    session = make(steps=1)
    for _ in session:
        session.log(loss=1.0)
        session.report({"wer": Interval(0.5, 0.25, 0.75)}, 1234, samples=["a"])
    record = session.run.read_log()[-1]
    assert (record["step"], record["dev_wer"], record["dev_wer_low"], record["samples"]) == (1, 0.5, 0.25, ["a"])
    assert "step 1: WER 50.0% [25.0%, 75.0%] on 1,234 dev examples" in said(session)


def test_the_best_model_is_kept(make):
    session, seen = make(steps=4), {}
    scores = iter([-0.5, -0.25, -0.25, -0.75])
    for step in session:
        backward(session.model, step)
        session.log(loss=1.0, norm=session.update())
        seen[step] = {name: p.clone() for name, p in weights_of(session.model).items()}
        session.keep_if_best(next(scores))
    assert (session.progress.best, session.progress.worse) == (-0.25, 2)
    session.take_best()
    assert all(torch.equal(seen[2][name], p) for name, p in weights_of(session.model).items())  # the later of equals


def test_the_best_so_far_outlives_an_interruption(make):
    session = make(steps=4)
    session.keep_if_best(0.75)
    best = {name: p.clone() for name, p in weights_of(session.model).items()}
    session.save()
    other = make(steps=4)
    other.restore()
    backward(other.model)
    other.set_lr(1.0)
    other.update()
    other.keep_if_best(0.5)
    other.take_best()
    assert all(torch.equal(best[name], p) for name, p in weights_of(other.model).items())


def test_a_look_that_is_repeated_after_a_kill_counts_as_it_did(make):
    """The best weights are written at once, and the checkpoint later: `worse`, which --patience reads, is its own."""
    session = make(steps=4)
    session.keep_if_best(0.25)
    session.keep_if_best(0.125)
    session.save()
    best = {name: p.clone() for name, p in weights_of(session.model).items()}
    session.keep_if_best(0.75)
    assert session.progress.worse == 0

    other = make(steps=4)
    other.restore()
    assert (other.progress.best, other.progress.worse) == (0.25, 1)
    other.keep_if_best(0.75)
    assert (other.progress.best, other.progress.worse) == (0.75, 0)

    third = make(steps=4)
    third.restore()
    third.model.tokens.weight.data += 1
    third.keep_if_best(0.5)  # where another process saw something better
    assert (third.progress.best, third.progress.worse) == (0.5, 0)
    third.take_best()
    assert all(torch.equal(best[name], p) for name, p in weights_of(third.model).items())


def test_without_a_best_the_last_is_taken(make):
    session = make(steps=1)
    before = {name: p.clone() for name, p in weights_of(session.model).items()}
    session.take_best()
    assert all(torch.equal(before[name], p) for name, p in weights_of(session.model).items())


# ---- signals and checkpoints ---------------------------------------------------------------------


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_lets_the_step_end_and_saves(make, number):
    session, before = make(steps=9), signal.getsignal(number)

    def work(step):
        if step == 3:
            signal.raise_signal(number)
        session.log(loss=1.0)

    with pytest.raises(KeyboardInterrupt):
        go_through(session, work)
    assert session.progress.step == 4
    assert signal.getsignal(number) is before
    assert "stopped at step 4" in said(session)
    other, seen = make(steps=9), []
    other.restore()
    for step in other:
        seen.append(step)
        other.log(loss=1.0)
    assert seen == [4, 5, 6, 7, 8]
    assert [record["step"] for record in other.run.read_log()] == list(range(1, 10))


def test_a_second_signal_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with postponed_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGTERM)  # a terminal that closes sends several: the step still ends, and is saved
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_ignored_stays_ignored():
    """As nohup has it: a closing terminal must not end the training."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with postponed_signals() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_leaves_signals_alone(make):
    """Python lets the main thread handle signals only; a training in another one goes on without."""
    session, handlers = make(steps=3), []

    def work():
        for _ in session:
            handlers.append(signal.getsignal(signal.SIGINT))
            session.log(loss=1.0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert session.progress.step == 3
    assert set(handlers) == {signal.getsignal(signal.SIGINT)}


def test_checkpoints_are_a_minute_apart(make, clock, monkeypatch):
    session, saved = make(steps=10), []
    monkeypatch.setattr(session, "save", lambda: saved.append(session.progress.step))
    for _ in session:
        clock.now += 25.0
        session.log(loss=1.0)
    assert saved == [3, 6, 9, 10]


def test_the_time_of_a_look_at_the_dev_set_counts(make, clock):
    """Also of the last one before a checkpoint; and a long one is followed by a checkpoint."""
    session = make(minutes=60.0)
    for _ in session:
        clock.now += 1.0
        session.log(loss=1.0)
        if session.progress.step == 2:
            clock.now += 100.0  # a look
        if session.progress.step == 3:
            break
    other = make(minutes=60.0)
    other.restore()
    assert (other.progress.step, other.progress.seconds) == (2, 102.0)


def test_all_processes_seconds_count(make, clock, monkeypatch):
    """From the beginning of each, until it saved for the last time; of the last one, until the end."""
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    args = SimpleNamespace(resume=None, log_to=None, options=SimpleNamespace())
    session = make(steps=2)
    clock.now = 130.0  # it prepared for half a minute
    begin(session, "sft", args, SimpleNamespace(notes=["as it began"]), TOKENIZER, {"classes": "ab"}, started=100.0)
    for _ in session:
        clock.now += 5.0
        session.log(loss=1.0)
    assert session.progress.process_seconds == 40.0
    clock.now = 1000.0  # it was killed while it scored
    other = make(steps=2)
    args.resume = other.run.folder
    clock.now += 3.0
    begin(other, "sft", args, task := SimpleNamespace(notes=[]), TOKENIZER, {}, started=1000.0)
    assert task.notes == ["as it began"]
    assert other.progress.data == {"classes": "ab"}
    assert other.progress.files.keys() == {"args.json", "config.json", "tokenizer.json"}
    assert list(other) == []
    clock.now += 4.0
    conclude(other, {}, {"dev_wer": 0.5}, [], "a title")
    assert json.loads(other.run.path("metrics.json").read_text())["seconds"] == 47.0
    assert [record["step"] for record in other.run.read_log()] == [1, 2, 2]


def test_a_log_is_as_long_as_the_checkpoint_says(make):
    """Not as long as its steps: a look that comes after a checkpoint is taken again."""
    session = make(steps=9)
    session.write(before=1.0)
    session.save()
    session.write(before=2.0)
    session.save()
    session.write(before=3.0)  # and then it died
    other = make(steps=9)
    other.restore()
    other.write(before=4.0)
    assert [record["before"] for record in other.run.read_log()] == [1.0, 2.0, 4.0]
    assert other.progress.records == 3


def test_a_log_that_lacks_records_is_said(make):
    session = make(steps=9)
    for value in (1.0, 2.0, 3.0):
        session.write(loss=value)
    session.save()
    lines = session.run.path("log.jsonl").read_bytes().splitlines(keepends=True)
    session.run.path("log.jsonl").write_bytes(lines[0] + b"\0" * 300 + lines[1] + lines[2])
    other = make(steps=9)
    other.restore()
    assert "log.jsonl lacks 1 of its records, lost or spoiled; going on without" in said(other)
    other.write(loss=4.0)
    assert [record["loss"] for record in other.run.read_log()] == [1.0, 3.0, 4.0]
    assert other.progress.records == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_saved(make, value):
    """A last step with far too high a rate leaves no loss that would tell."""
    session = make(steps=2)
    session.save()
    good = session.run.path(CHECKPOINT).read_bytes()

    def work(step):
        session.log(loss=1.0)
        session.model.tokens.weight.data[0, 0] = value if step == 1 else 0.0

    with pytest.raises(UserError, match="the weights became NaN or infinite by step 2; try a lower --lr"):
        go_through(session, work)
    assert session.run.path(CHECKPOINT).read_bytes() == good


@pytest.mark.parametrize("spoil", ["lost", "cut", "bit", "other"])
def test_best_weights_that_are_spoiled_are_named(make, spoil):
    session = make(steps=4)
    session.keep_if_best(0.75)
    session.save()
    path = session.run.path(BEST)
    content = path.read_bytes()
    if spoil == "lost":
        path.unlink()
    elif spoil == "other":
        write_tensors(path, {"x": torch.ones(2)}, {"worst": 1.0})
    else:
        path.write_bytes(content[:-1] if spoil == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"best\.safetensors"):
        make(steps=4).restore()


def test_a_training_that_is_over_has_no_further_step(make):
    session = make(steps=2)
    for _ in session:
        session.log(loss=1.0)
    other = make(steps=2)
    other.restore()
    assert other.progress.is_over
    assert list(other) == []


def test_progress_survives_a_checkpoint(make):
    session = make(steps=9)
    digests = {"args.json": "ab"}, {"classes": "cd"}
    session.progress = Progress(
        5, 2, 0, 1.5, 0.5, 0.0, None, 3, False, {"beta": 0.5}, {"tokens": 7}, {"12": 3}, 4.0, *digests
    )
    session.save()
    other = make(steps=9)
    other.restore()
    assert other.progress == session.progress
    assert session.progress.seconds == 1.5


def test_as_many_processes_go_on_as_began(make):
    """As each draws random numbers of its own."""
    session = make(steps=9)
    session.progress.numbers = {"ranks": 2}
    session.save()
    other = make(steps=9)
    with pytest.raises(UserError, match="begun by 2 processes, not by 1; go on with torchrun --nproc-per-node 2"):
        other.restore()
    other.ranks = 2
    other.restore()


def test_all_processes_wait_until_the_first_has_written(make):
    """Which alone writes."""
    seen, session = [], make()
    path = session.run.path(CHECKPOINT)
    session.team = SimpleNamespace(total=lambda value: value, wait=lambda: seen.append(path.exists()))
    session.leads = False
    session.save()
    session.leads = True
    session.save()
    assert seen == [False, True]


@pytest.mark.parametrize("name", vars(Progress()))
def test_a_checkpoint_that_lacks_a_part_of_the_progress_is_named(make, name):
    """Or has one of another type."""
    session = make(steps=9)
    progress = vars(Progress())
    path = session.run.path(CHECKPOINT)
    for saved, said in (
        ({key: value for key, value in progress.items() if key != name}, f"it lacks '{name}'"),
        ({**progress, name: [None]}, rf"'{name}' cannot be [\[(]None"),
        ({**progress, "colour": 1}, "'colour' cannot be 1"),
    ):
        state.save(path, session.model, session.optimizers, saved)
        with pytest.raises(UserError, match=rf"checkpoint\.safetensors is .*{said}"):
            make(steps=9).restore()


def test_a_finished_run_keeps_nothing_to_go_on_from(make, monkeypatch):
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
    session = make(steps=2)
    for _ in session:
        session.log({"tokens": 8}, loss=1.0)
        session.keep_if_best(0.5)
    assert session.run.path(CHECKPOINT).exists()
    assert session.run.path(BEST).exists()
    conclude(session, {"dev_per": 0.25}, {"dev_wer": 0.5}, ["loss"], "a title")
    metrics = json.loads(session.run.path("metrics.json").read_text())
    assert metrics.pop("seconds") >= 0
    assert metrics == {"dev_per": 0.25, "steps": 2, "tokens": 16}
    assert session.run.read_log()[-1]["dev_wer"] == 0.5
    assert not session.run.path(CHECKPOINT).exists()
    assert not session.run.path(BEST).exists()
    assert session.run.path("model.safetensors").exists()


# ---- what a person sees --------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3600, "60:00")])
def test_clock(seconds, text):
    assert session.clock(seconds) == text


def test_a_line_now_and_then_where_there_is_no_terminal(clock):
    clock.now = 0.0
    console = Console(file=io.StringIO(), width=100)
    with ProgressBar(console) as bar:
        for clock.now in (1.0, 11.0, 12.0, 22.5):
            bar.update(clock.now / 100, clock.now, f"step {clock.now:.0f}")
    assert console.file.getvalue().splitlines() == [" 11%  step 11 · 1:29 left", " 22%  step 22 · 1:17 left"]


def test_how_long_a_long_training_takes_is_said_after_a_few_steps(clock):
    """Not at once, when the first step has set much up; but long before a hundredth of it."""
    clock.now = 0.0
    console = Console(file=io.StringIO(), width=100)
    with ProgressBar(console) as bar:
        for clock.now in (15.0, 30.0):
            bar.update(clock.now / 30_000, clock.now, "step")
    assert console.file.getvalue().splitlines() == ["  0%  step", "  0%  step · 499:30 left"]


def test_what_a_step_learns_from_is_counted(make, clock):
    """Documents by length, but those that stand for none; and the time within steps, without that between them."""
    session = make(steps=2)
    documents = [Document([1] * n, [IGNORE] + [1] * (n - 1)) for n in (3, 5, 3)]
    batches = [pack(documents), dataclasses.replace(pack(documents[:1]), is_spare=True)]
    for _ in session:
        session.count(batches)
        clock.now += 5.0
        session.log(loss=1.0)
        clock.now += 100.0
    assert session.progress.lengths == {"3": 4, "5": 2}
    assert session.progress.targets == 2 * (11 - 3)
    assert session.progress.of_steps == 10.0


@pytest.mark.parametrize(
    ("minutes", "seconds", "line"),
    [
        (4.0, 40.0, " 17%  step 1 · loss 1.000 · 0.0 steps/s · 3:20 left"),
        (1.0, 100.0, "100%  step 1 · loss 1.000 · 0.0 steps/s · 0:00 left"),
    ],
)
def test_the_first_of_few_long_steps_tells_how_long_the_rest_takes(make, clock, minutes, seconds, line):
    """Also where it ends behind the budget."""
    session = make(minutes=minutes)
    for _ in session:
        clock.now += seconds
        session.log(loss=1.0)
    assert said(session).splitlines()[0] == line


def test_looks_leave_the_clock_to_the_training(make, clock):
    """Each takes ten of its minutes; with a number of steps all of them are had."""
    for choices, looks in (({"minutes": 100.0}, 2), ({"steps": 100}, 9)):
        session, count = make(**choices, evaluations=10), 0
        for _ in session:
            clock.now += 60.0
            session.log(loss=1.0)
            if session.evaluation_is_due():
                count += 1
                with session.averaged():
                    clock.now += 600.0
        assert count == looks, choices

"""Alarms: each for the log that it is about, none for noise, none twice; and in a real training."""

import random

import pytest

from minillm.alarms import ALARMS, RECENT, new_alarms, raised

STEPS = 100
NORMAL = {
    "reward": (0.4, 0.5),
    "best_reward": (1.0, 1.0),
    "worst_reward": (0.0, 0.0),
    "entropy": (1.0, 0.7),
    "groups_without_variance": (0.3, 0.4),
    "unfinished": (0.05, 0.05),
    "length": (5.0, 5.0),
    "kl": (0.0, 1.5),
    "ratios_beyond": (0.01, 0.1),
    "explained_variance": (0.0, 0.4),
    "gradient_norm": (1.0, 1.0),
    "reward_right": (0.3, 0.35),
    "reward_form": (0.1, 0.15),
}


def look(step, accuracy, reward=None):
    around = {"dev_accuracy": accuracy, "greedy_reward": reward}
    found = {
        f"{name}{end}": value + way
        for name, value in around.items()
        if value is not None
        for end, way in (("", 0.0), ("_low", -0.03), ("_high", 0.03))
    }
    return {"step": step, "seconds": 0.0, **found}


def log(looks=((0, 0.4, None), (STEPS, 0.5, 0.5)), steps=STEPS, seed=0, **courses):
    """A training in which figures go from here to there, with noise."""
    rng = random.Random(seed)
    courses = {name: ends for name, ends in (NORMAL | courses).items() if ends}
    records = [
        {"step": i + 1, "seconds": 0.0}
        | {name: a + (b - a) * i / (steps - 1) + rng.gauss(0, 0.02) * (a != b) for name, (a, b) in courses.items()}
        for i in range(steps)
    ]
    return sorted([*records, *(look(*each) for each in looks)], key=lambda record: record["step"])


CASES = {
    "reward up, metric down": {"looks": [(0, 0.5, 0.4), (50, 0.4, 0.4), (100, 0.4, 0.5)]},
    "sampled up, greedy down": {"looks": [(0, 0.5, None), (50, 0.5, 0.5), (100, 0.45, 0.4)]},
    "past its best": {"looks": [(0, 0.4, 0.4), (50, 0.6, 0.5), (100, 0.45, 0.5)]},
    "entropy collapse": {"entropy": (1.0, -0.09)},
    "far from the start": {"kl": (0.0, 6.0)},
    "nothing to learn from": {"gradient_norm": (0.0, 0.0)},
    "groups without variance": {"groups_without_variance": (0.5, 0.99)},
    "answers without end": {"unfinished": (0.0, 0.8)},
    "one part eats the rest": {"reward_right": (0.4, 0.2), "reward_form": (0.0, 0.3)},
    "ratios beyond bounds": {"ratios_beyond": (0.0, 0.6)},
    "a value that misleads": {"explained_variance": (0.0, -0.5)},
}


def alarms(records, lower_is_better=False):
    return new_alarms(records, "accuracy", lower_is_better)


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_for_each_evil(name):
    found = alarms(log(**CASES[name]))
    allowed = {name, "past its best"} if "down" in name else {name}  # which is another word for it
    assert name in found
    assert found.keys() <= allowed
    assert "try" in found[name] or "--" in found[name]


def test_none_for_a_training_that_goes_well():
    assert CASES.keys() == ALARMS.keys()
    assert not alarms(log())


def test_none_for_noise():
    """Where nothing changes but by chance: in 300 trainings."""
    still = {name: (a, a + 1e-9) for name, (a, _) in NORMAL.items() if name not in ("best_reward", "worst_reward")}
    still["explained_variance"] = (0.1, 0.1 + 1e-9)
    logs = (log(looks=[(0, 0.4, 0.4), (STEPS, 0.37, 0.36)], seed=seed, **still) for seed in range(300))
    assert sum(bool(alarms(records)) for records in logs) <= 1


def test_few_steps_say_nothing():
    evil = {name: ends for case in CASES.values() for name, ends in case.items() if name != "looks"}
    assert not set(alarms(log(steps=RECENT - 1, looks=[(0, 0.4, 0.4)], **evil))) - {"far from the start"}


def test_one_kl_is_no_distance():
    """One step's estimate may be anything; it is the mean of the last looks that counts."""
    near = [{**record, "kl": 0.5} for record in log(looks=[])]
    assert not alarms([*near, {**near[-1], "kl": 20.0}])
    assert "far from the start" in alarms([*near, *({**near[-1], "kl": 20.0} for _ in range(3))])
    looked_at = [{k: v for k, v in r.items() if k != "kl" or i % 10 == 0} for i, r in enumerate(log(kl=(0.0, 10.0)))]
    assert "far from the start" in alarms([r for r in looked_at if "reward" in r])
    assert "far from the start" not in alarms([r for r in looked_at if "reward" in r][:20])  # two looks


@pytest.mark.parametrize("steps", [1, RECENT])
def test_nothing_to_learn_from_is_said_at_the_end_at_the_latest(steps):
    still = log(looks=[], steps=RECENT, gradient_norm=(0.0, 0.0))[:steps]
    assert ("nothing to learn from" in alarms(still)) == (steps == RECENT)
    assert "nothing to learn from" in new_alarms(still, "accuracy", False, is_over=True)
    moved = [*still[1:], {**still[0], "gradient_norm": 0.1}]
    assert "nothing to learn from" not in new_alarms(moved, "accuracy", False, is_over=True)


@pytest.mark.parametrize("finds", [0, 1])
def test_rounds_that_find_nothing_are_said(finds):
    tried = {"step": 0, "seconds": 0.0, "reward": 0.1, "best_reward": 0.25, "solved": 0.0}
    found = new_alarms([{**tried, "finds": 0}, {**tried, "finds": finds}], "accuracy", False, is_over=True)
    assert ("nothing to learn from" in found) == (finds == 0)
    if found:
        assert "best being rewarded 0.25" in found["nothing to learn from"]


@pytest.mark.parametrize("name", ["entropy collapse", "groups without variance"])
def test_what_is_solved_may_become_sure(name):
    solved = {"reward": (0.4, 0.99)}
    assert not alarms(log(**CASES[name] | solved))


def test_an_error_rate_is_better_when_it_is_lower():
    rising = log(looks=[(0, 0.3, 0.4), (50, 0.3, 0.4), (STEPS, 0.4, 0.5)])
    assert alarms(rising, lower_is_better=True).keys() == {"reward up, metric down", "past its best"}
    assert not alarms(rising, lower_is_better=False)


def test_each_is_said_once():
    records = log(**CASES["entropy collapse"])
    (said,) = alarms(records).items()
    records.append({"step": STEPS, "seconds": 0.0, "alarm": said[0], "says": said[1]})
    assert not alarms(records)
    assert raised(records) == dict([said])


def test_logs_without_some_of_the_figures():
    for name in NORMAL:
        if name != "reward":
            alarms(log(**{name: None}))
    assert not alarms([])
    assert not alarms([look(0, 0.5)])

"""The learned value: advantages by their definition and exactly, by going through all that can be drawn; what its loss
moves; that a training with it is resumed and its model handed on without it."""

import dataclasses
import itertools
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from rich.console import Console
from safetensors.torch import load_file
from scripts import FEW, SMALL

import minillm.curves
import minillm.tasks.arithmetic as arithmetic
import train_rl
import train_sft

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from estimators import Choice, World, judge

from minillm.episodes import Agent, Episode, Writer, to_batch
from minillm.errors import UserError
from minillm.estimator import check
from minillm.heads import SequenceClassifier
from minillm.policy import Estimator
from minillm.run import Run
from minillm.session import Session
from minillm.values import (
    ValueHead,
    appraise,
    backward_value,
    follow,
    gae,
    states_of,
    with_value,
    without_value,
)

# ---- advantages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("lam", "discount"), [(1.0, 1.0), (0.0, 1.0), (0.7, 1.0), (0.7, 0.9)])
def test_advantages_are_sums_of_surprises(lam, discount):
    """By the definition: Σ_k (γλ)^k δ_{t+k}."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.rand(2, 6, generator=generator, dtype=torch.float64).tolist()
    following = [*values[1:], 0.0]
    surprises = [r + discount * v - u for r, v, u in zip(rewards, following, values, strict=True)]
    truth = [sum((discount * lam) ** k * x for k, x in enumerate(surprises[t:])) for t in range(6)]
    assert gae(rewards, values, lam, discount) == pytest.approx(truth, abs=1e-12)


def test_without_values_the_advantage_is_the_reward():
    assert gae([0.0, 0.0, 0.75], [0.0] * 3, lam=1.0) == [0.75] * 3


def test_what_was_earned_before_a_token_is_not_its_own():
    episode = Episode(None, [0], [1, 2, 3], [-1.0, -2.0, -3.0], "", reward=1.0, reference=[-1.5, -1.0, -3.5])
    assert episode.earned(0.0, fine=0.25) == [0.0, 0.0, 0.75]
    assert episode.earned(0.5, fine=0.0) == [-0.25, 0.5, 0.75]
    assert sum(episode.earned(0.5, 0.0)) == pytest.approx(1.0 - 0.5 * episode.kl)
    assert gae(episode.earned(0.5, 0.0), [0.0] * 3, lam=1.0) == [1.0, 1.25, 0.75]


# ---- exactly -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return World(letters=2, longest=3)


def found(world, is_right, **options):
    truth = world.gradient(world.less_kl if "kl" in options else world.expected_reward)
    return judge(world, Choice(Estimator(baseline="value", **options), is_right=is_right), truth)


def test_true_values_are_what_is_to_be_expected(world):
    """By going on from a state with the policy's own probabilities."""
    table, values = world.now.softmax(-1), world.values(world.now)
    rewards = dict(zip(world.answers, world.rewards, strict=True))
    for beginning, state in world.states.items():
        total = 0.0
        for token in range(world.end + 1):
            answer = (*beginning, token)
            total += table[state, token] * (rewards[answer] if answer in rewards else values[world.states[answer]])
        torch.testing.assert_close(values[state], total)


def test_whatever_is_expected_lambda_1_is_unbiased(world):
    right, wrong = (found(world, is_right) for is_right in (True, False))
    assert max(right.bias, wrong.bias) < 1e-12
    none = judge(world, Choice(Estimator(baseline="none")), world.gradient(world.expected_reward))
    assert right.noise < 0.5 * none.noise


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_below_it_only_true_values_are(world, lam):
    assert found(world, is_right=True, gae_lambda=lam).bias < 1e-12
    assert found(world, is_right=False, gae_lambda=lam).direction < 0.99


def test_true_values_make_shorter_sums_less_noisy(world):
    noise = [found(world, is_right=True, gae_lambda=lam).noise for lam in (0.0, 0.5, 1.0)]
    assert noise == sorted(noise)


def test_a_kl_that_tokens_pay_for_is_unbiased(world):
    assert found(world, is_right=False, kl="reward").bias < 1e-12


def test_without_discount_and_values_it_is_plain_reinforce(world):
    choice = Choice(Estimator(baseline="value"))
    flat = World(letters=2, longest=3)
    flat.guesses = torch.zeros_like(flat.guesses)
    ours, theirs = (each.moments(flat) for each in (choice, Choice(Estimator(baseline="none"))))
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


# ---- the head ------------------------------------------------------------------------------------


def episodes_of(answers, prompt=(1, 2)):
    return [Episode(None, list(prompt), list(answer), [0.0] * len(answer), "") for answer in answers]


ANSWERS = [(3, 4, 5), (6, 5), (3, 4, 7, 5)]


def agent_of(model, **options):
    return Agent(model, model, None, Writer(SimpleNamespace(max_answer_tokens=lambda _: 4), None), **options)


def model_with_value():
    model = with_value(tiny.gpt())
    with torch.no_grad():
        model.value.weight.normal_(generator=torch.Generator().manual_seed(1))
        model.value.mean.fill_(0.2)
        model.value.deviation.fill_(0.5)
    return model


def test_a_new_head_expects_nothing():
    assert (ValueHead(4)(torch.randn(3, 4)) == 0).all()


def test_a_value_stands_before_its_token():
    """It depends on the prompt and the tokens before, on nothing that follows."""
    model = model_with_value()
    episodes = episodes_of([*ANSWERS, (3, 9, 9), (3, 4, 5)])
    appraise(agent_of(model, micro_tokens=7), episodes)
    one, _, _, other, again = (episode.values for episode in episodes)
    assert one[:2] == pytest.approx(other[:2], abs=1e-12)
    assert abs(one[2] - other[2]) > 1e-3
    assert one == again  # to the last bit, so that equal answers stay equal
    hidden = model(torch.tensor([1, 2, 3, 4]), tiny.Packing.from_lengths([4]))
    assert one == pytest.approx(model.value(hidden)[1:].tolist(), abs=1e-12)


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_the_coefficient_is_how_much_the_policy_is_moved(coefficient):
    batch = to_batch(episodes_of(ANSWERS), torch.device("cpu"))
    targets = torch.linspace(-1, 1, batch.count, dtype=torch.float64)
    shares = torch.linspace(0.1, 0.2, batch.count, dtype=torch.float64)
    model = model_with_value()
    loss = backward_value(model, batch, targets, shares, coefficient)
    ours = tiny.gradients(model)
    truth = (0.5 * shares * ((model.value(states_of(model, batch)) - targets) / 0.5).square()).sum()
    truth.backward()
    torch.testing.assert_close(loss, truth.detach())
    theirs = tiny.gradients(model)
    for name, gradient in theirs.items():
        times = 1.0 if name.startswith("value.") else coefficient
        torch.testing.assert_close(ours.get(name, torch.zeros_like(gradient)), times * gradient, msg=name)
    assert coefficient or all(name.startswith("value.") for name in ours)


def test_it_learns_what_is_to_be_expected():
    """Answers weighed by how likely they are: the head comes to the mean reward of each state."""
    model = with_value(tiny.gpt(width=32))
    answers = list(itertools.product((3, 4), repeat=3))
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(len(answers), generator=generator, dtype=torch.float64).softmax(0)
    rewards = torch.rand(len(answers), generator=generator, dtype=torch.float64)
    batch, episodes = to_batch(episodes_of(answers), torch.device("cpu")), episodes_of(answers)
    model.value.follow(rewards)
    optimizer = torch.optim.LBFGS([model.value.weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        return backward_value(model, batch, rewards.repeat_interleave(3), p.repeat_interleave(3), 0.0)

    optimizer.step(loss)
    appraise(agent_of(model), episodes)
    for answer, episode in zip(answers, episodes, strict=True):
        for t in range(3):
            same = torch.tensor([other[:t] == answer[:t] for other in answers])
            assert episode.values[t] == pytest.approx(float(p[same] @ rewards[same] / p[same].sum()), abs=1e-3)


def test_explained_variance():
    def share(values, advantages):
        episodes = episodes_of([(3, 5), (4, 5)])
        episodes[0].values, episodes[1].values = values
        episodes[0].advantages, episodes[1].advantages = advantages
        return follow(model_with_value(), episodes)["explained_variance"]

    assert share([[0.5, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]) == 1.0
    assert share([[0.5, 1.0], [0.5, 0.0]], [[0.5, 0.0], [-0.5, 0.0]]) == pytest.approx(0.5)
    assert share([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [-0.5, -0.5]]) == 0.0
    assert share([[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]]) == 0.0  # nothing to foresee


def test_rewards_of_any_size_are_learned_at_one_rate():
    batch = to_batch(episodes_of(ANSWERS), torch.device("cpu"))
    returns = torch.rand(batch.count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for size in (1.0, 1000.0):
        model = with_value(tiny.gpt())
        model.value.follow(size * returns)
        assert float(model.value(torch.zeros(1, 16)).detach()) == pytest.approx(size * float(returns.mean()))
        model.value.follow(size * returns + size)  # then it follows slowly
        assert float(model.value.mean) == pytest.approx(size * (float(returns.mean()) + 0.1))
        backward_value(model, batch, size * returns, torch.ones(batch.count), 0.0)
        gradients.append(tiny.gradients(model))
    tiny.assert_same(*gradients)


def test_equal_rewards_are_no_deviation_to_divide_by():
    model = with_value(tiny.gpt())
    batch = to_batch(episodes_of(ANSWERS), torch.device("cpu"))
    returns = torch.ones(batch.count, dtype=torch.float64)
    model.value.follow(returns)
    assert float(backward_value(model, batch, returns, returns, 0.0)) == 0.0


def test_it_is_handed_on_without_the_head():
    model = tiny.gpt()
    names = set(model.state_dict())
    assert set(without_value(with_value(model)).state_dict()) == names
    assert without_value(model) is model


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="takes a GPT"):
        with_value(SequenceClassifier(tiny.bert_config(), ("a", "b")))
    for options, sentence in (
        ({"gae_lambda": 1.5}, r"--gae-lambda 1\.5 must be between 0 and 1"),
        ({"discount": -0.1}, r"--discount -0\.1 must be between 0 and 1"),
        ({"value_coefficient": -1.0}, r"--value-coefficient -1\.0 must be 0 or more"),
        ({"shuffle_advantages": True}, "--baseline value has one a token"),
    ):
        with pytest.raises(UserError, match=sentence):
            check(Estimator(baseline="value", **options), samples=4)
    check(Estimator(baseline="value"), samples=1)  # it needs no others to compare with


# ---- in a training -------------------------------------------------------------------------------


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """A finished run of arithmetic, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    monkeypatch.setattr(arithmetic, "HELD_OUT", 30)
    made_up = staticmethod(lambda _, answers: {"right": [sum(map(ord, answer)) % 5 / 4 for answer in answers]})
    monkeypatch.setattr(arithmetic.Arithmetic, "reward", made_up)  # so that every step has something to learn
    options = arithmetic.Options(20)
    return train_sft.train(train_sft.Args(task="arithmetic", **SMALL, steps=5, options=options)).folder


@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "value", "update": "clip", "passes": 2, "minibatches": 2, "value_coefficient": 0.5},
        {"baseline": "value", "gae_lambda": 0.9, "kl": "reward", "lora": 4},
        {"method": "soft-q", "passes": 2},
    ],
    ids=["PPO", "GAE under LoRA", "soft-q"],
)
def test_a_resumed_training_is_the_same(sums, monkeypatch, options):
    args = train_rl.Args(init=sums, out=Path("whole"), steps=6, **FEW, **options)
    whole = train_rl.train(args, Console(quiet=True))
    real, calls = Session.set_lr, []

    def set_lr(*given):
        calls.append(given)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "set_lr", set_lr)
        with pytest.raises(KeyboardInterrupt):
            train_rl.train(dataclasses.replace(args, out=Path("cut")), Console(quiet=True))
    saved = load_file("cut/checkpoint.safetensors")
    assert ("model.value.weight" in saved) == ("baseline" in options)
    train_rl.train(train_rl.Args(resume=Path("cut")), Console(quiet=True))
    one, two = (load_file(run / "model.safetensors") for run in (whole.folder, Path("cut")))
    assert one.keys() == load_file(sums / "model.safetensors").keys()  # no head is handed on
    assert all(torch.equal(one[name], two[name]) for name in one)
    first, second = (
        [{k: v for k, v in record.items() if k != "seconds"} for record in Run(Path(run)).read_log()]
        for run in ("whole", "cut")
    )
    steps = [record for record in first if "reward" in record]
    assert [record for record in second if "reward" in record] == steps
    assert len(steps) == 6
    assert ("explained_variance" in steps[0]) == ("baseline" in options)
    assert ("ratios_beyond" in steps[0]) == ("update" in options)


def test_what_a_value_learns_shortens_no_step_of_the_policy(sums, monkeypatch):
    """However steep its loss is: the norm that is told, and that --clip bounds, is the policy's."""
    real, runs = train_rl.backward_value, []
    for times in (1, 50):
        monkeypatch.setattr(train_rl, "backward_value", lambda *args, n=times: [real(*args) for _ in range(n)])
        args = train_rl.Args(init=sums, steps=1, watch=0, baseline="value", clip=0.01, sft_share=0.0, **FEW)
        runs.append(train_rl.train(args, Console(quiet=True)))
    one, two = ([record["gradient_norm"] for record in run.read_log() if "lr" in record] for run in runs)
    assert one == two
    assert one[0] > 0.01
    weights = [load_file(run.path("model.safetensors")) for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_was_learned_by_soft_q_or_with_a_value_differs(sums):
    """From what leave-one-out teaches, and from the start."""
    runs = [
        train_rl.train(train_rl.Args(init=sums, steps=2, **FEW, **options), Console(quiet=True))
        for options in ({}, {"baseline": "value"}, {"method": "soft-q"})
    ]
    weights = [load_file(folder / "model.safetensors") for folder in (sums, *(run.folder for run in runs))]
    for one, two in itertools.combinations(weights, 2):
        assert any(not torch.equal(one[name], two[name]) for name in one)

"""The one formula: REINFORCE as the scripts do it against the gradient of the expected reward, by going through
every answer that a model of a tiny vocabulary can give."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from tiny import assert_same, gpt, gradients, packed

import minillm.episodes
import train_rl
from minillm.batching import IGNORE, Batch, answering, pack
from minillm.episodes import (
    Agent,
    Episode,
    Writer,
    entropy,
    judge,
    logprobs_of,
    refer,
    rewards_of,
    to_batch,
)
from minillm.errors import UserError
from minillm.generate import Sample, Sampling
from minillm.objective import backward
from minillm.policy import BASELINES, UPDATES, Rewards, leave_one_out
from minillm.session import Session
from minillm.tasks import TASKS
from minillm.tasks.base import Example
from minillm.tokenizer import SymbolTokenizer
from minillm.watch import require_parity

TOKENIZER = SymbolTokenizer("tiny", r"[\s\S]", "ab")
END, LIMIT = TOKENIZER.end, 3  # tokens of an answer at most
PROMPTS = ("ab", "b")
ANSWERS = [
    list(answer)
    for length in range(1, LIMIT + 1)
    for answer in itertools.product(range(3), repeat=length)
    if END not in answer[:-1] and (length == LIMIT or answer[-1] == END)
]


class Task:
    """Any function of the answer, and one that no constant fits, in two parts. float32 holds its values exactly."""

    def reward(self, examples, answers):
        texts = [example.prompt + "=" + answer for example, answer in zip(examples, answers, strict=True)]
        numbers = [sum((ord(letter) - 95) * 5**i for i, letter in enumerate(text)) for text in texts]
        waves = torch.sin(7.0 * torch.tensor(numbers))
        return {"wave": (256 * waves).round() / 256, "constant": [0.3125] * len(answers)}

    def max_answer_tokens(self, tokenizer):
        return LIMIT


ACTOR = Writer(Task(), TOKENIZER)
CPU = torch.device("cpu")


def reward(prompt, answer):
    parts = Task().reward([Example(prompt, ())], [TOKENIZER.decode(answer)])
    return float(parts["wave"][0]) + parts["constant"][0]


def test_answers_are_told_apart_and_rewarded_differently():
    assert len({TOKENIZER.decode(answer) for answer in ANSWERS}) == len(ANSWERS) == 15
    for prompt in PROMPTS:
        assert len({reward(prompt, answer) for answer in ANSWERS}) == len(ANSWERS)


@pytest.fixture
def model():
    model = gpt(vocab_size=3, num_layers=1, width=8, num_heads=2)
    model.final_norm.weight.data *= 0.3
    return model


def log_p(model, prompt, answer, temperature=1.0):
    """log p(answer | prompt) from plain logits: the definition."""
    tokens = torch.tensor([*TOKENIZER.encode(prompt), *answer])
    logprobs = (model.logits(model(*packed([tokens[:-1]]))) / temperature).log_softmax(-1)
    return logprobs[torch.arange(len(tokens) - 1), tokens[1:]][-len(answer) :].sum()


def probabilities(model, prompt, temperature=1.0):
    with torch.no_grad():
        found = [float(log_p(model, prompt, answer, temperature).exp()) for answer in ANSWERS]
    assert sum(found) == pytest.approx(1)
    return found


def exact_gradient(model, prompt, temperature=1.0):
    """∇ E[reward], the expectation written out."""
    parts = (log_p(model, prompt, answer, temperature).exp() * reward(prompt, answer) for answer in ANSWERS)
    sum(parts).backward()
    return gradients(model)


def episodes_of(prompts, answers, temperature=1.0):
    """What train_rl.py rolls out and judges when chance gives these `answers` to each prompt."""
    samples = [Sample(answer, [0.0] * len(answer)) for of_one in answers for answer in of_one]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.episodes, "ready", lambda model: model)
        patch.setattr(minillm.episodes, "generate", lambda *_: samples)
        examples = [Example(prompt, ()) for prompt in prompts]
        return judge(Task().reward, ACTOR.rollout(None, examples, Sampling(temperature), len(answers[0])))


class Recorder:
    """A session whose optimiser only writes down the direction it was told to go."""

    update, total, add_up = Session.update, Session.total, Session.add_up

    def __init__(self, model):
        self.model = self.parts = model
        self.sharded, self.team, self.optimizers, self.progress = None, None, [self], SimpleNamespace(totals={})
        self.step_taken = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def step(self):
        self.step_taken = {name: -p.grad for name, p in self.model.named_parameters()}

    def zero_grad(self):
        self.model.zero_grad(set_to_none=True)


def agent_of(model, start=None, temperature=1.0, micro_tokens=65_536):
    return Agent(model, start or model, TOKENIZER, ACTOR, temperature, micro_tokens)


def weighed(rewards, episodes, args):
    """With the advantage of each answer, for every token of it."""
    for advantage, episode in zip(args.advantages(rewards).flatten().tolist(), episodes, strict=True):
        episode.advantages = [advantage] * len(episode.answer)
    return episodes


def step_of_the_script(model, prompts, answers, temperature=1.0, **options):
    """The direction in which train_rl.py moves the weights; half a point is what earlier steps earned on average."""
    options = {"sft_share": 0.0, **options}
    args = train_rl.Args(samples=len(answers[0]), temperature=temperature, **options)
    episodes, recorder = episodes_of(prompts, answers, temperature), Recorder(model)
    if options.keys() & {"kl", "update", "entropy"}:  # which look at log p
        known = logprobs_of(model, ACTOR.batch(episodes, CPU), temperature)
        for episode, logprobs in zip(episodes, known.split([len(e.answer) for e in episodes]), strict=True):
            episode.logprobs = logprobs.tolist()
    if "kl" in options:
        reference = gpt(seed=1, vocab_size=3, num_layers=1, width=8, num_heads=2)
        refer(agent_of(model, reference, temperature, micro_tokens=50), episodes)
    greedy = torch.tensor([reward(prompt, ANSWERS[5]) for prompt in prompts])
    rewards = Rewards(rewards_of(episodes, args.samples).double(), 0.5, greedy.double())
    agent = agent_of(model, temperature=temperature, micro_tokens=args.micro_tokens)
    train_rl.update(agent, weighed(rewards, episodes, args), [], recorder, args)
    return recorder.step_taken


@pytest.mark.parametrize("options", [{"overlong": "drop"}, {"method": "best-of"}], ids=str)
def test_where_no_answer_counts_what_was_given_is_still_learned(model, options):
    args = train_rl.Args(samples=2, sft_share=0.25, update="clip", minibatches=2, **options)
    episodes = [dataclasses.replace(e, is_cut=True) for e in episodes_of(PROMPTS, [[ANSWERS[0]] * 2] * len(PROMPTS))]
    given = [to_batch(episodes[:1], CPU)]
    backward(model, given[0], 0.25 / given[0].count)
    truth, recorder = gradients(model), Recorder(model)
    for episode in episodes:
        episode.advantages = [0.0] * len(episode.answer)
    train_rl.update(agent_of(model), episodes, given, recorder, args)
    assert_same({name: -step for name, step in recorder.step_taken.items()}, truth)


def expectation(model, prompt, estimate, temperature=1.0, samples=2):
    """Of an estimator that sees so many answers, over all that can be drawn."""
    p = probabilities(model, prompt, temperature)
    total = {}
    for numbers in itertools.product(range(len(ANSWERS)), repeat=samples):
        weight = torch.tensor([p[i] for i in numbers], dtype=torch.float64).prod()
        for name, value in estimate([ANSWERS[i] for i in numbers]).items():
            total[name] = total.get(name, 0) + weight * value
    return total


def distance(first, second):
    """Relative difference of two gradients as vectors."""
    a, b = (torch.cat([x[name].flatten() for name in sorted(first)]) for x in (first, second))
    return float((a - b).norm() / a.norm())


# ---- REINFORCE -----------------------------------------------------------------------------------


SHORTENED = {"batch-mean": 0.5, "group-mean": 0.5}  # of two answers, by a baseline that they have a share in


@pytest.mark.parametrize(("prompt", "temperature"), [("ab", 1.0), ("b", 0.7), ("ab", 0.5)])
@pytest.mark.parametrize("baseline", [name for name in BASELINES if name != "group-standardised"])
def test_the_step_of_the_script_is_the_gradient_of_the_expected_reward(model, prompt, temperature, baseline):
    """Every baseline, at temperatures of the policy; 0.5 is the script's own."""
    truth = exact_gradient(model, prompt, temperature)

    def estimate(answers):
        return step_of_the_script(model, [prompt], [answers], temperature, baseline=baseline)

    for samples in (1, 2) if baseline in ("none", "moving-average", "greedy") else (2,):
        expected = expectation(model, prompt, estimate, temperature, samples)
        expected = {name: value / SHORTENED.get(baseline, 1.0) for name, value in expected.items()}
        assert distance(truth, expected) < 1e-10
        assert_same(truth, expected)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("update", UPDATES)
def test_of_fresh_answers_every_update_is_the_same(model, update, ratio):
    """The ratio is 1: clipped and unclipped forms agree with REINFORCE, whatever the aggregation."""
    answers = [[ANSWERS[3], ANSWERS[9], ANSWERS[3]], [ANSWERS[2], ANSWERS[7], ANSWERS[0]]]
    for aggregate in ("answer", "token", "sequence", "constant"):
        truth = step_of_the_script(model, PROMPTS, answers, 0.7, aggregate=aggregate)
        found = step_of_the_script(model, PROMPTS, answers, 0.7, aggregate=aggregate, update=update, ratio=ratio)
        assert distance(truth, found) < 1e-6  # log p of the draw went through float32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"update": "clip", "aggregate": "token"},
        {"kl": "k3", "aggregate": "sequence"},
        {"entropy": 0.1, "sft_share": 0.25},
    ],
)
def test_a_step_does_not_depend_on_how_it_is_cut(model, options):
    """Nor on whether equal answers were scored once."""
    answers = [[ANSWERS[3], ANSWERS[9], ANSWERS[3], ANSWERS[3]], [ANSWERS[2], ANSWERS[7], ANSWERS[0], ANSWERS[2]]]
    together = step_of_the_script(model, PROMPTS, answers, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.episodes, "distinct", lambda episodes: dict.fromkeys(range(len(episodes)), 1))
        for most in (1, 5, 1000):
            assert distance(together, step_of_the_script(model, PROMPTS, answers, micro_tokens=most, **options)) < 1e-6


@pytest.mark.parametrize("name", ["pronounce", "arithmetic", "seq2seq"])
def test_the_temperatures_of_the_script_are_among_those_that_were_checked(model, name):
    assert TASKS[name].rl_recipe(object.__new__(TASKS[name]), model)["temperature"] in (1.0, 0.5)
    assert train_rl.Args().baseline == "leave-one-out"


def test_learning_at_another_temperature_than_drawing_is_biased(model):
    truth = exact_gradient(model, "ab", 0.7)
    found = expectation(model, "ab", lambda answers: step_of_the_script(model, ["ab"], [answers], 1.0), 0.7)
    assert distance(truth, found) > 0.05


def test_a_step_is_the_mean_over_prompts(model):
    answers = [[ANSWERS[3], ANSWERS[-1], ANSWERS[0]], [ANSWERS[7], ANSWERS[1], ANSWERS[5]]]
    for baseline in BASELINES:
        if baseline == "batch-mean":
            continue
        together = step_of_the_script(model, PROMPTS, answers, baseline=baseline)
        alone = [step_of_the_script(model, [p], [a], baseline=baseline) for p, a in zip(PROMPTS, answers, strict=True)]
        assert_same(together, {name: (alone[0][name] + alone[1][name]) / 2 for name in together})


def test_one_sample_without_baseline(model):
    truth, p = exact_gradient(model, "ab"), probabilities(model, "ab")
    batch = pack([answering(TOKENIZER.encode("ab"), answer) for answer in ANSWERS])
    weights = [w * reward("ab", answer) for w, answer in zip(p, ANSWERS, strict=True)]
    weights = torch.tensor(weights, dtype=torch.float64)
    backward(model, batch, -weights[batch.packing.sequence])
    assert distance(truth, gradients(model)) < 1e-10


def whole(episodes):
    """A batch of the answers, one sequence each."""
    return pack([answering(each.prompt, each.answer) for each in episodes])


def wrong(kind):
    """Plausible estimators that are biased."""

    def estimate(model, answers):
        episodes = episodes_of(["ab"], [answers])
        rewards = rewards_of(episodes, len(answers)).double()
        batch = whole(episodes)
        advantages, targets = leave_one_out(Rewards(rewards))[0], batch.targets
        if kind == "baseline with the sample itself":
            advantages = rewards[0] - rewards[0].mean()
        if kind == "divided by the deviation":
            advantages = advantages / (rewards[0].std() + 1e-6)
        if kind == "divided by the length":
            advantages = advantages / torch.tensor([len(answer) for answer in answers])
        if kind == "without the end token":
            targets = targets.masked_fill(targets == END, IGNORE)
        if kind == "with the prompt":
            targets = torch.where(targets == IGNORE, batch.tokens.roll(-1), targets)
        batch = Batch(batch.tokens, targets, batch.labels, batch.segments, batch.packing, batch.count)
        backward(model, batch, -advantages[batch.packing.sequence] / 2)
        return gradients(model)

    return estimate


@pytest.mark.parametrize(
    "kind",
    [
        "baseline with the sample itself",
        "divided by the deviation",
        "divided by the length",
        "without the end token",
        "with the prompt",
        "right",
    ],
)
def test_wrong_estimators_are_told_apart(model, kind):
    truth = exact_gradient(model, "ab")
    found = distance(truth, expectation(model, "ab", lambda answers: wrong(kind)(model, answers)))
    if kind in ("right", "with the prompt"):  # the prompt's gradient has mean advantage 0: noise, but no bias
        assert found < 1e-10
    else:
        assert found > 0.05


def test_one_step_raises_the_expected_reward(model):
    def expected():
        return sum(p * reward("ab", a) for p, a in zip(probabilities(model, "ab"), ANSWERS, strict=True))

    before, direction = expected(), expectation(model, "ab", lambda a: step_of_the_script(model, ["ab"], [a]))
    for name, parameter in model.named_parameters():
        parameter.data += 1e-3 * direction[name]
    assert expected() > before


def updated(model, prompts, answers):
    """What `update` returns, the step, and the number of documents that it learned from."""
    episodes, recorder, learned = episodes_of(prompts, answers), Recorder(model), []
    real = train_rl.backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train_rl, "backward", lambda model, batch, *rest: (learned.append(batch), real(model, batch, *rest))
        )
        args = train_rl.Args(samples=len(answers[0]), temperature=1.0, sft_share=0.0)
        weighed(Rewards(rewards_of(episodes, args.samples).double()), episodes, args)
        norm = train_rl.update(agent_of(model), episodes, [], recorder, args)["gradient_norm"]
    return norm, recorder.step_taken, learned


def test_the_script_reports_the_norm_of_its_gradient(model):
    norm, step, _ = updated(model, PROMPTS, [[ANSWERS[3], ANSWERS[9]], [ANSWERS[2], ANSWERS[2]]])
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in step.values()]).norm()))
    assert norm > 0


def test_prompts_without_variance_are_left_out_and_change_nothing(model):
    norm, step, learned = updated(model, ["b"], [[ANSWERS[2], ANSWERS[2]]])
    assert norm == 0.0
    assert learned == []
    assert all((g == 0).all() for g in step.values())
    for prompts, answers in (
        (PROMPTS, [[ANSWERS[3], ANSWERS[9]], [ANSWERS[2], ANSWERS[2]]]),
        (PROMPTS[::-1], [[ANSWERS[2], ANSWERS[2]], [ANSWERS[3], ANSWERS[9]]]),
    ):
        _, together, (batch,) = updated(model, prompts, answers)
        kept = [answering(TOKENIZER.encode(PROMPTS[0]), ANSWERS[i]) for i in (3, 9)]
        rows = batch.packing.keys.split(batch.tokens[batch.packing.rows])
        assert sorted(map(list, rows)) == sorted(document.tokens for document in kept)
        # The step is divided by all answers drawn, those that were left out included.
        _, alone, _ = updated(model, PROMPTS[:1], [[ANSWERS[3], ANSWERS[9]]])
        for name in alone:
            torch.testing.assert_close(together[name], alone[name] / 2)


def test_entropy_is_estimated_from_the_tokens_drawn():
    """Weighted by how likely the answers are, it sums to the entropy of whole answers, token by token."""
    drawn = [([0, END], [-0.5, -1.0]), ([END], [-3.0])]
    assert entropy([Episode(None, [0], answer, logprobs, "") for answer, logprobs in drawn]) == pytest.approx(1.5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_kl_of_the_script_is_that_of_whole_answers(model, temperature):
    other = gpt(seed=1, vocab_size=3, num_layers=1, width=8, num_heads=2)
    other.final_norm.weight.data *= 0.3
    p, q = (probabilities(each, "ab", temperature) for each in (model, other))
    truth = sum(a * torch.tensor(a / b).log().item() for a, b in zip(p, q, strict=True))

    def kl(reference, prompts, answers):
        episodes = episodes_of(prompts, answers, temperature)
        for episode in episodes:
            episode.logprobs = [float(log_p(model, episode.example.prompt, episode.answer, temperature).detach())]
        refer(agent_of(model, reference, temperature, micro_tokens=8), episodes)
        return sum(episode.kl for episode in episodes) / len(episodes)

    expected = sum(w * kl(other, ["ab"], [[answer]]) for w, answer in zip(p, ANSWERS, strict=True))
    assert expected == pytest.approx(truth, rel=1e-5)
    mean = (kl(other, ["ab"], [[ANSWERS[3]]]) + kl(other, ["b"], [[ANSWERS[9]]])) / 2
    assert kl(other, ["ab", "b"], [[ANSWERS[3]], [ANSWERS[9]]]) == pytest.approx(mean)
    assert kl(model, ["ab"], [[ANSWERS[3]]]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("fault", ["none", "temperature", "ends", "shift"])
def test_a_policy_that_is_not_what_drew_is_noticed(model, fault):
    """Scored at another temperature; its ends alone; each token with its neighbour's log p."""
    torch.manual_seed(0)
    examples = [Example(prompt, ()) for prompt in PROMPTS]
    episodes = ACTOR.rollout(model, examples, Sampling(0.5), 50)
    for episode in episodes:
        if fault == "ends":
            episode.logprobs = [*episode.logprobs[:-1], 0.0]
        if fault == "shift":
            episode.logprobs = [*episode.logprobs[1:], episode.logprobs[0]]
    if fault == "none":
        require_parity(agent_of(model, temperature=0.5), episodes)
    else:
        with pytest.raises(UserError, match="answers were drawn with a log p that differs by 0"):
            require_parity(agent_of(model, temperature=1.0 if fault == "temperature" else 0.5), episodes)


def test_answers_are_learned_token_for_token():
    episodes = episodes_of(PROMPTS, [[[0, END], [1, 1, 1]], [[END], [0, 1, END]]])
    batch = ACTOR.batch(episodes, CPU).batch
    tokens, targets = (x.split(batch.packing.lengths) for x in (batch.tokens, batch.targets))
    assert [t.tolist() for t in tokens] == [[0], [1, 0], [1, 1, 1], [1], [1, 0, 1]]  # 0 is what two prompts share
    assert [t.tolist() for t in targets] == [[IGNORE], [0, END], [1, 1, 1], [END], [0, 1, END]]


def test_an_episode_says_what_became_of_an_answer():
    """In the order of the examples, each with the parts of its own reward."""
    answers = [[[0, END], [1, 1, 1]], [[END], [0, 1, END]]]
    episodes = episodes_of(PROMPTS, answers)
    assert [episode.example.prompt for episode in episodes] == ["ab", "ab", "b", "b"]
    assert [episode.prompt for episode in episodes] == [[0, 1], [0, 1], [1], [1]]
    assert [episode.answer for episode in episodes] == [*answers[0], *answers[1]]
    assert [episode.said for episode in episodes] == ["a", "bbb", "", "ab"]
    for episode in episodes:
        assert episode.reward == reward(episode.example.prompt, episode.answer) == sum(episode.parts.values())
        assert episode.parts.keys() == {"wave", "constant"}
    assert rewards_of(episodes, 2).tolist() == [
        [episodes[0].reward, episodes[1].reward],
        [episodes[2].reward, episodes[3].reward],
    ]


def test_what_is_rolled_out_is_drawn_at_the_temperature_of_the_policy(model):
    """The log-probabilities of the episodes are those that the update differentiates."""
    torch.manual_seed(0)
    examples = [Example(prompt, ()) for prompt in PROMPTS]
    episodes = ACTOR.rollout(model, examples, Sampling(0.5), 50)
    assert len(episodes) == 100
    for episode in episodes:
        truth = log_p(model, episode.example.prompt, episode.answer, 0.5).detach()
        assert sum(episode.logprobs) == pytest.approx(float(truth), abs=1e-9)
    batch = ACTOR.batch(episodes, CPU).batch
    loss = model.loss(batch, temperature=0.5)[batch.targets != IGNORE]
    assert (-loss).tolist() == pytest.approx([x for episode in episodes for x in episode.logprobs], abs=1e-9)


# ---- supervised ----------------------------------------------------------------------------------


def test_supervised_loss_is_the_mean_over_answer_tokens(model):
    pairs = [([0, 1], [1, END]), ([1], [0, 0, END])]
    batch = pack([answering(prompt, answer) for prompt, answer in pairs])
    truth = -sum(log_p(model, TOKENIZER.decode(prompt), answer) for prompt, answer in pairs) / 5
    assert batch.count == 5
    truth.backward()
    expected = gradients(model)
    loss = backward(model, batch, 1 / batch.count)
    torch.testing.assert_close(loss, truth.detach(), rtol=0, atol=1e-12)
    assert not loss.requires_grad
    assert_same(expected, gradients(model))


def test_weights_of_prompts_count_nothing(model):
    batch = pack([answering([0, 1, 1], [1, END])])
    weights = torch.tensor([1.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    truth = model.loss(batch, weights)
    weights[:2] = 99.0
    assert torch.equal(model.loss(batch, weights), truth)


def test_gradients_of_several_batches_add_up(model):
    """`backward` leaves what is there: the batches of a step are one sum."""
    batches = [pack([answering([0, 1], [1, END])]), pack([answering([1], [0, 0, END])])]
    parts = []
    for batch in batches:
        backward(model, batch, 0.2)
        parts.append(gradients(model))
    for batch in batches:
        backward(model, batch, 0.2)
    assert_same({name: parts[0][name] + parts[1][name] for name in parts[0]}, gradients(model))

"""The one formula: REINFORCE as the scripts do it against the gradient of the expected reward, by going through
every answer that a model of a tiny vocabulary can give."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from tiny import assert_same, gpt, gradients, packed

import train_rl
from minillm.batching import IGNORE, Document, pack
from minillm.generate import Sample
from minillm.objective import weighted_nll
from minillm.policy import leave_one_out
from minillm.tasks import Example
from minillm.tokenizer import SymbolTokenizer

TOKENIZER = SymbolTokenizer("tiny", r"[\s\S]", "ab")
TASK = SimpleNamespace(tokenizer=TOKENIZER)
END, LIMIT = TOKENIZER.end, 3  # tokens of an answer at most
PROMPTS = ("ab", "b")
ANSWERS = [
    list(answer)
    for length in range(1, LIMIT + 1)
    for answer in itertools.product(range(3), repeat=length)
    if END not in answer[:-1] and (length == LIMIT or answer[-1] == END)
]


def reward(prompt, answer):
    """Any function of the answer, and one that no constant fits."""
    return 0.3 + torch.sin(torch.tensor(7.0 * len(prompt) + sum((t + 2) * 3**i for i, t in enumerate(answer)))).item()


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


def rollout(prompts, answers):
    """What train_rl.py draws: `answers` of each prompt."""
    judged = [[reward(prompt, answer) for answer in of_one] for prompt, of_one in zip(prompts, answers, strict=True)]
    return train_rl.Rollout(
        [Example(prompt, ()) for prompt in prompts],
        [Sample(answer, [0.0] * len(answer)) for of_one in answers for answer in of_one],
        [],
        torch.tensor(judged, dtype=torch.float64),
    )


class Recorder:
    """An optimiser that only writes down the direction it was told to go."""

    def __init__(self, model):
        self.model = model
        self.step_taken = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def step(self):
        self.step_taken = {name: -p.grad for name, p in self.model.named_parameters()}

    def zero_grad(self):
        self.model.zero_grad(set_to_none=True)


def step_of_the_script(model, prompts, answers, temperature=1.0):
    """The direction in which train_rl.py moves the weights."""
    drawn, recorder = rollout(prompts, answers), Recorder(model)
    train_rl.update(model, TASK, drawn, [recorder], temperature)
    return recorder.step_taken


def expectation(model, prompt, estimate, temperature=1.0):
    """Of an estimator that sees two answers, over all pairs."""
    p = probabilities(model, prompt, temperature)
    total = {}
    for (i, first), (j, second) in itertools.product(enumerate(ANSWERS), repeat=2):
        for name, value in estimate([first, second]).items():
            total[name] = total.get(name, 0) + p[i] * p[j] * value
    return total


def distance(first, second):
    """Relative difference of two gradients as vectors."""
    a, b = (torch.cat([x[name].flatten() for name in sorted(first)]) for x in (first, second))
    return float((a - b).norm() / a.norm())


# ---- REINFORCE -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "temperature"), [("ab", 1.0), ("b", 0.7)])
def test_the_step_of_the_script_is_the_gradient_of_the_expected_reward(model, prompt, temperature):
    truth = exact_gradient(model, prompt, temperature)
    expected = expectation(
        model, prompt, lambda answers: step_of_the_script(model, [prompt], [answers], temperature), temperature
    )
    assert distance(truth, expected) < 1e-10
    assert_same(truth, expected)


def test_learning_at_another_temperature_than_drawing_is_biased(model):
    truth = exact_gradient(model, "ab", 0.7)
    found = expectation(model, "ab", lambda answers: step_of_the_script(model, ["ab"], [answers], 1.0), 0.7)
    assert distance(truth, found) > 0.05


def test_a_step_is_the_mean_over_prompts(model):
    answers = [[ANSWERS[3], ANSWERS[-1], ANSWERS[0]], [ANSWERS[7], ANSWERS[1], ANSWERS[5]]]
    together = step_of_the_script(model, PROMPTS, answers)
    alone = [step_of_the_script(model, [p], [a]) for p, a in zip(PROMPTS, answers, strict=True)]
    assert_same(together, {name: (alone[0][name] + alone[1][name]) / 2 for name in together})


def test_one_sample_without_baseline(model):
    truth, p = exact_gradient(model, "ab"), probabilities(model, "ab")
    batch = pack([Document(TOKENIZER.encode("ab"), answer) for answer in ANSWERS])
    weights = [w * reward("ab", answer) for w, answer in zip(p, ANSWERS, strict=True)]
    weights = torch.tensor(weights, dtype=torch.float64)
    (-weighted_nll(model, batch, weights[batch.packing.sequence])).backward()
    assert distance(truth, gradients(model)) < 1e-10


def wrong(kind):
    """Plausible estimators that are biased."""

    def estimate(model, answers):
        drawn = rollout(["ab"], [answers])
        batch = train_rl.to_batch(TASK, drawn)
        advantages, targets = leave_one_out(drawn.rewards)[0], batch.targets
        if kind == "baseline with the sample itself":
            advantages = drawn.rewards[0] - drawn.rewards[0].mean()
        if kind == "divided by the deviation":
            advantages = advantages / (drawn.rewards[0].std() + 1e-6)
        if kind == "divided by the length":
            advantages = advantages / torch.tensor([len(answer) for answer in answers])
        if kind == "without the end token":
            targets = targets.masked_fill(targets == END, IGNORE)
        if kind == "with the prompt":
            targets = torch.where(targets == IGNORE, batch.tokens.roll(-1), targets)
        batch = type(batch)(batch.tokens, targets, batch.packing)
        (-weighted_nll(model, batch, advantages[batch.packing.sequence] / 2)).backward()
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


def test_the_script_reports_the_norm_of_its_gradient(model):
    drawn = rollout(PROMPTS, [[ANSWERS[3], ANSWERS[9]], [ANSWERS[2], ANSWERS[2]]])
    norm = train_rl.update(model, TASK, drawn, [recorder := Recorder(model)])
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in recorder.step_taken.values()]).norm()))
    assert norm > 0


def test_prompts_without_variance_are_left_out_and_change_nothing(model):
    alike = rollout(["b"], [[ANSWERS[2], ANSWERS[2]]])
    assert alike.informative().examples == []
    assert train_rl.update(model, TASK, alike, [recorder := Recorder(model)]) == 0.0
    assert all((g == 0).all() for g in recorder.step_taken.values())
    both = rollout(PROMPTS, [[ANSWERS[3], ANSWERS[9]], [ANSWERS[2], ANSWERS[2]]])
    kept = both.informative()
    assert [e.prompt for e in kept.examples] == [PROMPTS[0]]
    assert [s.tokens for s in kept.samples] == [ANSWERS[3], ANSWERS[9]]
    assert torch.equal(kept.rewards, both.rewards[:1])
    # The step is divided by all answers drawn, those that were left out included.
    alone, together = (
        step_of_the_script(model, PROMPTS[:n], [[ANSWERS[3], ANSWERS[9]], [ANSWERS[2]] * 2][:n]) for n in (1, 2)
    )
    for name in alone:
        torch.testing.assert_close(together[name], alone[name] / 2)


def test_entropy_is_estimated_from_the_tokens_drawn(model):
    """Weighted by how likely the answers are, it sums to the entropy of whole answers, token by token."""
    drawn = train_rl.Rollout([], [Sample([0, END], [-0.5, -1.0]), Sample([END], [-3.0])], [], torch.zeros(1, 2))
    assert drawn.entropy() == pytest.approx(1.5)


def test_kl_of_the_script_is_that_of_whole_answers(model):
    other = gpt(seed=1, vocab_size=3, num_layers=1, width=8, num_heads=2)
    other.final_norm.weight.data *= 0.3
    p, q = probabilities(model, "ab"), probabilities(other, "ab")
    truth = sum(a * torch.tensor(a / b).log().item() for a, b in zip(p, q, strict=True))

    def kl(prompts, answers):
        return train_rl.kl_to(other, model, TASK, rollout(prompts, answers))

    expected = sum(w * kl(["ab"], [[answer]]) for w, answer in zip(p, ANSWERS, strict=True))
    assert expected == pytest.approx(truth, rel=1e-6)
    mean = (kl(["ab"], [[ANSWERS[3]]]) + kl(["b"], [[ANSWERS[9]]])) / 2
    assert kl(["ab", "b"], [[ANSWERS[3]], [ANSWERS[9]]]) == pytest.approx(mean)


def test_answers_are_learned_token_for_token():
    drawn = rollout(PROMPTS, [[[0, END], [1, 1, 1]], [[END], [0, 1, END]]])
    batch = train_rl.to_batch(TASK, drawn)
    tokens, targets = (batch.packing.split(x) for x in (batch.tokens, batch.targets))
    assert [t.tolist() for t in tokens] == [[0, 1, 0], [0, 1, 1, 1], [1], [1, 0, 1]]
    assert [t.tolist() for t in targets] == [[IGNORE, 0, END], [IGNORE, 1, 1, 1], [END], [0, 1, END]]


# ---- supervised ----------------------------------------------------------------------------------


def test_supervised_loss_is_the_mean_over_answer_tokens(model):
    documents = [Document([0, 1], [1, END]), Document([1], [0, 0, END])]
    batch = pack(documents)
    truth = -sum(log_p(model, TOKENIZER.decode(d.prompt), d.answer) for d in documents) / 5
    assert batch.num_targets == 5
    torch.testing.assert_close(weighted_nll(model, batch, 1 / batch.num_targets), truth, rtol=0, atol=1e-12)


def test_weights_of_prompts_count_nothing(model):
    batch = pack([Document([0, 1, 1], [1, END])])
    weights = torch.tensor([1.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    truth = weighted_nll(model, batch, weights)
    weights[:2] = 99.0
    assert torch.equal(weighted_nll(model, batch, weights), truth)

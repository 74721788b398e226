"""Direct preference methods: what a step adds to the gradients is autograd's of the loss as it was published."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny import VOCAB, assert_same, batch_of, bert_config, gpt, gpt_config, gradients, packed, sequences, shake
from torch.nn.functional import logsigmoid

from minillm import evaluate, rewards
from minillm.batching import Corpus, Document, DocumentTable, answering, pack
from minillm.errors import UserError
from minillm.heads import RewardModel, Scorer
from minillm.objective import backward
from minillm.preference import METHODS, Pairs, rule
from minillm.tokenizer import SymbolTokenizer

LENGTHS = [(3, 2, 4), (1, 5, 1), (4, 1, 3), (2, 3, 3)]  # of a prompt, the chosen and the rejected answer
KL = 0.3


def answers(seed=0):
    """(prompt, answer) of each answer, the chosen one before the rejected one."""
    parts = sequences([n for lengths in LENGTHS for n in lengths], seed)
    triples = [[part.tolist() for part in parts[i : i + 3]] for i in range(0, len(parts), 3)]
    return [(prompt, answer) for prompt, *both in triples for answer in both]


def log_p(model, prompt, answer):
    """Σ log p of an answer's tokens, by softmax and by itself."""
    tokens, packing = packed([torch.tensor(prompt + answer)])
    logits = model.logits(model(tokens, packing))[len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


# What the papers minimise, for one pair: log p of both, log p of both at the start, tokens of both.


def published_dpo(w, l, w0, l0, n_w, n_l, beta):  # noqa: E741
    return -logsigmoid(beta * (w - w0) - beta * (l - l0))


def published_ipo(w, l, w0, l0, n_w, n_l, beta):  # noqa: E741
    h = (w.exp() * l0.exp() / (l.exp() * w0.exp())).log()
    return (h - 1 / (2 * beta)) ** 2


def published_kto(w, l, w0, l0, n_w, n_l, beta):  # noqa: E741
    desirable = 1 - torch.sigmoid(beta * (w - w0 - KL))
    undesirable = 1 - torch.sigmoid(beta * (KL - (l - l0)))
    return (desirable + undesirable) / 2


def published_orpo(w, l, w0, l0, n_w, n_l, beta):  # noqa: E741
    p_w, p_l = (w / n_w).exp(), (l / n_l).exp()
    return -w / n_w - beta * logsigmoid(((p_w / (1 - p_w)) / (p_l / (1 - p_l))).log())


PUBLISHED = {"dpo": published_dpo, "ipo": published_ipo, "kto": published_kto, "orpo": published_orpo}
every_method = pytest.mark.parametrize("method", METHODS)


def expected(model, start, method, beta):
    """The mean loss over pairs as published, and its gradients by autograd."""
    losses = []
    for chosen, rejected in pairs():
        now = [log_p(model, *each) for each in (chosen, rejected)]
        before = [log_p(start, *each).detach() for each in (chosen, rejected)]
        losses.append(PUBLISHED[method](*now, *before, len(chosen[1]), len(rejected[1]), beta))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), gradients(model)


def pairs():
    found = answers()
    return list(zip(found[::2], found[1::2], strict=True))


def batches_of(start, cuts):
    """The pairs in batches of so many, with log p at the start as labels."""
    table = DocumentTable([[answering(*each) for each in pair] for pair in pairs()])
    table.labels = np.array([log_p(start, *each).item() for each in answers()])
    numbers = np.split(np.arange(len(LENGTHS)), np.cumsum(cuts)[:-1])
    return [table.batch(part) for part in numbers]


def step(model, start, method, beta, cuts=(4,)):
    weigh = partial(rule, method=METHODS[method], beta=beta, count=len(LENGTHS), kl=KL)
    found = [backward(model, batch, partial(weigh, batch=batch)) for batch in batches_of(start, cuts)]
    return sum(found).item(), gradients(model)


@every_method
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_gradients_are_autograds_of_the_published_loss(method, beta):
    model, start = gpt(seed=1), gpt(seed=2)
    loss, found = step(model, start, method, beta)
    wanted_loss, wanted = expected(model, start, method, beta)
    assert loss == pytest.approx(wanted_loss, rel=1e-10)
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-3
    assert_same(wanted, found, tolerance=1e-9)


@every_method
@pytest.mark.parametrize("cuts", [(1, 1, 1, 1), (3, 1), (2, 2)])
def test_a_step_cut_in_any_way_has_one_gradient(method, cuts):
    model, start = gpt(seed=1), gpt(seed=2)
    whole, cut = (step(model, start, method, 0.3, cuts) for cuts in ((4,), cuts))
    assert whole[0] == pytest.approx(cut[0], rel=1e-12)
    assert_same(whole[1], cut[1], tolerance=1e-12)


@every_method
def test_chosen_answers_become_likelier_and_rejected_ones_less(method):
    now = torch.tensor([[-3.0, -4.0], [-9.0, -2.0]], dtype=torch.float64)
    loss, weights = METHODS[method](Pairs(now, now, torch.tensor([[2.0, 3.0], [4.0, 2.0]])), 0.1)
    assert loss.shape == (2,)
    assert (weights[:, 0] > 0).all()
    assert (weights[:, 1] < 0).all()


@pytest.mark.parametrize(("method", "loss"), [("dpo", math.log(2)), ("ipo", 25.0), ("kto", 0.5)])
def test_the_loss_of_a_model_at_its_start(method, loss):
    now = torch.tensor([[-3.0, -4.0]])
    assert METHODS[method](Pairs(now, now, torch.ones(1, 2)), 0.1)[0].item() == pytest.approx(loss)


def test_ipo_is_content_with_its_margin():
    start = torch.tensor([[-3.0, -4.0]])
    now = start + torch.tensor([[2.0, -3.0]])
    loss, weights = METHODS["ipo"](Pairs(now, start, torch.ones(1, 2)), 0.1)
    assert loss.item() == 0
    assert (weights == 0).all()


def test_orpo_of_certain_answers_is_finite():
    now = torch.tensor([[0.0, 0.0], [0.0, -80.0], [-200.0, 0.0]])
    for found in METHODS["orpo"](Pairs(now, now, torch.full((3, 2), 4.0)), 0.1):
        assert found.isfinite().all()


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 7, 40, 1000])
@pytest.mark.parametrize("micro_tokens", [None, 5])
def test_pairs_are_never_separated(batch_tokens, micro_tokens):
    rng = np.random.default_rng(0)
    # The label of a document says which pair it is of, and which side.
    examples = [
        [Document([i + 1] * int(rng.integers(1, 9)), label=2 * i + side) for side in range(2)] for i in range(30)
    ]
    corpus = Corpus(lambda _: examples, seed=3, counts_examples=True)
    for epoch in range(2):
        seen = []
        first = epoch * corpus.steps_per_epoch(batch_tokens)
        for step in range(first, first + corpus.steps_per_epoch(batch_tokens)):
            for batch in corpus.step(step, batch_tokens, micro_tokens):
                labels = batch.labels.view(-1, 2)
                assert (labels[:, 0] % 2 == 0).all()
                assert torch.equal(labels[:, 1], labels[:, 0] + 1)
                seen += (labels[:, 0] // 2).tolist()
        assert sorted(seen) == list(range(30))


# ---- heads with one output -----------------------------------------------------------------------

MODELS = {
    "bert": lambda kind: kind(bert_config()),
    "gpt2": lambda kind: kind(gpt_config(positions="learned", bias=True)),
    "llama": lambda kind: kind(gpt_config(norm="rmsnorm", mlp="swiglu", num_kv_heads=2)),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def read(seed=5):
    tokens, packing = packed(sequences((5, 3, 2, 7, 4, 4), seed))
    return batch_of(tokens, packing, labels=torch.tensor([1, 0] * 3))


@every_model
def test_a_reward_model_is_bradley_terry(make):
    model = shake(make(RewardModel)).eval()
    batch = read()
    scores = model(batch.tokens, batch.packing, batch.segments).squeeze(-1)
    wanted = torch.stack([-(w.exp() / (w.exp() + l.exp())).log() for w, l in scores.view(-1, 2)])  # noqa: E741
    torch.testing.assert_close(model.loss(batch), wanted)
    weights = torch.tensor([0.5, 0.0, 2.0])
    torch.testing.assert_close(model.loss(batch, weights), (weights * wanted).sum())


def test_smoothed_labels_of_a_reward_model():
    model = shake(RewardModel(bert_config())).eval()
    p = (-model.loss(read())).exp()
    wanted = -0.8 * p.log() - 0.2 * (p.log() + (1 - p).log()) / 2
    torch.testing.assert_close(model.loss(read(), label_smoothing=0.2), wanted)


def test_what_has_no_labels_smooths_none():
    model, start = gpt(seed=1), gpt(seed=2)
    weigh = partial(rule, method=METHODS["dpo"], beta=0.1, count=4, kl=0.0)
    (batch,) = batches_of(start, (4,))
    with pytest.raises(UserError, match="label-smoothing"):
        backward(model, batch, partial(weigh, batch=batch), label_smoothing=0.1)
    with pytest.raises(ValueError, match="label smoothing"):
        Scorer(bert_config()).loss(read(), label_smoothing=0.1)


@every_model
def test_a_scorer_learns_squared_errors(make):
    model = shake(make(Scorer)).eval()
    batch = read()
    scores = model(batch.tokens, batch.packing, batch.segments).squeeze(-1)
    torch.testing.assert_close(model.loss(batch), (scores - batch.labels) ** 2)


def test_a_reward_models_gradient_does_not_depend_on_the_cut():
    model = shake(RewardModel(bert_config())).eval()
    parts = [part.tolist() for part in sequences((5, 3, 2, 7, 4, 4))]
    documents = [Document(tokens, label=1 - i % 2) for i, tokens in enumerate(parts)]
    whole = backward(model, pack(documents), 1 / 3).item()
    together = gradients(model)
    assert whole == pytest.approx(sum(backward(model, pack(documents[i : i + 2]), 1 / 3).item() for i in (0, 2, 4)))
    assert_same(together, gradients(model), tolerance=1e-12)


def test_one_output_and_no_more():
    with pytest.raises(ValueError, match="a scorer has one output, not 2"):
        Scorer(bert_config(), ("a", "b"))


@every_model
def test_transformers_gives_the_same_scores(make, tmp_path):
    transformers = pytest.importorskip("transformers")
    from minillm.published import checkpoint

    model = shake(make(RewardModel)).float().eval()
    checkpoint.save(model, tmp_path, pad_token_id=0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.num_labels == 1
    for tokens in sequences((5, 3, 7), high=VOCAB - 1):
        tokens = tokens + 1  # 0 pads
        ours = model(*packed([tokens]), torch.zeros_like(tokens))
        torch.testing.assert_close(ours, theirs(input_ids=tokens[None]).logits, rtol=1e-4, atol=1e-5)
    # And what transformers saves is read again, as either head.
    theirs.save_pretrained(tmp_path / "theirs")
    for head in ("score", "reward"):
        again = checkpoint.load(tmp_path / "theirs", head, ("LABEL_0",))
        assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in again.named_parameters())


class Asked(NamedTuple):
    prompt: str


def test_a_reward_model_is_a_reward():
    tokenizer = SymbolTokenizer("tiny", r"[\s\S]", "abcdefgh\n")
    model = shake(RewardModel(gpt_config())).eval()
    prompts, answers = ["ab", "ab", "gh"], ["cd", "", "cd"]
    found = rewards.of_judge(model, tokenizer)(list(map(Asked, prompts)), answers)
    assert found == {"score": evaluate.score(model, tokenizer, prompts, answers).tolist()}
    alone = []
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = [*tokenizer.encode(prompt + answer), tokenizer.end]  # a vocabulary of symbols, without blank lines
        alone.append(model(*packed([torch.tensor(tokens)])).item())
    assert found["score"] == pytest.approx(alone)
    assert len(set(alone)) == 3

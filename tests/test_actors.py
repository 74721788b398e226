"""Policies that draw classes and tags: what they draw, and that the gradient of what a step learns is, over all that
can be drawn, the gradient of the expected reward."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import assert_same, bert_config, gradients, shake

from kernels import Packing
from minillm.actors import Chooser, Tagger, by_reward
from minillm.batching import Document
from minillm.episodes import Agent, Episode, logprobs_of, look, refer, verdict_bits
from minillm.errors import UserError
from minillm.generate import GREEDY, Sampling
from minillm.heads import SequenceClassifier, TokenClassifier
from minillm.policy import Rewards
from minillm.tagging import Tags, Window
from minillm.tasks import arithmetic, classify
from minillm.watch import require_parity
from train_rl import Args, climb

T = 0.7
TAGS, INTENTS = ("O", "B-x", "I-x"), ("play", "stop")


@dataclass(frozen=True)
class Words:
    """Tokens as words, which are read as they are, so many at once."""

    words: tuple[int, ...]
    room: int = 9

    def windows(self):
        starts = range(0, len(self.words), self.room)
        parts = [np.arange(start, min(start + self.room, len(self.words))) for start in starts]
        return [window([1, *(self.words[i] for i in part), 2], part) for part in parts]


def window(tokens, words):
    return Window(tokens, np.array(words), np.arange(len(words)) + 1, np.array([-1, *words, -1]))


def classifier(classes):
    model = shake(SequenceClassifier(bert_config(), classes)).eval()
    task = SimpleNamespace(
        classes=classes, documents=lambda example, *_: [Document([1, *example.words, 2], label=0, segments=[0] * 5)]
    )
    return model, Chooser(task, None)


def tagger(intents=(), sentences=(Words((3, 4)),)):
    model = shake(TokenClassifier(bert_config(), TAGS, intents)).eval()
    reader = SimpleNamespace(windows=lambda words: next(e for e in sentences if e.words == words).windows())
    splits = SimpleNamespace(train=sentences, unlabelled=())
    return model, Tagger(SimpleNamespace(classes=TAGS, sequence_classes=intents, reader=reader, splits=splits), None)


@pytest.fixture(params=["class", "tags", "tags and a class", "in windows"])
def world(request):
    """A model, its actor, and two examples."""
    if request.param == "class":
        return *classifier(("a", "b", "c")), [Words((3, 4, 5)), Words((6, 3, 3))]
    room = 2 if request.param == "in windows" else 9
    sentences = [Words((3, 4, 5), room), Words((6, 7), room)]
    return *tagger(INTENTS if request.param != "tags" else (), sentences), sentences


def truth(model, actor, example):
    """Of each answer to an example, its probability, with a graph: softmax by softmax."""
    if isinstance(actor, Chooser):
        tokens = torch.tensor([1, *example.words, 2])
        rows = [model(tokens, Packing.from_lengths([5])).div(T).softmax(-1)[0]]
    else:
        read = [torch.tensor(window.tokens) for window in example.windows()]
        said = [model.both(tokens, Packing.from_lengths([len(tokens)]), None) for tokens in read]
        logits = [row for of_words, _ in said for row in of_words[1:-1]]
        whole = [said[0][1][0]] if actor.intents else []
        rows = [row.div(T).softmax(-1) for row in (*logits, *whole)]
    answers = itertools.product(*(range(len(row)) for row in rows))
    return {ids: torch.stack([row[k] for row, k in zip(rows, ids, strict=True)]).prod() for ids in answers}


def numbers(probabilities):
    return {ids: p.item() for ids, p in probabilities.items()}


def drawn(example, ids, p):
    """The episode in which this was drawn."""
    episode = Episode(example, list(example.words), list(ids), [math.log(p)] + [0.0] * (len(ids) - 1), "")
    episode.reward = reward(ids)
    return episode


def reward(ids):
    """Of an answer: different for all, and no sum over its draws."""
    return math.sin(1 + sum(k * 3**i for i, k in enumerate(ids))) ** 2


# ---- what is drawn ---------------------------------------------------------------------------------


def test_answers_are_drawn_as_often_as_they_are_likely(world):
    model, actor, examples = world
    torch.manual_seed(0)
    count = 4000
    episodes = actor.rollout(model, examples, Sampling(T), count)
    assert [id(e.example) for e in episodes] == [id(each) for each in examples for _ in range(count)]
    for i, example in enumerate(examples):
        own = episodes[i * count : (i + 1) * count]
        likely = numbers(truth(model, actor, example))
        for episode in own[:50]:
            assert sum(episode.logprobs) == pytest.approx(math.log(likely[tuple(episode.answer)]))
        for ids, p in likely.items():
            share = sum(tuple(e.answer) == ids for e in own) / count
            assert abs(share - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-3


def test_log_p_of_what_was_drawn_is_that_of_the_model_that_learns(world):
    model, actor, examples = world
    episodes = actor.rollout(model, examples, Sampling(T), 5)
    now = logprobs_of(model, actor.batch(episodes, torch.device("cpu")), T)
    then = torch.tensor([p for episode in episodes for p in episode.logprobs], dtype=torch.float64)
    torch.testing.assert_close(now, then)
    require_parity(Agent(model, model, None, actor, T), episodes)
    refer(Agent(model, model, None, actor, T, micro_tokens=7), episodes)
    assert max(abs(episode.kl) for episode in episodes) < 1e-10
    with pytest.raises(UserError, match=f"nats a {actor.draws} from the one that learns"):
        require_parity(Agent(model, model, None, actor, 1.0), episodes)


def test_what_an_answer_means(world):
    model, actor, examples = world
    for episode in actor.rollout(model, examples, Sampling(T), 3):
        if isinstance(actor, Chooser):
            assert episode.said == "abc"[episode.answer[0]]
            continue
        n = len(episode.example.words)
        assert episode.said == tuple(TAGS[k] for k in episode.answer[:n])
        assert episode.said.intent == (INTENTS[episode.answer[n]] if actor.intents else None)
        assert len(episode.answer) == len(episode.logprobs) <= actor.longest


def test_the_greedy_answer_is_the_likeliest(world):
    model, actor, examples = world
    for episode in actor.rollout(model, examples, GREEDY, 1):
        likely = truth(model, actor, episode.example)
        assert tuple(episode.answer) == max(likely, key=likely.get)


def test_a_word_that_is_not_read_has_the_first_tag_and_teaches_nothing():
    sentence = Words((3, 4, 5))
    model, actor = tagger(INTENTS, [sentence])
    actor.windows = lambda _: [window([1, 3, 5, 2], [0, 2])]
    (episode,) = actor.rollout(model, [sentence], Sampling(T), 1)
    assert len(episode.answer) == 3
    assert episode.said == (TAGS[episode.answer[0]], "O", TAGS[episode.answer[1]])
    assert len(actor.batch([episode], torch.device("cpu")).at) == 3


def test_tags_are_a_tuple_that_knows_what_the_whole_is():
    tags = Tags(["O", "B-x"], "play")
    assert tags == ("O", "B-x")
    assert (tags.intent, str(tags)) == ("play", "play: O B-x")
    assert str(Tags(["O"])) == "O"


def test_what_is_inherited_is_what_verdicts_heed():
    options = classify.Options(augment="drop", class_weights="balanced", labels=0.5)
    assert by_reward(options, None) == by_reward(options, 0.0) == classify.Options(labels=0.5)
    assert by_reward(options, 0.3) == classify.Options(augment="drop", labels=0.5)  # of answers that are given
    masked = classify.Options(augment="mask", augment_model=Path("a model"))
    assert by_reward(masked, None) == classify.Options()
    assert by_reward(arithmetic.Options(20), None) == arithmetic.Options(20)


# ---- what is learned -------------------------------------------------------------------------------

FACTORS = {  # of the exact gradient, for 2 examples with 2 answers each
    "none": 1,
    "moving-average": 1,
    "leave-one-out": 1,
    "greedy": 1,
    "group-mean": 1 / 2,
    "batch-mean": 3 / 4,
}


def of_expected_reward(model, actor, examples):
    """The exact gradient of what a step is to lower, by autograd of Σ p · reward over all answers."""
    total = sum(p * reward(ids) for each in examples for ids, p in truth(model, actor, each).items())
    (-total / len(examples)).backward()
    return gradients(model)


def learn_from(model, actor, episodes, advantages, args):
    """Adds the gradient of what a step teaches, each draw of an answer having the advantage of the whole."""
    for advantage, episode in zip(advantages, episodes, strict=True):
        episode.advantages = [advantage] * len(episode.answer)
    climb(Agent(model, model, None, actor, args.temperature, args.micro_tokens), episodes, 0.0, args)


def of_steps(model, actor, examples, args):
    """The mean gradient of a step, over all that can be drawn in it."""
    likely = [numbers(truth(model, actor, each)) for each in examples]
    greedy = torch.tensor([reward(max(each, key=each.get)) for each in likely])
    of_examples = [itertools.product(each, repeat=args.samples) for each in likely]
    mean: dict = {}
    for step in itertools.product(*map(list, of_examples)):
        chosen = [(i, ids) for i, row in enumerate(step) for ids in row]
        episodes = [drawn(examples[i], ids, likely[i][ids]) for i, ids in chosen]
        rewards = torch.tensor([e.reward for e in episodes], dtype=torch.float64).view(len(examples), -1)
        advantages = args.advantages(Rewards(rewards, 0.4, greedy)).flatten().tolist()
        learn_from(model, actor, episodes, advantages, args)
        probability = math.prod(likely[i][ids] for i, ids in chosen)
        for name, gradient in gradients(model).items():
            mean[name] = mean.get(name, 0) + probability * gradient
    return mean


@pytest.mark.parametrize("baseline", FACTORS)
def test_of_a_classifier_the_gradient_is_exact_whatever_the_baseline(baseline):
    model, actor = classifier(("a", "b", "c"))
    examples = [Words((3, 4, 5)), Words((6, 3, 3))]
    exact = of_expected_reward(model, actor, examples)
    args = Args(baseline=baseline, samples=2, temperature=T, sft_share=0.0)
    found = of_steps(model, actor, examples, args)
    assert_same({name: FACTORS[baseline] * x for name, x in exact.items()}, found)
    assert max(float(x.abs().max()) for x in exact.values()) > 1e-3


@pytest.mark.parametrize(("baseline", "intents"), [("leave-one-out", ()), ("none", INTENTS), ("moving-average", ())])
def test_of_a_tagger_too(baseline, intents):
    """Two words, three tags: 9 answers, or 18 with a class of the whole."""
    sentence = Words((3, 4))
    model, actor = tagger(intents, [sentence])
    exact = of_expected_reward(model, actor, [sentence])
    samples = 2 if baseline == "leave-one-out" else 1
    args = Args(baseline=baseline, samples=samples, temperature=T, sft_share=0.0)
    assert_same(exact, of_steps(model, actor, [sentence], args))


def test_however_a_step_is_cut_its_gradient_is_the_same(world):
    model, actor, examples = world
    episodes = actor.rollout(model, examples, Sampling(T), 6)
    advantages = [math.cos(i) for i in range(len(episodes))]
    found = []
    for micro_tokens in (1, 17, 65_536):
        args = Args(temperature=T, sft_share=0.0, micro_tokens=micro_tokens)
        learn_from(model, actor, episodes, advantages, args)
        found.append(gradients(model))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def push(model, actor, k, advantage):
    """The gradient of one answer, which is class k."""
    episode = drawn(Words((3, 4, 5)), (k,), 0.5)
    learn_from(model, actor, [episode], [advantage], Args(sft_share=0.0, temperature=1.0))
    return torch.cat([x.flatten() for x in gradients(model).values()])


@pytest.mark.parametrize(("classes", "cosine"), [(("a", "b"), 1.0), (("a", "b", "c"), None)])
def test_of_two_classes_either_verdict_is_a_push_towards_the_label(classes, cosine):
    """And of three "wrong" is none. The label is the first class; the baseline one half."""
    model, actor = classifier(classes)
    label = push(model, actor, 0, 1.0)
    for k, advantage in ((0, 0.5), (1, -0.5)):
        found = torch.cosine_similarity(push(model, actor, k, advantage), label, dim=0)
        assert (abs(found - 1) < 1e-9) == (cosine == 1.0 or k == 0)


# ---- what a verdict tells ----------------------------------------------------------------------------


def test_bits_of_a_verdict():
    assert verdict_bits(0.5) == 1
    assert verdict_bits(0.0) == verdict_bits(1.0) == 0
    assert verdict_bits(0.25) == pytest.approx(2 - 0.75 * math.log2(3))
    # The mutual information of label and verdict, where any of K labels is as likely as another: Σ p log p / (p p).
    for K in (2, 3, 7):
        both = {(label, right): 1 / K for label in range(K) for right in (label == 0,)}
        p_right = {right: sum(p for (_, r), p in both.items() if r == right) for right in (True, False)}
        information = sum(p * math.log2(p / (1 / K * p_right[right])) for (_, right), p in both.items())
        assert verdict_bits(1 / K) == pytest.approx(information)
        assert verdict_bits(1 / K) <= math.log2(K)


def test_bits_are_seen_of_verdicts_alone():
    def episodes(*rewards):
        return [Episode(None, [0], [1], [-1.0], "", reward=value, parts={"right": value}) for value in rewards]

    assert look(episodes(1.0, 0.0, 0.0, 0.0), 2)["verdict_bits"] == pytest.approx(verdict_bits(0.25))
    assert "verdict_bits" not in look(episodes(1.0, 0.5), 2)

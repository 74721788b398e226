"""Answers of several turns: what is learned of them is what was drawn, by going through all that can be said; and when
they end."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from tiny import Packing, assert_same, gpt, gradients

import train_rl
from minillm.batching import IGNORE, answering
from minillm.episodes import Agent, Episode, distinct, refer
from minillm.errors import UserError
from minillm.functions import RewardError
from minillm.generate import GREEDY, Sample, Sampling
from minillm.players import Player, tokens_of
from minillm.rewards import SHARED, open_rewards
from minillm.tasks import seq2seq
from minillm.tasks.base import Example
from minillm.tokenizer import SymbolTokenizer
from minillm.turns import Environment, Turns, last_turn
from minillm.values import appraise, with_value
from minillm.watch import require_parity

TOKENIZER = SymbolTokenizer("tiny", r"[\s\S]", "abr")
A, B, R, END = *TOKENIZER.encode("abr"), TOKENIZER.end
LIMIT, CPU = 2, torch.device("cpu")  # tokens of a turn
EXAMPLE = Example("ab", ())


def reply(examples, answers):
    """Nothing said ends it; to what begins with a it says r, to all else rr, as often as it is asked."""
    return [{"": None, "a": "r"}.get(turns[-1][:1], "rr") for turns in answers]


def player(turns=2, answer=reply, limit=LIMIT):
    task = SimpleNamespace(max_answer_tokens=lambda _: limit, environment=Environment(answer, turns))
    return Player(task, TOKENIZER)


@pytest.fixture
def model():
    model = gpt(vocab_size=4, num_layers=1, width=8, num_heads=2)
    model.final_norm.weight.data *= 0.3
    return model


def agent_of(model, actor, **options):
    return Agent(model, model, TOKENIZER, actor, **options)


# ---- which of its tokens are learned ---------------------------------------------------------------


def test_what_is_heard_has_no_target():
    document = answering([1, 2], [3, 9, 4, 5, 9], [(2, [7, 8]), (4, [])])
    assert document.tokens == [1, 2, 3, 9, 7, 8, 4, 5]
    assert document.targets == [IGNORE, 3, 9, IGNORE, IGNORE, 4, 5, 9]  # of the ends of turns, too
    assert answering([1, 2], [3, 9]) == answering([1, 2], [3, 9], ())


def test_a_batch_asks_for_the_draws_of_all_turns():
    episodes = [
        Episode(EXAMPLE, [A, B], [A, END, B, END], [0.0] * 4, "", heard=((2, (R, R)),)),
        Episode(EXAMPLE, [A], [END], [0.0], ""),
        Episode(EXAMPLE, [A], [A, END, END], [0.0] * 3, "", heard=((2, (R,)),)),
    ]
    batch, at, size = player().batch(episodes, CPU)
    assert batch.tokens.tolist() == [*(A, B, A, END, R, R, B), A, *(A, A, END, R)]
    assert batch.targets[at].tolist() == [token for e in episodes for token in e.answer]
    assert R not in batch.targets.tolist()
    assert list(batch.packing.lengths) == [7, 1, 4]
    assert (size, [e.size for e in episodes]) == (12, [8, 2, 5])
    assert tokens_of(episodes[0]) == [A, B, A, END, R, R, B, END]


# ---- the gradient, by going through all that can be said -------------------------------------------


TURNS = [[END], *([a, b] for a in (A, B, R) for b in (A, B, R, END))]


def everything(actor):
    """Every answer that can be given to EXAMPLE, by having a speaker who says everything."""
    prompt, options = TOKENIZER.encode(EXAMPLE.prompt), itertools.cycle(TURNS)
    firsts = [turn for turn in TURNS for _ in TURNS]
    episodes = [actor.episode(EXAMPLE, prompt, Sample([*turn], [0.0] * len(turn))) for turn in firsts]
    actor.play(episodes, lambda said: [Sample([*turn], [0.0] * len(turn)) for _, turn in zip(said, options)], 99)  # noqa: B905
    return [*{episode.key: episode for episode in episodes}.values()]


def log_p(model, episode, temperature=1.0):
    """Of each draw, each from a reading of its own of all that stood before it."""
    heard, said, found = dict(episode.heard), [*episode.prompt], []
    for count, token in enumerate(episode.answer, 1):
        hidden = model(torch.tensor(said), Packing.from_lengths([len(said)]))
        found.append((model.logits(hidden[-1:]) / temperature).log_softmax(-1)[0, token])
        said += [token, *heard.get(count, ())]
    return found


def worth(episode):
    """Any function of what was said."""
    return math.sin(sum((i + 3) * 7.0 * token for i, token in enumerate(episode.answer)))


def test_a_speaker_of_everything_says_it_once(model):
    episodes = everything(player())
    assert len(episodes) == 9 + 1 + 3 * len(TURNS)  # cut, over, with two turns
    total = sum(float(sum(log_p(model, e)).exp().detach()) for e in episodes)
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_step_of_the_script_is_the_gradient_of_the_expected_reward(model, temperature):
    episodes = everything(player())
    expected = sum(sum(log_p(model, e, temperature)).exp() * worth(e) for e in episodes)
    (-expected).backward()
    truth = gradients(model)
    for episode in episodes:  # as often as it is drawn, and K = 1 without a baseline
        p = float(sum(log_p(model, episode, temperature)).exp().detach())
        episode.advantages = [p * worth(episode) * len(episodes)] * len(episode.answer)
    args = train_rl.Args(sft_share=0.0, baseline="none")
    train_rl.climb(agent_of(model, player(), temperature=temperature, micro_tokens=50), episodes, 0.0, args)
    assert_same(truth, gradients(model), 1e-8)  # what an answer counts for, 1/E, is of float32


def test_a_reply_that_is_learned_would_be_another_gradient(model):
    """So that the test above can fail."""
    episodes = everything(player())
    for episode in episodes:
        episode.advantages = [worth(episode)] * len(episode.answer)
    args = train_rl.Args(sft_share=0.0, baseline="none")
    train_rl.climb(agent_of(model, player()), episodes, 0.0, args)
    truth = gradients(model)
    for episode in episodes:
        tokens = tokens_of(episode)[len(episode.prompt) :]
        episode.answer, episode.heard, episode.advantages = tokens, (), [worth(episode)] * len(tokens)
        episode.logprobs = [0.0] * len(tokens)
    train_rl.climb(agent_of(model, player()), episodes, 0.0, args)
    with pytest.raises(AssertionError):
        assert_same(truth, gradients(model))


# ---- what is drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["none", "deaf"])
def test_log_p_is_that_of_the_model_that_learns(model, fault):
    """Of every draw of every turn; not of a model that did not hear."""
    torch.manual_seed(0)
    actor = player(turns=3)
    episodes = actor.rollout(model, [EXAMPLE, Example("b", ())], Sampling(0.5), 40)
    assert max(len(e.said) for e in episodes) == 3
    agent = agent_of(model, actor, temperature=0.5)
    if fault == "deaf":
        for episode in episodes:
            episode.heard = ()
        with pytest.raises(UserError, match="with a log p that differs by"):
            require_parity(agent, episodes)
        return
    require_parity(agent, episodes)
    for episode in episodes:
        truth = [float(x.detach()) for x in log_p(model, episode, 0.5)]
        assert episode.logprobs == pytest.approx(truth, abs=1e-9)


def test_answers_to_one_example_stand_in_a_row(model):
    torch.manual_seed(0)
    examples = [EXAMPLE, Example("b", ()), Example("a", ())]
    episodes = player().rollout(model, examples, Sampling(), 5)
    assert [e.example for e in episodes] == [example for example in examples for _ in range(5)]
    for episode in episodes:
        turns, heard = [[]], dict(episode.heard)
        for count, token in enumerate(episode.answer, 1):
            turns[-1].append(token)
            turns += [[]] if count in heard else []
        assert episode.said == tuple(map(TOKENIZER.decode, turns))
        assert episode.said.replies == tuple(TOKENIZER.decode(tokens) for tokens in heard.values())


def test_greedy_turns_are_those_of_the_policy_near_temperature_0(model):
    examples, actor = [EXAMPLE, Example("b", ()), Example("a", ())], player(turns=3)
    truth = [e.said for e in actor.rollout(model, examples, GREEDY, 1)]
    assert actor.greedy(model, examples, None) == truth
    assert [turns.replies for turns in actor.greedy(model, examples, None)] == [turns.replies for turns in truth]


def test_what_was_heard_tells_answers_apart(model):
    """Of an environment that speaks by chance: other readings, other values and references."""
    episodes = [
        Episode(EXAMPLE, [A], [A, END, B, END], [-1.0] * 4, "", heard=heard) for heard in (((2, (R,)),), ((2, (R, R)),))
    ]
    assert distinct(episodes) == {0: 1, 1: 1}
    assert distinct([episodes[0], episodes[0]]) == {0: 2}
    agent = agent_of(with_value(model), player())
    torch.nn.init.normal_(model.value.weight)
    model.value.deviation.data.fill_(1.0)
    refer(agent, episodes)
    appraise(agent, episodes)
    for name in ("reference", "values"):
        one, two = (vars(episode)[name] for episode in episodes)
        assert len(one) == len(two) == 4
        assert one[:2] == pytest.approx(two[:2], abs=1e-12)
        assert abs(one[2] - two[2]) > 1e-6


# ---- when it ends ------------------------------------------------------------------------------------


def played(*turns, most=9, answer=reply, max_seq_len=99):
    """One answer, of these turns as far as it is asked for them."""
    left = iter([Sample([*turn], [-1.0] * len(turn)) for turn in turns])
    actor = player(most, answer)
    (episode,) = actor.play([actor.episode(EXAMPLE, [A, B], next(left))], lambda _: [next(left)], max_seq_len)
    assert len(episode.logprobs) == len(episode.answer)
    return episode


def test_it_ends_where_the_environment_says_so():
    episode = played([A, END], [B, END], [END], [A, END])
    assert (episode.said, episode.said.replies, episode.is_cut) == (("a", "b", ""), ("r", "rr"), False)
    assert episode.answer == [A, END, B, END, END]
    assert episode.heard == ((2, [R]), (4, [R, R]))


def test_it_ends_at_a_turn_that_does_not():
    episode = played([A, END], [B, B], [A, END])
    assert (episode.said, episode.is_cut) == (("a", "bb"), True)
    assert played([A, A]).said == ("aa",)
    assert played([A, A]).is_cut


def test_it_ends_with_the_last_turn_there_may_be():
    """Cut, unless the environment has nothing more to say either."""
    assert (played([A, END], [A, END], [A, END], most=2).said, played([A, END], [A, END], most=2).is_cut) == (
        ("a", "a"),
        True,
    )
    assert not played([A, END], [END], most=2).is_cut
    assert len(played([A, END], [A, END], most=2).heard) == 1  # what nobody answers is not heard


def test_it_ends_where_there_is_no_room_for_a_whole_turn():
    """Behind a prompt of 2, a turn of 2 and a reply of 1 come 2 more, of which the last is not read."""
    assert played([A, END], [END], max_seq_len=6).said == ("a", "")
    episode = played([A, END], [END], max_seq_len=5)
    assert (episode.said, episode.heard, episode.is_cut) == (("a",), (), True)


def test_models_read_no_more_than_they_can(model):
    torch.manual_seed(0)
    episodes = player(turns=50, answer=lambda _, answers: ["rr"] * len(answers)).rollout(
        model, [EXAMPLE], Sampling(), 30
    )
    assert max(e.size for e in episodes) <= model.config.max_seq_len + 1
    assert all(e.is_cut for e in episodes)


def test_the_environment_is_asked_for_all_that_are_open_at_once(model):
    asked = []

    def counting(examples, answers):
        asked.append(([example.prompt for example in examples], [len(turns) for turns in answers]))
        return ["r" if example.prompt == "ab" else None for example in examples]

    torch.manual_seed(0)
    player(3, counting, limit=1).rollout(model, [EXAMPLE, Example("b", ())], Sampling(), 60)
    (first, one), (second, two), *_ = asked
    assert set(first) == {"ab", "b"}
    assert set(second) == {"ab"}  # of which some end a turn
    assert (set(one), set(two)) == ({1}, {2})


def test_what_the_model_does_not_read_is_no_reply():
    with pytest.raises(RewardError, match="does not read what the environment replied: the symbol 'x'"):
        played([A, END], answer=lambda *_: ["x"])


# ---- what is judged, and shown -----------------------------------------------------------------------


def test_turns_are_a_tuple_with_replies():
    turns = Turns(["30", "26"], ["<\n"])
    assert turns == ("30", "26")
    assert str(turns) == "30 [<] 26"
    assert str(Turns(["30"])) == "30"
    assert turns._asdict() == {"turns": ["30", "26"], "replies": ["<\n"]}
    assert (last_turn(turns), last_turn("30")) == ("26", "30")


def test_ready_rewards_judge_the_last_turn(tmp_path):
    examples, answers = [Example("2 + 2", ("4",))] * 2, [Turns(["2+2=", "4"], ["4"]), Turns(["4", "5"], [""])]
    own = {name: seq2seq.of_last_turn(each) for name, each in SHARED.items()}
    for name, found in {"exact": [1.0, 0.0], "number": [1.0, 0.0], "length": [1.0, 1.0]}.items():
        assert open_rewards([name], own, CPU)(examples, answers) == {name: found}
    path = tmp_path / "game.py"
    path.write_text("def score(examples, answers):\n    return [len(a) + 10 * len(a.replies[0]) for a in answers]\n")
    assert open_rewards([str(path)], own, CPU)(examples, answers) == {"score": [12.0, 2.0]}
    assert examples[0].is_right(answers[0])
    assert not examples[0].is_right(answers[1])

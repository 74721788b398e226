"""Beam search: what enumeration finds, what transformers finds, and the same in any company."""

import itertools
import math

import pytest
import torch
from tiny import GPT_FAMILIES, gpt, packed, sequences

from minillm import beam, generate, tree
from minillm.beam import Beams, Hypothesis, beam_search
from minillm.errors import UserError
from minillm.inference import ready
from minillm.published import checkpoint
from minillm.tree import Tree

VOCAB, STOP, NEW = 13, 4, 10
PROMPTS = [part.tolist() for part in sequences((3, 1, 5, 2, 4, 6, 3, 1), high=STOP)]
CHOICES = {"default": {}, **GPT_FAMILIES}
every_choice = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


def small(seed=0, vocab_size=VOCAB, **choices):
    """A model that is less sure than most, so that answers end at many lengths."""
    model = gpt(seed, vocab_size=vocab_size, **choices)
    model.final_norm.weight.data *= 0.3
    return model


@torch.no_grad()
def logprob(model, prompt, answer):
    """Of the whole answer: one plain pass, no cache."""
    hidden = model(*packed([torch.tensor([*prompt, *answer])]))
    of_tokens = torch.log_softmax(model.logits(hidden)[len(prompt) - 1 : -1], dim=-1)
    return float(of_tokens[range(len(answer)), list(answer)].sum())


def tokens_of(found):
    return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in found]


def assert_same(found, others, tolerance=1e-10):
    assert tokens_of(found) == tokens_of(others)
    for hypotheses, truth in zip(found, others, strict=True):
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in truth], rel=tolerance, abs=tolerance)


# ---- against enumeration -------------------------------------------------------------------------


def all_answers(words, stop, most):
    """Every answer of at most so many tokens: ended by `stop`, or cut."""
    others = [word for word in range(words) if word != stop]
    ended = [(*each, stop) for n in range(most) for each in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=most))


@every_choice
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.7, 2.5])
def test_a_search_as_wide_as_all_there_is_finds_all_in_their_order(choices, penalty):
    model = small(vocab_size=3, **choices)
    prompts, answers = [[0], [1, 0, 1], [0, 1]], all_answers(3, stop=2, most=4)
    found = beam_search(ready(model), prompts, 4, 2, Beams(3**4, penalty, "never"))
    for prompt, hypotheses in zip(prompts, found, strict=True):
        scores = {answer: logprob(model, prompt, answer) / len(answer) ** penalty for answer in answers}
        truth = sorted(scores, key=scores.get, reverse=True)
        assert [tuple(h.tokens) for h in hypotheses] == truth
        assert [h.score for h in hypotheses] == pytest.approx([scores[answer] for answer in truth], abs=1e-5)


@every_choice
@pytest.mark.parametrize("stop", [(), (4,), (4, 9, 12)])
def test_scores_are_those_of_a_full_pass(choices, stop):
    model, penalty = small(**choices), 0.6
    found = beam_search(model, PROMPTS, NEW, stop, Beams(5, penalty))
    lengths = set()
    for prompt, hypotheses in zip(PROMPTS, found, strict=True):
        assert len({tuple(h.tokens) for h in hypotheses}) == 5
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for h in hypotheses:
            assert not set(h.tokens[:-1]) & set(stop)
            assert h.tokens[-1] in stop or len(h.tokens) == NEW
            assert h.score == pytest.approx(logprob(model, prompt, h.tokens) / len(h.tokens) ** penalty, abs=1e-10)
            lengths.add(len(h.tokens))
    assert len(lengths) > (2 if stop else 0)


# ---- against transformers ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama 3"])
def both(request, tmp_path_factory):
    """A model, and the same in transformers."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("model")
    model = small(max_seq_len=32, **GPT_FAMILIES[request.param]).float()
    checkpoint.save(model, folder)
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def theirs(other, prompts, stop, beams):
    """Tokens and score of each of their answers, the prompts padded on the left."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"num_beams": beams.width, "num_return_sequences": beams.width, "do_sample": False, "max_new_tokens": NEW}
    options |= {"length_penalty": beams.length_penalty, "early_stopping": beams.early_stopping}
    options |= {"eos_token_id": list(stop), "pad_token_id": stop[0]}
    out = other.generate(tokens, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **options)
    answers = [row[longest:] for row in out.sequences.tolist()]
    ends = [next((i for i, token in enumerate(row) if token in stop), NEW - 1) + 1 for row in answers]
    hypotheses = list(
        map(Hypothesis, (row[:end] for row, end in zip(answers, ends, strict=True)), out.sequences_scores.tolist())
    )
    return [hypotheses[i : i + beams.width] for i in range(0, len(hypotheses), beams.width)]


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, -2.0, 2.0])
@pytest.mark.parametrize("stop", [(4,), (4, 7)])
def test_the_answers_are_those_of_transformers(both, early, penalty, stop):
    model, other = both
    prompts = [part.tolist() for part in sequences([1 + i % 9 for i in range(30)], seed=3, high=VOCAB)]
    beams = Beams(4, penalty, early)
    found = beam_search(ready(model), prompts, NEW, stop, beams)
    assert_same(found, theirs(other, prompts, stop, beams), 1e-4)


# ---- in any company, however it is computed -------------------------------------------------------


@every_choice
def test_one_beam_is_greedy(choices):
    model = small(**choices)
    greedy = generate.generate(model, PROMPTS, NEW, STOP, generate.GREEDY)
    found = beam_search(model, PROMPTS, NEW, STOP, Beams(1))
    assert tokens_of(found) == [[sample.tokens] for sample in greedy]
    assert [h.score for (h,) in found] == pytest.approx([sum(s.logprobs) / len(s.tokens) for s in greedy], abs=1e-10)


@every_choice
@pytest.mark.parametrize("early", [False, True, "never"])
def test_a_prompt_is_answered_the_same_in_any_company(choices, early, monkeypatch):
    model, stop, beams, sizes = small(**choices), range(4, 7), Beams(3, 0.0, early), set()
    alone = [beam_search(model, [prompt], NEW, stop, beams)[0] for prompt in PROMPTS]
    assert_same(beam_search(model, PROMPTS, NEW, stop, beams), alone)
    read = beam.read
    monkeypatch.setattr(beam, "read", lambda *given: sizes.add(len(given[1])) or read(*given))
    monkeypatch.setattr(tree, "AHEAD", 1)  # so that what lies on no path is thrown out at nearly every step
    monkeypatch.setattr(beam, "STAYING", 1)  # and whoever is done leaves at once
    monkeypatch.setattr(beam, "AT_ONCE", 3 * 4 * VOCAB)  # and logits come in parts
    assert_same(beam_search(model, PROMPTS, NEW, stop, beams), alone)
    assert min(sizes) < len(PROMPTS), "all left at once"


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_answers_are_cut(limit):
    found = beam_search(small(), PROMPTS, limit, (), Beams(3))
    assert all(len(h.tokens) == limit for hypotheses in found for h in hypotheses)


def test_bfloat16_is_searched_in_float32():
    model = small().float()
    model.compute_dtype = torch.bfloat16
    for prompt, hypotheses in zip(PROMPTS, beam_search(ready(model), PROMPTS, NEW, STOP), strict=True):
        for h in hypotheses:
            assert h.score == pytest.approx(logprob(model, prompt, h.tokens) / len(h.tokens), abs=0.1)


@torch.no_grad()
@every_choice
@pytest.mark.parametrize("ahead", [1, 32])
def test_every_path_of_a_tree_is_read_as_a_text_of_its_own(choices, ahead, monkeypatch):
    """Beams fork and die at random, prompts leave, and what lies on no path is thrown out."""
    monkeypatch.setattr(tree, "AHEAD", ahead)
    model, generator = gpt(max_seq_len=40, **choices), torch.Generator().manual_seed(0)
    cache, parts = Tree.of(model, len(PROMPTS), 6), list(map(torch.tensor, PROMPTS))
    model(*packed(parts), cache)
    cache.branch()
    paths = [[part] for part in parts]
    for step in range(30):
        parents = torch.randint(len(paths[0]), (len(paths), 1 + step % 4), generator=generator)
        tokens = torch.randint(VOCAB - 2, parents.shape, generator=generator)
        cache.fork(parents)
        if step % 10 == 9:
            rows = list(range(len(paths)))[::-2]
            cache.select(rows)
            tokens, parents, paths = tokens[rows], parents[rows], [paths[row] for row in rows]
        hidden = beam.read(model, tokens, cache)
        pairs = zip(paths, parents.tolist(), tokens, strict=True)
        paths = [[torch.cat([old[i], token[None]]) for i, token in zip(*new, strict=True)] for old, *new in pairs]
        truth = model(*(text := packed([path for each in paths for path in each])))[text[1].cu_seqlens[1:].long() - 1]
        torch.testing.assert_close(hidden, truth, rtol=0, atol=1e-10)
    longest = max(len(path) for each in paths for path in each)
    assert cache.max_len == longest
    assert (
        cache.layers[0][0].shape[2] < longest + ahead + 4 * 4
    )  # of 75 tokens, those of one path and of the last forks


@pytest.mark.parametrize("penalty", [-2.0, -0.5, 0.0, 1.0, 3.0])
def test_a_search_that_never_gives_up_early_finds_what_one_to_the_end_finds(penalty, monkeypatch):
    models = [gpt(seed, vocab_size=7) for seed in range(8)]
    found = [beam_search(model, PROMPTS, NEW, (2, 4), Beams(3, penalty, "never")) for model in models]
    monkeypatch.setattr(beam.Search, "is_done", lambda search: search.logprobs[:, 0] == -math.inf)
    for model, hypotheses in zip(models, found, strict=True):
        assert_same(hypotheses, beam_search(model, PROMPTS, NEW, (2, 4), Beams(3, penalty)))


@pytest.mark.parametrize(
    ("early", "penalty", "beam_logprob", "worst", "done"),
    [
        (True, 1.0, -1.0, -50.0, True),
        (False, 1.0, -8.0, -2.0, True),  # now it would have −8/2
        (False, 1.0, -8.0, -4.1, False),
        ("never", 1.0, -8.0, -2.0, False),  # but it may have −8/10
        ("never", 1.0, -8.0, -0.8, True),
        ("never", -1.0, -1.0, -5.0, False),  # −1 · 2 now, and less with every token
        ("never", -1.0, -1.0, -2.0, True),
        ("never", 1.0, -8.0, -math.inf, False),  # there are not answers enough
        (True, 1.0, -math.inf, -math.inf, True),  # nothing goes on
    ],
)
def test_when_a_prompt_is_done(early, penalty, beam_logprob, worst, done):
    """After two tokens of ten."""
    search = beam.Search(1, 10, Beams(2, penalty, early), torch.zeros(1))
    search.length, search.logprobs = 2, torch.tensor([[beam_logprob, -60.0]])
    search.scores = torch.tensor([[-0.5, worst]])
    assert search.is_done().tolist() == [done]


# ---- ties, and what cannot be --------------------------------------------------------------------


def test_equal_scores_go_by_beam_and_token():
    model = small(vocab_size=5)
    model.output.weight.data.zero_()  # indifferent
    for prompts in ([[0]], [[0], [1, 2], [3]]):
        for hypotheses in beam_search(model, prompts, 2, (), Beams(4)):
            assert [h.tokens for h in hypotheses] == [[0, 0], [0, 1], [0, 2], [0, 3]]
            assert [h.score for h in hypotheses] == pytest.approx([-math.log(5)] * 4)


@pytest.mark.parametrize("n", [5, 64, 1000, 1029, 5000])
@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("kinds", [3, 1000, 10**6])
def test_the_largest_are_those_of_a_stable_sort(n, m, kinds):
    x = torch.randint(kinds, (200, n), generator=torch.Generator().manual_seed(0)).float()
    x[0] = -torch.inf
    x[1, n // 2 :] = torch.nan
    values, places = x.sort(dim=1, descending=True, stable=True)
    found = generate.largest(x, m)
    assert torch.equal(found[1], places[:, :m])
    assert torch.equal(found[0].nan_to_num(nan=7), values[:, :m].nan_to_num(nan=7))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"width": 0}, "width=0"),
        ({"length_penalty": math.nan}, "length_penalty=nan"),
        ({"early_stopping": "yes"}, "yes"),
    ],
)
def test_settings_that_cannot_be(choices, message):
    with pytest.raises(ValueError, match=message):
        Beams(**choices)


def test_what_cannot_be_asked_for():
    model = small()
    for prompts, new, message in (
        ([], 3, "at least one prompt"),
        ([[]], 3, "one token"),
        ([[1] * 10], 8, "max_seq_len"),
    ):
        with pytest.raises(ValueError, match=message):
            beam_search(model, prompts, new, STOP)


def test_what_is_not_a_number_is_an_error():
    model = small()
    model.output.weight.data[3] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        beam_search(model, PROMPTS, NEW, STOP)

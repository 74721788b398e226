"""Generation: with the cache as without, from the right distribution, with the right log-probabilities."""

import itertools
import math

import pytest
import torch
from tiny import GPT_FAMILIES, gpt, packed, sequences

from kernels import backend
from kernels.cpu import attention as cpu
from minillm.generate import GREEDY, Sampling, draw, generate, stream
from minillm.gpt import GPT
from minillm.inference import ready

STOP = 4
PROMPTS = [part.tolist() for part in sequences((3, 1, 5, 2, 4), high=STOP)]
CHOICES = {"default": {}, **GPT_FAMILIES}
every_choice = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
plain_and_ready = pytest.mark.parametrize("prepare", [lambda model: model, ready], ids=["plain", "ready"])


def small(seed=0, vocab_size=5, sharpness=1.0, **choices):
    """A model of few words that is neither sure nor indifferent, so that answers end at many lengths."""
    model = gpt(seed, vocab_size=vocab_size, **choices)
    model.final_norm.weight.data *= sharpness
    return model


@torch.no_grad()
def next_logprobs(model, tokens, temperature=1.0):
    """Of every token that may follow: one plain pass over the whole text, no cache."""
    hidden = model(*packed([torch.tensor(tokens)]))
    return torch.log_softmax(model.logits(hidden[-1:])[0].double() / temperature, dim=-1)


def greedy_without_cache(model, prompt, max_new_tokens):
    answer = []
    while len(answer) < max_new_tokens and answer[-1:] != [STOP]:
        answer.append(int(next_logprobs(model, [*prompt, *answer]).argmax()))
    return answer


def assert_logprobs(model, prompt, sample, temperature, tolerance):
    for i, (token, logprob) in enumerate(zip(sample.tokens, sample.logprobs, strict=True)):
        truth = next_logprobs(model, [*prompt, *sample.tokens[:i]], temperature)[token]
        assert logprob == pytest.approx(float(truth), abs=tolerance)


# ---- cached = uncached ---------------------------------------------------------------------------


@every_choice
@plain_and_ready
@pytest.mark.parametrize("impl", ["torch", "eager"])
def test_greedy_is_greedy_without_cache(choices, prepare, impl):
    backend.set_default(impl)
    lengths = set()
    for seed in range(4):
        model = small(seed, **choices)
        samples = generate(prepare(model), PROMPTS, 8, STOP, GREEDY)
        truth = [greedy_without_cache(model, prompt, 8) for prompt in PROMPTS]
        assert [sample.tokens for sample in samples] == truth
        lengths |= {len(answer) for answer in truth}
        for prompt, sample in zip(PROMPTS, samples, strict=True):
            assert_logprobs(model, prompt, sample, 1.0, 1e-5)
    assert len(lengths) > 2  # some answers ended early, so rows have left the batch


@every_choice
@plain_and_ready
@pytest.mark.parametrize(
    ("dtype", "tolerance", "many"),
    [(torch.float64, 1e-10, 0), (torch.float32, 2e-5, 0), (torch.float32, 2e-5, math.inf)],
    ids=["float64", "float32, sums of rows", "float32, SDPA"],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logprobs_are_those_of_a_full_pass(choices, prepare, dtype, tolerance, many, temperature, monkeypatch):
    monkeypatch.setattr(cpu, "HAS_FAST_SUMS", True)
    monkeypatch.setitem(cpu.MANY, torch.float32, many)
    monkeypatch.setattr(cpu, "MANY_SHARED", many)
    torch.manual_seed(0)
    model = small(**choices).to(dtype)
    samples = generate(prepare(model), PROMPTS, 8, STOP, Sampling(temperature), samples_per_prompt=6)
    assert len(samples) == 6 * len(PROMPTS)
    lengths = {len(sample.tokens) for sample in samples}
    assert min(lengths) < 4 < max(lengths)
    for i, sample in enumerate(samples):
        assert STOP not in sample.tokens[:-1]
        assert len(sample.tokens) == 8 or sample.tokens[-1] == STOP
        assert_logprobs(model, PROMPTS[i // 6], sample, temperature, tolerance)


def test_samples_of_one_prompt_lie_in_a_row():
    model = small()
    together = generate(model, PROMPTS, 8, STOP, GREEDY, samples_per_prompt=3)
    alone = generate(model, PROMPTS, 8, STOP, GREEDY)
    assert [s.tokens for s in together] == [s.tokens for s in alone for _ in range(3)]


def test_a_prompt_is_answered_the_same_in_any_company():
    model = small()
    for prompt, sample in zip(PROMPTS, generate(model, PROMPTS, 8, STOP, GREEDY), strict=True):
        assert generate(model, [prompt], 8, STOP, GREEDY)[0].tokens == sample.tokens


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_long_answers_are_cut(limit):
    torch.manual_seed(0)
    full = generate(small(), PROMPTS, 8, STOP, GREEDY)
    cut = generate(small(), PROMPTS, limit, STOP, GREEDY)
    assert [s.tokens for s in cut] == [s.tokens[:limit] for s in full]


def test_all_may_finish_at_once():
    model = small()
    model.output.weight.data.zero_()  # indifferent, so that the first token is taken
    samples = generate(model, PROMPTS, 8, 0, GREEDY)
    assert [s.tokens for s in samples] == [[0]] * len(PROMPTS)
    assert all(s.logprobs == [pytest.approx(-math.log(5))] for s in samples)


@plain_and_ready
def test_bfloat16_draws_from_the_model_that_computes_in_bfloat16(prepare):
    torch.manual_seed(0)
    model = small().float()
    model.compute_dtype = torch.bfloat16
    for prompt, sample in zip(PROMPTS, generate(prepare(model), PROMPTS, 8, STOP), strict=True):
        assert_logprobs(model, prompt, sample, 1.0, 0.1)
    assert model.tokens.weight.dtype == torch.float32


@plain_and_ready
def test_generation_leaves_the_model_alone(prepare):
    model = small()
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    generate(prepare(model), PROMPTS, 4, STOP, samples_per_prompt=2)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None and p.requires_grad and not p.is_inference() for p in model.parameters())


# ---- the distribution ----------------------------------------------------------------------------


def assert_drawn_from(counts, probabilities):
    """Pearson's chi-square, five standard deviations wide; rare outcomes are put together."""
    n = sum(counts.values())
    assert counts.keys() <= probabilities.keys()
    rare = {key for key, p in probabilities.items() if n * p < 5}
    cells = [(counts.get(key, 0), n * p) for key, p in probabilities.items() if key not in rare]
    cells.append((sum(counts.get(key, 0) for key in rare), n * sum(probabilities[key] for key in rare)))
    chi2 = sum((seen - due) ** 2 / due for seen, due in cells if due > 0)
    df = len(cells) - 1
    assert df > 5
    assert chi2 < df + 5 * math.sqrt(2 * df)


def count(items):
    return {key: len(list(same)) for key, same in itertools.groupby(sorted(items))}


def all_answers(model, prompt, stop, limit, temperature):
    """Every possible answer and its probability."""
    vocab, found = model.config.vocab_size, {}
    for length in range(1, limit + 1):
        for answer in itertools.product(range(vocab), repeat=length):
            if stop in answer[:-1] or (length < limit and answer[-1] != stop):
                continue
            parts = [next_logprobs(model, [*prompt, *answer[:i]], temperature)[t] for i, t in enumerate(answer)]
            found[answer] = math.exp(sum(parts))
    assert sum(found.values()) == pytest.approx(1)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.8])
def test_answers_follow_the_distribution_of_all_answers(temperature):
    torch.manual_seed(0)
    model, prompts = small(vocab_size=3, sharpness=0.3), [[0, 1], [1]]
    samples = generate(model, prompts, 3, 2, Sampling(temperature), samples_per_prompt=4000)
    for i, prompt in enumerate(prompts):
        counts = count(tuple(s.tokens) for s in samples[4000 * i : 4000 * (i + 1)])
        assert_drawn_from(counts, all_answers(model, prompt, 2, 3, temperature))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature):
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, -0.5])
    tokens, logprobs = draw(logits.expand(20_000, -1), Sampling(temperature))
    truth = torch.log_softmax(logits / temperature, dim=-1)
    torch.testing.assert_close(logprobs, truth[tokens])
    assert_drawn_from(count(tokens.tolist()), dict(enumerate(truth.double().softmax(0).tolist())))


def test_an_impossible_token_is_never_drawn():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, -torch.inf, 1.0]).expand(1000, -1)
    for temperature in (0.0, 1.0):
        assert 1 not in draw(logits, Sampling(temperature))[0]


def test_a_generator_repeats_itself_and_leaves_the_global_one_alone():
    model = small(sharpness=0.3)
    state = torch.get_rng_state()
    first, same, other = (
        [s.tokens for s in generate(model, PROMPTS, 8, STOP, generator=torch.Generator().manual_seed(seed))]
        for seed in (7, 7, 8)
    )
    assert first == same != other
    assert torch.equal(torch.get_rng_state(), state)


# ---- what cannot be answered ---------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_nothing_cannot_be_answered(prompts):
    with pytest.raises(ValueError, match="prompt"):
        generate(small(), prompts, 4, STOP)


def test_prompt_and_answer_must_fit_the_model():
    model = small()
    model.output.weight.data.zero_()  # always token 0, never the stop token
    assert len(generate(model, [[1] * 10], 6, STOP, GREEDY)[0].tokens) == 6
    with pytest.raises(ValueError, match="max_seq_len=16"):
        generate(model, [[1] * 10], 8, STOP, GREEDY)


# ---- stops, streams, penalties -------------------------------------------------------------------


def test_any_of_several_tokens_stops():
    model = small()
    free = generate(model, PROMPTS, 8, sampling=GREEDY)
    assert all(len(sample.tokens) == 8 for sample in free)
    for stop in ((0, 2), {1, 3, 4}):
        for sample, cut in zip(free, generate(model, PROMPTS, 8, stop, GREEDY), strict=True):
            first = next((i for i, token in enumerate(sample.tokens) if token in stop), 7)
            assert cut.tokens == sample.tokens[: first + 1]


def test_the_caller_may_end_an_answer():
    """`is_done` sees every token of an answer once, in order, and none after it has said yes."""
    model, heard = small(), {}

    def is_done(token):
        heard.setdefault(token.answer, []).append(token.id)
        return len(heard[token.answer]) == token.answer + 1

    samples = generate(model, PROMPTS, 8, sampling=GREEDY, is_done=is_done)
    assert [len(sample.tokens) for sample in samples] == [1, 2, 3, 4, 5]
    assert [heard[i] for i in range(len(PROMPTS))] == [sample.tokens for sample in samples]


def test_a_stream_says_the_same_as_it_goes():
    model = small()
    samples = generate(model, PROMPTS, 8, STOP, GREEDY)
    said = list(stream(model, PROMPTS, 8, STOP, GREEDY))
    for i, sample in enumerate(samples):
        assert [token.id for token in said if token.answer == i] == sample.tokens
        assert [token.logprob for token in said if token.answer == i] == sample.logprobs
    first_steps = [token.answer for token in said[: len(PROMPTS)]]
    assert first_steps == list(range(len(PROMPTS)))


def test_small_steps_take_one_thread_and_the_caller_does_not_notice(monkeypatch):
    before, model = torch.get_num_threads(), small()
    torch.set_num_threads(3)
    inside = []
    forward = GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *args: inside.append(torch.get_num_threads()) or forward(*args))
    try:
        for shared, expected in ((1e9, [3, 1, 1, 1]), (0, [3, 3, 3, 3])):  # the prompt is read by all
            monkeypatch.setattr("minillm.generate.WORTH_THREADS", shared)
            inside.clear()
            outside = [torch.get_num_threads() for _ in stream(model, [[1]], 4)]
            assert (inside, outside) == (expected, [3] * 4)
        monkeypatch.setattr("minillm.generate.WORTH_THREADS", 1e9)
        begun = stream(model, [[1]], 4)
        next(begun)
        monkeypatch.setattr(GPT, "logits", None)
        with pytest.raises(TypeError):
            next(begun)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_stream_may_be_left():
    model = small()
    begun = stream(model, PROMPTS, 8, sampling=GREEDY)
    next(begun)
    begun.close()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_repetition_is_penalised_over_prompt_and_answer():
    """Against the definition, recomputed over the whole text for every token."""
    model, penalty = small(sharpness=0.3), 1.5
    for prompt, sample in zip(
        PROMPTS, generate(model, PROMPTS, 8, STOP, Sampling(0, repetition_penalty=penalty)), strict=True
    ):
        text = list(prompt)
        for token, logprob in zip(sample.tokens, sample.logprobs, strict=True):
            with torch.no_grad():
                scores = model.logits(model(*packed([torch.tensor(text)]))[-1:])[0]
            for seen in set(text):
                scores[seen] = scores[seen] / penalty if scores[seen] > 0 else scores[seen] * penalty
            assert token == int(scores.argmax())
            assert logprob == pytest.approx(float(scores.log_softmax(-1)[token]), abs=1e-9)
            text.append(token)


def test_penalties_stay_with_their_answers_when_others_leave():
    model, prompts = small(sharpness=0.3), [[0], [1], [2], [3]]
    options = {"sampling": Sampling(0, repetition_penalty=4.0)}
    together = generate(model, prompts, 8, **options, is_done=lambda token: token.answer in (0, 2))
    assert [len(sample.tokens) for sample in together] == [1, 8, 1, 8]
    for number in (1, 3):
        assert together[number].tokens == generate(model, [prompts[number]], 8, **options)[0].tokens

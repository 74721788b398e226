"""Prompts in, answers out: pieces of text, where they end, and what they were drawn from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_folders import write_gpt

from kernels import Packing
from minillm.commands.text_generation import StopStringFilter, TextGenerator
from minillm.errors import UserError
from minillm.generate import GREEDY, Sampling
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.tokenizer import Stream

PROMPTS = ["the sky", "x", "STOP the 😀 world"]


@pytest.fixture(scope="module")
def text_generator(tmp_path_factory):
    folder = write_gpt(tmp_path_factory.mktemp("models") / "gpt")
    return TextGenerator(checkpoint.load(folder), load_tokenizer(folder))


@pytest.fixture(scope="module")
def prompts(text_generator):
    return [text_generator.encode(prompt) for prompt in PROMPTS]


def until_a_stop(text, stop):
    """The text before whichever string is complete first, found letter by letter."""
    for end in range(1, len(text) + 1):
        if found := [each for each in stop if text[:end].endswith(each)]:
            return text[: end - max(map(len, found))]
    return text


def shown(chunks, stop):
    """What is shown of tokens that stand for these bytes, piece by piece."""
    text = StopStringFilter(Stream(lambda ids: b"".join(chunks[i] for i in ids).decode(errors="replace")), stop)
    pieces = []
    for i in range(len(chunks)):
        pieces.append(text.push(i))
        if text.is_stopped:
            break
    return [*pieces, text.close()]


LETTERS = st.text("abé😀", max_size=12)


@given(LETTERS, st.lists(st.text("abé😀", min_size=1, max_size=3), max_size=3), st.data())
def test_stop_strings_however_the_text_is_cut(text, stop, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=len(raw))))
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    pieces = shown(chunks, stop)
    assert "".join(pieces) == until_a_stop(text, stop)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("chunks", "stop", "pieces"),
    [
        ([b"one STOP two"], ["STOP"], ["one ", ""]),  # within one token
        ([b"a S", b"TO", b"P b"], ["STOP"], ["a ", "", "", ""]),  # over three
        ([b"a S", b"TO", b"NE"], ["STOP"], ["a ", "", "STONE", ""]),  # only begun
        ([b"a ST"], ["STOP"], ["a ", "ST"]),  # still begun at the end
        ([b"a\xf0\x9f", b"\x98", b"\x80b"], ["😀"], ["", "", "a", ""]),  # of one character in three tokens
        ([b"abc"], ["abc", "b"], ["a", ""]),  # the one that is complete first
    ],
)
def test_nothing_of_a_stop_string_is_shown(chunks, stop, pieces):
    assert shown(chunks, stop) == pieces


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0), Sampling(0.8, top_k=20)])
def test_the_pieces_are_the_text(text_generator, prompts, sampling):
    pieces = ["", "", ""]
    numbers = {}
    for answer, piece in text_generator.stream(
        prompts, 30, sampling=sampling, generator=torch.Generator().manual_seed(1)
    ):
        pieces[numbers.setdefault(id(answer), len(numbers))] += piece
    answers = text_generator.answers(prompts, 30, sampling=sampling, generator=torch.Generator().manual_seed(1))
    assert pieces == [answer.text for answer in answers]
    assert pieces == [text_generator.tokenizer.decode(answer.tokens) for answer in answers]


def test_the_seed_decides(text_generator, prompts):
    def tokens(seed):
        generator = torch.Generator().manual_seed(seed)
        return [answer.tokens for answer in text_generator.answers(prompts, 20, generator=generator)]

    assert tokens(0) == tokens(0)
    assert tokens(0) != tokens(1)


def test_together_as_alone(text_generator, prompts):
    together = text_generator.answers(prompts, 20, sampling=GREEDY)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = text_generator.answers([prompt], 20, sampling=GREEDY)
        assert answer.tokens == alone.tokens
        assert answer.text == alone.text
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_full_pass(text_generator, prompts, temperature):
    answers = text_generator.answers(prompts, 12, sampling=Sampling(temperature))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([*prompt, *answer.tokens])
        with torch.inference_mode():
            logits = text_generator.model.logits(text_generator.model(tokens, Packing.from_lengths([len(tokens)])))
        logprobs = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        truth = logprobs[torch.arange(len(answer.tokens)), answer.tokens]
        torch.testing.assert_close(torch.tensor(answer.logprobs), truth, rtol=0, atol=1e-4)


def test_an_answer_ends_before_a_string(text_generator, prompts):
    (whole,) = text_generator.answers(prompts[:1], 20, sampling=GREEDY)
    assert whole.ended_by == "length"
    stop = whole.text[5:8]
    (short,) = text_generator.answers(prompts[:1], 20, [stop], GREEDY)
    assert short.ended_by == "string"
    assert short.text == whole.text[: whole.text.index(stop)]
    assert short.tokens == whole.tokens[: len(short.tokens)]


def test_an_answer_ends_with_any_token_that_ends_texts(text_generator, prompts, monkeypatch):
    (whole,) = text_generator.answers(prompts[:1], 20, sampling=GREEDY)
    monkeypatch.setattr(text_generator.tokenizer, "stops", frozenset([text_generator.tokenizer.end, whole.tokens[6]]))
    (short,) = text_generator.answers(prompts[:1], 20, sampling=GREEDY)
    first = whole.tokens.index(whole.tokens[6])
    assert short.ended_by == "token"
    assert short.tokens == whole.tokens[: first + 1]
    assert short.text == text_generator.tokenizer.decode(whole.tokens[:first])


def test_room(text_generator, prompts):
    for prompt in prompts:
        fits = 64 - len(prompt) + 1  # the last token is not read
        assert text_generator.room(prompt) == fits
        assert text_generator.room(prompt, 3) == 3
        with pytest.raises(UserError, match=f"ask for at most {fits}"):
            text_generator.room(prompt, fits + 1)
    with pytest.raises(UserError, match="has 65 tokens, but this model reads at most 64"):
        text_generator.room([1] * 65)
    with pytest.raises(UserError, match="the prompt is empty"):
        text_generator.room([])


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0, repetition_penalty=1.3)])
def test_a_long_prompt_leaves_short_ones_their_room(text_generator, sampling):
    prompts = [[5], [7] * 62, [9] * 40, [3] * 64, []]
    rooms = [64, 3, 25, 1, 0]
    together = text_generator.answers(prompts, rooms, sampling=sampling)
    assert [len(answer.tokens) for answer in together] == rooms
    assert [answer.ended_by for answer in together] == ["length"] * 4 + [None]
    for prompt, room, answer in zip(prompts[:-1], rooms, together, strict=False):
        (alone,) = text_generator.answers([prompt], room, sampling=sampling)
        assert (answer.tokens, answer.text) == (alone.tokens, alone.text)
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_a_vocabulary_larger_than_the_model(text_generator, monkeypatch):
    monkeypatch.setattr(text_generator.tokenizer, "wrap", lambda text, limit, control: ([1000], [0]))
    with pytest.raises(UserError, match="token 1000, but the model only has 263"):
        text_generator.encode("x")

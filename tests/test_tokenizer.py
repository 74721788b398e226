"""Symbols to ids and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.tasks.pronounce import LETTERS, PATTERN, PHONES
from minillm.tokenizer import END, SymbolTokenizer

TOKENIZER = SymbolTokenizer("words", PATTERN, [*LETTERS, ":", *(f" {phone}" for phone in PHONES)])


@given(st.text(LETTERS + ":"), st.lists(st.sampled_from(PHONES)))
def test_round_trip(word, phones):
    text = word + "".join(f" {phone}" for phone in phones)
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(word) + len(phones)
    assert max(ids, default=0) < TOKENIZER.end
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([*ids, TOKENIZER.end, 3, TOKENIZER.end]) == text


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_all_ids_have_a_text(ids):
    before_end = ids[: ids.index(TOKENIZER.end)] if TOKENIZER.end in ids else ids
    assert TOKENIZER.decode(ids) == "".join(TOKENIZER.symbols[i] for i in before_end)


def test_each_symbol_is_one_token_in_the_order_given():
    assert [TOKENIZER.encode(symbol) for symbol in TOKENIZER.symbols] == [[i] for i in range(len(TOKENIZER.symbols))]
    assert TOKENIZER.end == len(TOKENIZER.symbols) == TOKENIZER.vocab_size - 1


def test_symbols_beyond_ascii():
    tokenizer = SymbolTokenizer("signs", PATTERN, ["ß", "é", "字", "🦉", " œ̃", " 🦉"])
    text = "字🦉é œ̃ 🦉"
    assert tokenizer.encode(text) == [2, 3, 1, 4, 5]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["naïve", "a b", "a XX", "A", "\n", " ", END, "a\U0001f989"])
def test_strangers_are_named(text):
    with pytest.raises(ValueError, match="not in the vocabulary 'words'") as caught:
        TOKENIZER.encode(text)
    assert repr(text) in str(caught.value)


def test_save_and_load(tmp_path):
    tokenizer = SymbolTokenizer("signs", PATTERN, ["ß", "字", '"', "\\", " œ̃"])
    tokenizer.save(tmp_path)
    loaded = SymbolTokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.name, loaded.pattern, loaded.symbols) == (tokenizer.name, tokenizer.pattern, tokenizer.symbols)
    assert loaded.encode('ß"\\ œ̃') == tokenizer.encode('ß"\\ œ̃') == [0, 2, 3, 4]
    assert loaded.end == tokenizer.end

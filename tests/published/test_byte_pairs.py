"""A vocabulary of one's own, in which every text can be written; and what stands around a prompt, kept with it."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import ROOT, environment
from test_subwords import library_bpe, small_gpt2

from minillm.errors import UserError
from minillm.published.byte_pairs import learn_byte_pairs, set_prompt_format
from minillm.published.vocabularies import load_tokenizer

pytest.importorskip("tokenizers")
TEXTS = ["Ein kleiner Hund läuft.", "A small dog is running.", "14 birds and 21 more", "Zwei Hunde laufen 🦉"] * 10
LEARN = f"""from minillm.published.byte_pairs import learn_byte_pairs
print(learn_byte_pairs({TEXTS}, 300, ["<|answer|>"]).backend.to_str())"""


@pytest.fixture(scope="module")
def own():
    return learn_byte_pairs(TEXTS, 400, ["<|answer|>"])


@settings(deadline=None)
@given(st.text())
def test_every_text_is_found_again(own, text):
    ids = own.encode(text)
    assert own.decode(ids) == text
    assert not own.stops & set(ids)
    assert own.wrap(text)[0] == ids  # nothing stands around it yet


def test_what_recurs_becomes_one_token(own):
    assert len(own.encode(" Hund")) == len(own.encode(" running")) == 1
    assert len(own.encode(" Katze")) > 1
    for number in ("14", " 2179"):
        assert len(own.encode(number)) == len(number.strip())  # a digit a token
    assert own.vocab_size <= 400
    assert own.control == {"<|end|>": own.end, "<|answer|>": own.end + 1}
    assert own.decode(own.encode("<|answer|>")) == "<|answer|>"  # in a text it is text


def test_what_is_rare_is_not_learned():
    few, many = (learn_byte_pairs([*TEXTS, *["Katze"] * count], 2000) for count in (9, 10))
    assert (len(few.encode("Katze")) > 1, len(many.encode("Katze"))) == (True, 1)


def test_the_same_texts_make_the_same_vocabulary():
    """In whichever process: Python's hashes and the library's threads differ."""
    made = {
        subprocess.run(
            [sys.executable, "-c", LEARN],
            cwd=ROOT,
            env=environment() | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(made) == 1
    assert len(made.pop()) > 1000


# ---- what stands around a prompt -----------------------------------------------------------------


def test_a_token_behind_a_prompt_is_kept_with_the_vocabulary(own, tmp_path):
    set_prompt_format(own, "{prompt}<|answer|>")
    text = "A small dog <|answer|>"
    ids = own.prompt(text)
    assert ids == [*own.encode(text), own.control["<|answer|>"]]
    own.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.prompt(text) == ids
    assert again.config["prompt_format"] == "{prompt}<|answer|>"
    assert again.encode(text) == own.encode(text)  # an answer has nothing around it
    assert again.wrap(text, limit=3)[0] == [*own.encode(text)[:2], ids[-1]]  # what is cut is the text
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("A small dog").input_ids == again.prompt("A small dog")


@pytest.mark.parametrize("begins", [False, True])
def test_words_around_a_prompt(tmp_path, begins):
    """Behind the token with which a vocabulary lets texts begin, once, however often it is set."""
    library = pytest.importorskip("tokenizers")
    backend = library_bpe(small_gpt2(tmp_path))
    backend.add_special_tokens(["<s>", "</s>"])
    if begins:
        backend.post_processor = library.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    first = [tokenizer.begin] if begins else []
    for form, before, behind in (
        ("{prompt}\nSay:\n", [], tokenizer.encode("\nSay:\n")),
        ("{prompt}", [], []),
        ("Say {prompt} now</s>", tokenizer.encode("Say "), [*tokenizer.encode(" now"), tokenizer.end]),
        ("<s>{prompt}", [] if begins else [tokenizer.begin], []),
    ):
        set_prompt_format(tokenizer, form)
        assert tokenizer.prompt("hello") == [*first, *before, *tokenizer.encode("hello"), *behind], form


@pytest.mark.parametrize("form", ["", "prompt", "{prompt} {prompt}"])
def test_a_format_without_a_prompt(own, form):
    with pytest.raises(UserError, match=r"must have \{prompt\} in it, once"):
        set_prompt_format(own, form)

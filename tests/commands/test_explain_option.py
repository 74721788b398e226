"""`--explain`: which words a share is of, in the terminal, as JSON, and as a page."""

import json
import re

import numpy as np
import pytest
from model_folders import write_bert

import minillm.__main__
from minillm.commands.explanations import coloured, style_of
from minillm.errors import UserError
from minillm.explain import Explanation, integrated_gradients, logit, of_class, of_tags, reading_of
from minillm.heads import MultiLabelClassifier, SequenceClassifier, TokenClassifier
from minillm.pages.explanation_page import explanation_page
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.tagging import Tagged

# ---- words -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("models")
    write_bert(folder / "judge", SequenceClassifier, ["bad", "good"])
    write_bert(folder / "several", MultiLabelClassifier, ["bad", "good"])
    write_bert(folder / "slots", TokenClassifier, ["O", "B-x", "I-x"], ["ask", "tell"])
    write_bert(folder / "speech", TokenClassifier, ["noun", "verb"])
    return folder


def opened(folder):
    return checkpoint.load(folder).eval(), load_tokenizer(folder)


def test_words_and_the_tokens_that_they_are_read_as(folder):
    model, tokenizer = opened(folder / "judge")
    reading = reading_of(model, tokenizer, ("The sky's good, film",))
    assert [reading.text[a:b] for a, b in reading.spans] == ["The", "sky's", "good", ",", "film"]
    # [CLS] the sky ' s good , film [SEP], of which the vocabulary lacks the signs and s
    assert reading.word_of.tolist() == [-1, 0, 1, 1, 1, 2, 3, 4, -1]
    pair = reading_of(model, tokenizer, ("good film", "bad film"))
    assert pair.text == "good film / bad film"
    assert [pair.text[a:b] for a, b in pair.spans] == ["good", "film", "bad", "film"]
    assert pair.word_of.tolist() == [-1, 0, 1, -1, 2, 3, -1]
    assert list(pair.document.segments) == [0, 0, 0, 0, 1, 1, 1]
    long = reading_of(model, tokenizer, ("good film " * 20, "bad film " * 20))
    assert len(long.word_of) == 16
    assert long.word_of.tolist() == [-1, *range(6), -1, *range(40, 47), -1]


def test_nothing_to_explain(folder):
    with pytest.raises(UserError, match="there is nothing to explain"):
        reading_of(*opened(folder / "judge"), (" ",))


def test_the_words_of_an_explanation_are_those_of_the_model(folder):
    """A word's share is the sum over its tokens; all words' is what they make of the output."""
    model, tokenizer = opened(folder / "judge")
    found = of_class(model, tokenizer, ("the sky's good",), 1)
    assert found.what == "good"
    assert found.words == ["the", "sky's", "good"]
    assert sum(found.shares) == pytest.approx(found.value - found.start, abs=0.02)
    assert max(map(abs, found.strengths())) == 1
    reading = reading_of(model, tokenizer, ("the sky's good",))
    shares, _, _ = integrated_gradients(model, reading.document, reading.word_of >= 0, logit(1))
    assert found.shares[1] == pytest.approx(shares[2:5].sum())


def test_tags_are_explained_where_they_were_decided(folder):
    """Also far behind the first window, and of the whole."""
    model, tokenizer = opened(folder / "slots")
    text = " ".join(["the", "sky"] * 12)
    spans = [match.span() for match in re.finditer(r"\w+", text)]
    tags = ["O"] * 20 + ["B-x", "I-x", "O", "B-x"]
    found = of_tags(model, tokenizer, text, spans, Tagged(tags, [1.0] * 24, "tell", 0.9))
    assert [each.what for each in found] == ["the sky (x)", "sky (x)", "tell"]
    first = np.flatnonzero(found[0].shares)
    assert first[0] > 5  # not in the first window
    assert first[-1] == 23
    assert np.flatnonzero(found[2].shares)[0] == 0
    speech = opened(folder / "speech")
    words = of_tags(*speech, "the sky", [(0, 3), (4, 7)], Tagged(["noun", "verb"], [1.0, 1.0], None, None))
    assert [each.what for each in words] == ["the (noun)", "sky (verb)"]


# ---- commands --------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["minillm", *map(str, words)])
        minillm.__main__.main()
        return capsys.readouterr().out

    return run


def test_commands(run, folder, tmp_path):
    page = tmp_path / "page.html"
    text = "the sky is <b>good</b>"
    out = run("classify", folder / "judge", text, "--explain", "--html", page)
    (line,) = run("classify", folder / "judge", text, "--explain", "--json").splitlines()
    (found,) = json.loads(line)["explanations"]
    assert found["of"] == json.loads(line)["class"]
    assert [each["word"] for each in found["words"]] == ["the", "sky", "is", "<", "b", ">", "good", "<", "/", "b", ">"]
    assert f"{found['without_words']:+.2f} → {found['output']:+.2f}" in out
    html = page.read_text()
    assert "<b>" not in html
    assert html.count('class="for"') + html.count('class="against"') == 11
    for name in ("slots", "speech"):
        line = json.loads(run("tag", folder / name, "the sky is good", "--explain", "--json"))
        assert len(line["explanations"]) == (4 if name == "speech" else len(line["entities"]) + 1)
    (line,) = run("classify", folder / "several", "good", "--explain", "--json", "--threshold", "0").splitlines()
    assert [each["of"] for each in json.loads(line)["explanations"]] == json.loads(line)["labels"]


def test_a_line_without_words_is_said_and_left_out(run, folder, tmp_path, capsys):
    """Not all of a file for one of its lines; of one text alone there is nothing to do."""
    (tmp_path / "texts.txt").write_text("good film\n \nbad film\n")
    lines = run("classify", folder / "judge", "--file", tmp_path / "texts.txt", "--explain", "--json").splitlines()
    assert [len(json.loads(line)["explanations"]) for line in lines] == [1, 0, 1]
    with pytest.raises(UserError, match="there is nothing to explain"):
        run("classify", folder / "judge", " ", "--explain")


def test_a_threshold_for_one_class(run, folder):
    with pytest.raises(UserError, match="--threshold is for models of several labels"):
        run("classify", folder / "judge", "good", "--threshold", "0.9")


@pytest.mark.parametrize("command", ["classify", "tag"])
def test_options_that_do_not_go_together(run, folder, command, tmp_path):
    with pytest.raises(UserError, match="--html FILE is a page of what --explain finds"):
        run(command, folder / "judge", "good", "--html", tmp_path / "page.html")
    with pytest.raises(UserError, match="leave --precision out"):
        run(command, folder / "judge", "good", "--explain", "--precision", "bf16")


def test_colours_are_as_strong_as_the_words():
    found = Explanation("good", "a fine\x1b film", [(0, 1), (2, 6), (8, 12)], [0.01, 2.0, -1.0], 1.5, 0.49)
    text = coloured(found)
    assert text.plain == "  good +0.49 → +1.50  a fine film  (+2.00 fine, -1.00 film, +0.01 a)"
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles["fine"] == "black on rgb(70,150,255)"
    assert styles["film"] == "black on rgb(255,182,172)"
    assert style_of(0.01) == ""


def test_the_page_is_one_file_that_asks_for_nothing():
    found = Explanation("good", "fine film", [(0, 4), (5, 9)], [2.0, -1.0], 1.5, 0.5)
    page = explanation_page("runs/x", [found, found._replace(what="bad"), found._replace(text="some film")])
    assert page.count("<section>") == 2
    assert "http://" not in page
    assert "https://" not in page
    assert '<span class="against" style="--share: 0.500" title="-1.000">film</span>' in page

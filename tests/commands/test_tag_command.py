"""python -m minillm tag: words and where they stand, entities in colour and as JSON."""

import io
import json
import re
import sys

import pytest
from model_folders import write_bert

import minillm.__main__
from minillm import cli
from minillm.commands.tag import coloured, colours_of, described, words_of
from minillm.heads import TokenClassifier
from minillm.tagging import Tagged

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_bert(folder / "slots", TokenClassifier, ["O", "B-x", "I-x", "B-y"], ["ask", "tell"])
    write_bert(folder / "speech", TokenClassifier, ["NOUN", "VERB"])
    (folder / "texts.txt").write_text("the sky\n\nthe film, good\n")
    return folder


@pytest.fixture
def run(here, capsys, monkeypatch):
    def call(*argv, stdin=""):
        """→ exit code, output, notes"""
        monkeypatch.setattr(sys, "argv", ["minillm", "tag", *(str(word).replace("HERE", str(here)) for word in argv)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            cli.run(minillm.__main__.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def texts_of(words):
    return [word.text for word in words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('Hello, "world" (a test).', ["Hello", ",", '"', "world", '"', "(", "a", "test", ")", "."]),
        ("don't say: no...", ["don't", "say", ":", "no", "..."]),
        ("in the U.S. at 3 p.m.", ["in", "the", "U.S.", "at", "3", "p.m."]),
        ("see http://a.b/c?d=e, @bob #x!", ["see", "http://a.b/c?d=e", ",", "@bob", "#x", "!"]),
        ("  what?!  ", ["what", "?", "!"]),
        ("a , b . c", ["a", ",", "b", ".", "c"]),
        ("(U.S.)", ["(", "U.S.", ")"]),
        ("¿Qué? 3.5% 東京", ["¿", "Qué", "?", "3.5%", "東京"]),
        ("...", ["..."]),
        (" ", []),
    ],
)
def test_words_end_at_blanks_and_signs(text, words):
    found = words_of(text, "signs")
    assert texts_of(found) == words
    assert all(text[word.start : word.stop] == word.text for word in found)
    assert texts_of(words_of(text, "blanks")) == text.split()
    assert texts_of(words_of(" ".join(words), "signs")) == words  # what is cut already stays as it is


def test_json_says_where_everything_is(run):
    code, out, _ = run("HERE/slots", "the sky, the film", "--file", "HERE/texts.txt", "--json")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["text"] for answer in answers] == ["the sky, the film", "the sky", "", "the film, good"]
    assert answers[2]["entities"] == answers[2]["tags"] == []
    for answer in answers:
        assert len(answer["words"]) == len(answer["tags"])
        for entity in answer["entities"]:
            assert answer["text"][entity["start"] : entity["end"]] == entity["text"]
            assert 0 < entity["score"] <= 1
        if answer["text"]:
            assert answer["intent"] in ("ask", "tell")
            assert 0.5 <= answer["intent_probability"] <= 1
    alone = json.loads(run("HERE/slots", "the sky", "--json")[1])  # whatever else is read, up to rounding
    assert (answers[1]["tags"], answers[1]["intent"]) == (alone["tags"], alone["intent"])
    assert answers[1]["intent_probability"] == pytest.approx(alone["intent_probability"])
    _, out, _ = run("HERE/speech", "the sky", "--json")
    assert json.loads(out).keys() == {"text", "words", "tags", "scores"}


def test_entities_are_marked_in_the_text():
    line = "play blue sky, [now]"
    words = words_of(line, "signs")
    answer = Tagged(["O", "B-x", "I-x", "O", "O", "B-y", "O"], [0.5, 0.9, 0.7, 1.0, 1.0, 0.25, 1.0], "ask", 0.987)
    fields = described(line, words, answer, marks_entities=True)
    assert fields["entities"] == [
        {"type": "x", "text": "blue sky", "start": 5, "end": 13, "score": pytest.approx(0.8)},
        {"type": "y", "text": "now", "start": 16, "end": 19, "score": 0.25},
    ]
    shown = coloured(line, fields, colours_of(["O", "B-x", "I-x", "B-y"]))
    assert shown.plain == "play [blue sky] x, [[now] y]  → ask 98.7%"
    assert len({str(span.style) for span in shown.spans}) > 2


def test_people_see_the_text_and_its_class(run):
    code, out, _ = run("HERE/slots", "the sky")
    assert code == 0
    assert re.fullmatch(r".*the.*sky.*→ (ask|tell) \d+\.\d%\n", out)
    _, out, _ = run("HERE/speech", "--split", "blanks", "the sky,")
    assert re.fullmatch(r"the/(NOUN|VERB) sky,/(NOUN|VERB)\n", out)


def test_a_mistake_is_one_sentence(run, here):
    code, out, err = run("HERE/slots")
    assert (code, out) == (2, "")
    assert "there is no text: give TEXT" in err
    write_bert(here / "judge", minillm.heads.SequenceClassifier, ["no", "yes"])
    code, _, err = run("HERE/judge", "the sky")
    assert code == 2
    assert "BertForSequenceClassification, but tag needs a tagger (…ForTokenClassification, or a run" in err

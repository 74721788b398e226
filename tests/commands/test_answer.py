"""`python -m minillm answer`: prompts in the words of the training, the answers those of the search."""

import io
import json
import sys

import pytest
from model_folders import write_gpt

import minillm.__main__
from minillm import cli
from minillm.beam import Beams, beam_search
from minillm.published import checkpoint
from minillm.published.byte_pairs import set_prompt_format
from minillm.published.vocabularies import load_tokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
EXACT = ("--precision", "fp32", "--max-new-tokens", 9)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A model with a chat template, one without, and one that remembers a prompt format beside its template."""
    folder = tmp_path_factory.mktemp("models")
    write_gpt(folder / "chat")
    write_gpt(folder / "plain", template=None)
    write_gpt(folder / "run")
    tokenizer = load_tokenizer(folder / "run")
    set_prompt_format(tokenizer, "Say: {prompt} Now:")
    tokenizer.save(folder / "run")
    (folder / "texts.txt").write_text("the sky\n\nthe film is good\n")
    return folder


@pytest.fixture
def run(here, capsys, monkeypatch):
    def call(*argv):
        """→ exit code, output, notes"""
        monkeypatch.setattr(sys, "argv", ["minillm", *(str(word).replace("HERE", str(here)) for word in argv)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code = 0
        try:
            cli.run(minillm.__main__.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def searched(folder, text, beams, new=9, before="", behind=""):
    """What the search finds for a text between others, each cut into tokens by itself."""
    model, tokenizer = checkpoint.load(folder), load_tokenizer(folder)
    prompt = [token for part in (before, text, behind) for token in tokenizer.encode(part)]
    ((best, *_),) = beam_search(model, [prompt], new, tokenizer.stops, beams)
    return tokenizer.decode(best.tokens)


@pytest.mark.parametrize(
    ("name", "around"),
    [("plain", ("", "")), ("chat", ("[user]", "\n[assistant]")), ("run", ("Say: ", " Now:"))],
)
@pytest.mark.parametrize(
    ("options", "beams"),
    [((), Beams(4)), (("--beams", 1), Beams(1)), (("--beam", 3, "--length-penalty", 0), Beams(3, 0.0))],
    ids=["default", "greedy", "given"],
)
def test_the_best_answer_in_the_words_of_the_training(here, run, name, around, options, beams):
    code, out, _ = run("answer", f"HERE/{name}", "the sky", *options, *EXACT)
    assert code == 0
    assert out == searched(here / name, "the sky", beams, 9, *around) + "\n"


def test_one_beam_is_greedy_generation(run):
    _, greedy, _ = run("generate", "HERE/plain", "--prompt", "the sky", "--temperature", 0, *EXACT)
    assert run("answer", "HERE/plain", "the sky", "--beams", 1, *EXACT)[1] == greedy


def test_prompts_of_a_file(here, run):
    code, out, _ = run("answer", "HERE/run", "good", "--file", "HERE/texts.txt", "--json", *EXACT)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in rows] == ["good", "the sky", "", "the film is good"]
    assert rows[2] == {"prompt": "", "text": "", "tokens": [], "ended_by": None}
    for row in rows[:2] + rows[3:]:
        assert row["text"] == searched(here / "run", row["prompt"], Beams(4), 9, "Say: ", " Now:")
        assert (len(row["tokens"]), row["ended_by"]) == (9, "length")
    _, plain, _ = run("answer", "HERE/run", "good", "--file", "HERE/texts.txt", *EXACT)
    assert plain.splitlines() == [row["text"] for row in rows]


def test_without_a_limit_an_answer_has_what_fits(here, run):
    """64 tokens are read, of which each prompt takes another number."""
    _, out, _ = run("answer", "HERE/plain", "good", "the", "--json", "--precision", "fp32")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [len(row["tokens"]) for row in rows] == [61, 64]
    for row, new in zip(rows, (61, 64), strict=True):
        assert row["text"] == searched(here / "plain", row["prompt"], Beams(4), new)


def test_what_is_too_long_is_named_and_the_others_are_answered(here, run):
    code, out, err = run("answer", "HERE/plain", "good", "x" * 70, "the", *EXACT)
    assert code != 0
    assert "prompt 2 was not answered: the prompt has 70 tokens, but this model reads at most 64" in err
    assert out.splitlines() == [
        searched(here / "plain", "good", Beams(4)),
        "",
        searched(here / "plain", "the", Beams(4)),
    ]


MISTAKES = {
    "no prompt": ((), "there is no text: give PROMPT"),
    "no beams": (("hi", "--beams", 0), "--beams 0 must be positive"),
    "too many": (("hi", "--beams", 10**6), "--beams 1000000 is too many"),
    "penalty": (("hi", "--length-penalty", 77), "--length-penalty 77.0 must be between"),
    "int8": (("hi", "--quantize", "int8", "--precision", "fp32"), "leave --precision fp32 out"),
    "room": (("hi", "--max-new-tokens", 100), "ask for at most"),
}


@pytest.mark.parametrize(("argv", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_a_sentence(run, argv, message):
    code, _, err = run("answer", "HERE/plain", *argv)
    assert code != 0
    assert message in err
    assert "Traceback" not in err

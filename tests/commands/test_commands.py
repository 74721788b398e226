"""`python -m minillm` as a user has it: what it prints, and how it refuses."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from model_folders import write_bert, write_gpt
from safetensors.torch import load_file, save_file
from scripts import ROOT, environment

import minillm.__main__
from minillm import cli
from minillm.commands import embed
from minillm.commands.common import as_json, print_text
from minillm.embedder import SentenceEmbedder
from minillm.heads import MaskedLM, SequenceClassifier, TokenClassifier

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_gpt(folder / "gpt")
    write_gpt(folder / "plain", template=None)
    write_gpt(folder / "long", max_seq_len=100_000)
    write_bert(folder / "masked", MaskedLM)
    write_bert(folder / "judge", SequenceClassifier, ["bad", "fair", "good"])
    write_bert(folder / "embedder", SentenceEmbedder)
    write_bert(folder / "tagger", TokenClassifier, ["noun", "verb"])
    for name in ("no-tokenizer", "torn", "pickled", "strange", "nan", "huge", "endless"):
        shutil.copytree(folder / "gpt", folder / name)
    for name, source in (("foreign", "embedder"), ("foreign-mask", "masked"), ("broken", "embedder")):
        shutil.copytree(folder / source, folder / name)
    for name in ("foreign", "foreign-mask"):
        words = (folder / name / "vocab.txt").read_text()
        (folder / name / "vocab.txt").write_text(words.replace("the\n", "a\n") + "the\n")
    for name, change in (
        ("broken", lambda _, weight: torch.full_like(weight, 1e38)),
        ("huge", lambda key, weight: weight * 1e20 if key in ("model.norm.weight", "lm_head.weight") else weight),
        ("nan", lambda _, weight: torch.full_like(weight, torch.nan)),
    ):
        file = folder / name / "model.safetensors"
        save_file({key: change(key, weight) for key, weight in load_file(file).items()}, file)
    shutil.copytree(folder / "embedder", folder / "routed")
    kinds = ("Transformer", "Pooling", "Router")
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": "1_Pooling"} for kind in kinds]
    (folder / "routed" / "modules.json").write_text(json.dumps(modules))
    (folder / "no-tokenizer" / "vocab.json").unlink()
    (folder / "endless" / "tokenizer_config.json").write_text('{"bos_token": null}')
    weights = folder / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    (folder / "strange" / "config.json").write_text('{"model_type": "mamba"}')
    (folder / "torn.gguf").write_bytes(b"GGUF\x03\0\0\0\1\0")
    (folder / "wrong.gguf").write_bytes(b"something else altogether")
    (folder / "texts.txt").write_text("the sky\nthe film\n")
    (folder / "blank.txt").write_text("\nthe sky\n\n  \nthe film\n\n")
    (folder / "masks.txt").write_text("the [MASK]\n\n[MASK] sky")
    return folder


@pytest.fixture
def run(here, capsys, monkeypatch):
    def call(*argv, stdin=""):
        """→ exit code, output, notes"""
        monkeypatch.setattr(sys, "argv", ["minillm", *(str(word).replace("HERE", str(here)) for word in argv)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            cli.run(minillm.__main__.main)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out.replace(str(here), "HERE"), err.replace(str(here), "HERE")

    return call


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_all_commands(run, argv):
    code, out, _ = run(*argv)
    assert code == 0
    assert all(f"python -m minillm {name} " in out for name in minillm.__main__.COMMANDS)


@pytest.mark.parametrize("name", ["generate", "chat", "answer", "embed", "classify", "tag", "fill"])
def test_help_shows_examples(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert out.startswith(f"usage: python -m minillm {name} ")
    assert out.count(f"python -m minillm {name} ") >= 3
    assert "MODEL  " in out


# ---- generate ------------------------------------------------------------------------------------

WARM = ("--temperature", 1, "--precision", "fp32")  # what "auto" finds depends on how busy the machine is
GREEDY = ("--temperature", 0, "--precision", "fp32", "--max-new-tokens", 12)


def test_generate(run):
    code, out, err = run("generate", "HERE/gpt", "--prompt", "the sky", *GREEDY)
    assert code == 0
    assert re.fullmatch(r"[A-Za-z]{12}\n", out)
    assert re.fullmatch(r"12 tokens in .* s, .* tokens/s.*\n", err)


def test_an_empty_prompt_is_the_beginning_of_a_text(run):
    code, out, _ = run("generate", "HERE/gpt", "--prompt", "", "--json", *GREEDY)
    (answer,) = lines(out)
    _, other, _ = run("generate", "HERE/gpt", "--prompt", "", "--prompt", "x", "--json", *GREEDY)
    assert code == 0
    assert len(answer["tokens"]) == 12
    assert lines(other)[0]["tokens"] == answer["tokens"]
    assert run("generate", "HERE/gpt", "--prompt", "-", *GREEDY)[1].strip() == answer["text"]


def test_generate_many_as_json(run):
    _, alone, _ = run("generate", "HERE/gpt", "--prompt", "the film", *GREEDY)
    code, out, _ = run("generate", "HERE/gpt", "--prompt", "x", "--file", "HERE/texts.txt", "--json", *GREEDY)
    answers = lines(out)
    assert code == 0
    assert [answer["prompt"] for answer in answers] == ["x", "the sky", "the film"]
    assert answers[2]["text"] == alone.strip()
    for answer in answers:
        assert len(answer["tokens"]) == len(answer["logprobs"]) == 12
        assert all(logprob < 0 for logprob in answer["logprobs"])
        assert answer["ended_by"] == "length"


def test_each_prompt_has_its_own_room_and_what_is_too_long_is_named(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("x\n" + "x" * 62 + "\n" + "x" * 65 + "\n\n" + "x" * 90 + "\n")
    options = ("--temperature", 0, "--precision", "fp32", "--json")
    code, out, err = run("generate", "HERE/gpt", "--file", tmp_path / "prompts.txt", *options)
    assert [len(answer["tokens"]) for answer in lines(out)] == [64, 3, 0, 0, 0]
    assert code == 2
    assert "error: prompt 3 was not answered: the prompt has 65 tokens, but this model reads at most 64; " in err
    assert "; 1 more was not either" in err
    code, out, err = run("generate", "HERE/gpt", "--file", tmp_path / "prompts.txt", "--max-new-tokens", 20, *options)
    assert [len(answer["tokens"]) for answer in lines(out)] == [20, 0, 0, 0, 0]
    assert "prompt 2 was not answered: a prompt of 62 tokens and --max-new-tokens 20 go beyond" in err


@pytest.mark.parametrize(("command", "model"), [("embed", "embedder"), ("classify", "judge"), ("generate", "gpt")])
def test_every_line_of_a_file_has_a_row(run, command, model):
    options = GREEDY if command == "generate" else ()
    code, out, _ = run(command, f"HERE/{model}", "--file", "HERE/blank.txt", "--json", *options)
    key = "prompt" if command == "generate" else "text"
    assert code == 0
    assert [line[key] for line in lines(out)] == ["", "the sky", "", "  ", "the film", ""]
    if command == "generate":
        assert [line["text"] == "" for line in lines(out)] == [True, False, True, False, False, True]
    assert run(command, f"HERE/{model}", "--file", "HERE/blank.txt", *options)[0] == 0


def test_every_line_of_a_file_has_a_row_of_masks(run):
    code, out, _ = run("fill", "HERE/masked", "--file", "HERE/masks.txt", "--json")
    assert code == 0
    assert [len(line["masks"]) for line in lines(out)] == [1, 0, 1]
    assert run("fill", "HERE/masked", "--file", "HERE/masks.txt")[0] == 0


def test_generate_reads_the_standard_input(run):
    _, whole, _ = run("generate", "HERE/gpt", "--prompt", "-", *GREEDY, stdin="the sky")
    _, rows, _ = run("generate", "HERE/gpt", "--file", "-", *GREEDY, stdin="the sky\nx\n")
    assert rows.startswith(f"> the sky\n{whole}\n> x\n")


def test_generate_stops_and_repeats_itself_by_seed(run):
    _, whole, _ = run("generate", "HERE/gpt", "--prompt", "the sky", *GREEDY)
    _, short, _ = run("generate", "HERE/gpt", "--prompt", "the sky", "--stop", "none", "--stop", whole[5:7], *GREEDY)
    assert short.strip() == whole[: whole.index(whole[5:7])]
    drawn = [run("generate", "HERE/gpt", "--prompt", "x", *WARM, "--seed", seed, "--json")[1] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_generate_in_the_chat_template(run):
    _, chatted, _ = run("generate", "HERE/gpt", "--chat", "--prompt", "hi", *GREEDY)
    _, spelled, _ = run("generate", "HERE/gpt", "--prompt", "[user]hi\n[assistant]", *GREEDY)
    assert chatted == spelled


# ---- chat ----------------------------------------------------------------------------------------


def test_chat_remembers_until_it_is_told_not_to(run):
    options = ("--temperature", 0, "--precision", "fp32", "--max-new-tokens", 5)
    code, out, err = run("chat", "HERE/gpt", *options, stdin="hi\nhi\n/help\n/reset\nhi\n\n/reset\n/usr\n/exit\nhi\n")
    first, second, third, fourth = out.splitlines()
    assert code == 0
    assert first == third
    _, again, _ = run(
        "generate", "HERE/gpt", "--prompt", f"[user]hi\n[assistant]{first}\n[user]hi\n[assistant]", *options
    )
    assert second == again.strip()
    assert "/reset   forget" in err
    _, path, _ = run("generate", "HERE/gpt", "--chat", "--prompt", "/usr", *options)
    assert fourth == path.strip()  # no command, so a question


def test_chat_forgets_the_oldest_when_it_must(run):
    options = ("--temperature", 0, "--precision", "fp32", "--max-new-tokens", 10)
    code, out, err = run("chat", "HERE/gpt", *options, "--system", "s", stdin="hi\nho\nhu\n" + 50 * "x" + "\nha\n")
    assert code == 0
    assert len(out.splitlines()) == 4
    _, alone, _ = run("generate", "HERE/gpt", "--prompt", "[system]s\n[user]ho\n[assistant]", *options)
    assert out.splitlines()[1] == alone.strip()
    assert "oldest question is forgotten" in err
    assert re.search("error: .* takes 7. tokens.* reads 64; make it shorter", err)


def test_ctrl_c_stops_the_answer_and_not_the_program(here):
    command = [sys.executable, "-m", "minillm", "chat", str(here / "long"), "--max-new-tokens", "3000"]
    process = subprocess.Popen(
        [*command, "--temperature", "0", "--precision", "fp32"],
        cwd=ROOT,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # as a terminal does, whose Ctrl-C goes to all that the program started
    )
    try:
        process.stdin.write(b"hi\n")
        process.stdin.flush()
        assert process.stdout.read(20).isalpha()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(b"hi\n/exit\n", timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert b"(stopped)" in err
    stopped, whole = out.decode().splitlines()
    assert len(stopped) < 3000 == len(whole)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_model_does_not_command_the_terminal(monkeypatch):
    text = "red\tand\x1b[31m\n\x9b€ ü\x7fß\r"
    for place, shown in ((Terminal(), "red\tand[31m\n€ üß"), (io.StringIO(), text)):
        monkeypatch.setattr(sys, "stdout", place)
        print_text(text)
        assert place.getvalue() == shown


# ---- embed, classify, fill -----------------------------------------------------------------------


def test_embed(run, tmp_path):
    texts = ("the sky", "the film", "the sky")
    code, out, _ = run("embed", "HERE/embedder", *texts)
    assert code == 0
    assert out.count("1.000") == 1
    _, out, _ = run("embed", "HERE/embedder", *texts, "--json", "--out", tmp_path / "x.npy")
    vectors = np.load(tmp_path / "x.npy")
    assert [line["text"] for line in lines(out)] == list(texts)
    assert np.array_equal(np.float32([line["vector"] for line in lines(out)]), vectors)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["masked", "judge", "tagger"])
def test_every_bert_embeds(run, name):
    assert run("embed", f"HERE/{name}", "the sky")[0] == 0


@pytest.mark.parametrize(("command", "name"), [("embed", "embedder"), ("classify", "judge")])
def test_a_text_that_is_cut_is_noted(run, command, name):
    code, _, note = run(command, f"HERE/{name}", "the sky", "the sky " * 5000)
    assert code == 0
    assert re.search(r"1 of 2 texts has more than the \d+ tokens this model reads; what is beyond is cut", note)
    assert "are cut" not in run(command, f"HERE/{name}", "the sky")[2]


def test_many_texts_have_a_line_each(run):
    texts = ["the sky", "film", "good", "bad", "the sky is", "blue", "is", "sky", "the sky"]
    code, out, _ = run("embed", "HERE/embedder", *texts)
    assert code == 0
    assert out.count("1.000") == 2  # the two that are the same
    assert "most like it" in out


def test_the_nearest_of_very_many(monkeypatch):
    """40,000 texts have 6.4 GB of cosines: they are compared a piece at a time."""
    monkeypatch.setattr(embed, "PIECE", 7)
    vectors = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    for row, (best, cosine) in zip(cosines, embed.nearest(vectors), strict=True):
        assert best == row.argmax()
        assert cosine == pytest.approx(row.max())


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", '{"a": "é😀"}'), ("latin-1", r'{"a": "\u00e9\ud83d\ude00"}')])
def test_json_is_json_in_every_encoding(monkeypatch, encoding, text):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert as_json(a="é😀") == text


def test_options_may_stand_between_a_model_and_its_texts(run):
    _, out, _ = run("embed", "HERE/embedder", "--json", "the sky", "--precision", "fp32", "film")
    assert [line["text"] for line in lines(out)] == ["the sky", "film"]


def test_embed_reads_as_far_as_the_files_say(run, here):
    limits = here / "embedder" / "sentence_bert_config.json"
    before = limits.read_bytes()
    limits.write_text('{"max_seq_length": 7}')
    try:
        assert "1 of 2 texts has more than the 7 tokens" in run("embed", "HERE/embedder", "the sky", "the sky " * 10)[2]
    finally:
        limits.write_bytes(before)


@pytest.mark.parametrize(("command", "model"), [("embed", "embedder"), ("classify", "judge")])
def test_no_more_is_read_than_the_vocabulary_says(run, here, tmp_path, command, model):
    shutil.copytree(here / model, tmp_path / model)
    (tmp_path / model / "sentence_bert_config.json").unlink(missing_ok=True)
    (tmp_path / model / "tokenizer_config.json").write_text('{"model_max_length": 5}')
    code, out, note = run(command, tmp_path / model, "the sky is", "the sky is blue good", "--json")
    key = "vector" if command == "embed" else "probabilities"
    first, second = (line[key] for line in lines(out))
    assert code == 0
    assert first == pytest.approx(second, rel=1e-5)
    assert "1 of 2 texts has more than the 5 tokens" in note


def changed(folder, name, **fields):
    old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**old, **fields}))


def test_embed_gives_vectors_of_the_files_and_compares_as_they_say(run, here, tmp_path):
    folder, texts = tmp_path / "embedder", ("the sky", "the film", "the sky")
    shutil.copytree(here / "embedder", folder)

    def embedded():
        _, out, _ = run("embed", folder, *texts, "--json")
        table = run("embed", folder, *texts)[1]
        return np.array([line["vector"] for line in lines(out)]), table

    normalised, _ = embedded()
    (folder / "modules.json").write_text(json.dumps(json.loads((folder / "modules.json").read_text())[:2]))
    vectors, table = embedded()
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.allclose(vectors / lengths[:, None], normalised, atol=1e-6)
    assert abs(lengths - 1).min() > 0.1
    assert "cosines" in table
    assert table.count("1.000") == 1
    changed(folder, "config_sentence_transformers.json", similarity_fn_name="dot")
    vectors, table = embedded()
    assert "dot products" in table
    assert f"{vectors[0] @ vectors[2]:.3f}" in table
    changed(folder, "config_sentence_transformers.json", truncate_dim=8, similarity_fn_name="cosine")
    assert (embedded()[0] == vectors[:, :8]).all()
    changed(folder, "sentence_bert_config.json", max_seq_length=None)
    changed(folder, "tokenizer_config.json", model_max_length=3)
    assert "1 of 2 texts has more than the 3 tokens" in run("embed", folder, "the", "the sky is blue")[2]


def test_embed_of_a_question_answerer(run, here, tmp_path):
    folder = tmp_path / "answerer"
    shutil.copytree(here / "embedder", folder)
    changed(folder, "config.json", architectures=["BertForQuestionAnswering"])
    more = {"qa_outputs.weight": torch.ones(2, 16), "qa_outputs.bias": torch.ones(2)}
    save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors")
    texts = ("the sky", "film", "--json")
    assert run("embed", folder, *texts)[1] == run("embed", "HERE/embedder", *texts)[1]
    code, _, error = run("fill", folder, "[MASK]")
    assert code != 0
    assert "is a BertForQuestionAnswering, but fill needs a BERT" in error


def test_fill_by_a_model_that_does_not_say_what_it_is(run, here, tmp_path):
    shutil.copytree(here / "masked", tmp_path / "masked")
    changed(tmp_path / "masked", "config.json", architectures=None)
    command = "the [MASK]", "--json"
    code, out, _ = run("fill", tmp_path / "masked", *command)
    assert code == 0
    assert out == run("fill", "HERE/masked", *command)[1]


def test_classes_do_not_command_the_terminal(run, here, tmp_path):
    shutil.copytree(here / "judge", tmp_path / "judge")
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    config["id2label"] = {"0": "a\x1b[31mb", "1": "c\x9b2J", "2": "[red]"}
    (tmp_path / "judge" / "config.json").write_text(json.dumps(config))
    _, table, _ = run("classify", tmp_path / "judge", "good film\x1b]0;title")
    assert "\x1b" not in table
    assert "\x9b" not in table
    assert all(name in table for name in ("a[31mb", "c2J", "[red]", "good film]0;title"))


def test_classify(run):
    code, out, _ = run("classify", "HERE/judge", "good film", "--file", "HERE/texts.txt", "--json")
    assert code == 0
    assert [line["text"] for line in lines(out)] == ["good film", "the sky", "the film"]
    for line in lines(out):
        chances = line["probabilities"]
        assert list(chances) == ["bad", "fair", "good"]
        assert sum(chances.values()) == pytest.approx(1)
        assert line["class"] == max(chances, key=chances.get)
    _, table, _ = run("classify", "HERE/judge", "good film")
    (row,) = [line for line in table.splitlines() if "good film" in line]
    first = lines(out)[0]
    assert f"│ {first['class']} " in row
    assert f"{first['probabilities'][first['class']]:.1%}" in row


def test_one_output_is_a_score(run, tmp_path):
    """A softmax over it would be 100 % for every text."""
    model = write_bert(tmp_path / "scorer", SequenceClassifier, ["LABEL_0"])
    code, out, _ = run("classify", model, "good film", "bad film", "--json")
    assert code == 0
    good, bad = lines(out)
    assert good.keys() == {"text", "score", "sigmoid"}
    assert good["score"] != bad["score"]
    assert good["sigmoid"] == pytest.approx(1 / (1 + np.exp(-good["score"])))
    _, table, _ = run("classify", model, "good film", "bad film")
    assert f"{good['score']:.3f}" in table
    assert f"{bad['sigmoid']:.3f}" in table
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    numbers = lines(run("classify", model, "good film", "bad film", "--json")[1])
    assert numbers == [{"text": each["text"], "score": each["score"]} for each in (good, bad)]  # of any size


def test_classes_without_names_are_numbered(run, tmp_path):
    model = write_bert(tmp_path / "unnamed", SequenceClassifier, ["no", "yes"])
    _, named, _ = run("classify", model, "good film", "--json")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"id2label": None}))
    _, numbered, _ = run("classify", model, "good film", "--json")
    chances = lines(numbered)[0]["probabilities"]
    assert list(chances) == ["LABEL_0", "LABEL_1"]
    assert list(chances.values()) == list(lines(named)[0]["probabilities"].values())


def test_classify_pairs(run):
    _, pair, _ = run("classify", "HERE/judge", "good\tfilm", "--pairs", "--json")
    _, text, _ = run("classify", "HERE/judge", "good\tfilm", "--json")
    assert lines(pair)[0]["probabilities"] != lines(text)[0]["probabilities"]


def test_fill(run):
    code, out, _ = run("fill", "HERE/masked", "the [MASK] is [MASK]", "--json", "--top", 3)
    (line,) = lines(out)
    assert code == 0
    assert [len(mask) for mask in line["masks"]] == [3, 3]
    for mask in line["masks"]:
        chances = [each["probability"] for each in mask]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) < 1
    _, table, _ = run("fill", "HERE/masked", "the [MASK] is [MASK]", "--top", 3)
    assert f"{line['masks'][1][0]['probability']:.1%}" in table


# ---- mistakes ------------------------------------------------------------------------------------

HI = ("--prompt", "hi")
MISTAKES = {
    "no command": (("speak",), "there is no command 'speak', only generate, chat"),
    "no model": (("generate", "HERE/nothing", *HI), "there is no folder or .gguf file HERE/nothing"),
    "no weights": (("generate", "HERE", *HI), "HERE holds no model: it has no config.json"),
    "no vocabulary": (("generate", "HERE/no-tokenizer", *HI), "HERE/no-tokenizer holds no tokenizer"),
    "cut off": (("generate", "HERE/torn", *HI), "cannot read HERE/torn/model.safetensors"),
    "a pickle": (("generate", "HERE/pickled", *HI), "only as a pickle .* convert it"),
    "another architecture": (("generate", "HERE/strange", *HI), "model_type='mamba' is not supported, only gpt2"),
    "GGUF cut off": (("generate", "HERE/torn.gguf", *HI), "HERE/torn.gguf is damaged or cut off"),
    "no GGUF": (("chat", "HERE/wrong.gguf"), "HERE/wrong.gguf is no GGUF file"),
    "generate by a BERT": (
        ("generate", "HERE/masked", *HI),
        "BertForMaskedLM, but generate needs .* embed and fill",
    ),
    "chat with a BERT": (("chat", "HERE/judge"), "BertForSequenceClassification, but chat .* classify and embed"),
    "embed by a GPT": (("embed", "HERE/gpt", "hi"), "LlamaForCausalLM, but embed needs a BERT; .* answer and chat"),
    "fill by a GPT": (("fill", "HERE/gpt", "hi"), "LlamaForCausalLM, but fill needs a BERT .*ForMaskedLM"),
    "fill by an encoder": (("fill", "HERE/embedder", "[MASK]"), "BertModel, but fill needs a BERT .*ForMaskedLM"),
    "classify by a GPT": (("classify", "HERE/gpt", "hi"), "but classify needs a classifier"),
    "no template": (("chat", "HERE/plain"), "no chat template, so it was not trained to converse"),
    "no mask": (("fill", "HERE/masked", "the sky"), r"there is no \[MASK\] in 'the sky'"),
    "too long to fill": (("fill", "HERE/masked", 20 * "[MASK]"), "has 22 tokens, but this model reads at most 16"),
    "too long a prompt": (("generate", "HERE/gpt", "--prompt", 65 * "x"), "has 65 tokens, .* at most 64; shorten"),
    "too long an answer": (("generate", "HERE/gpt", *HI, "--max-new-tokens", 64), "ask for at most 63"),
    "no prompt": (("generate", "HERE/gpt"), "there is no text: give --prompt TEXT, or --file"),
    "empty text": (("embed", "HERE/embedder", ""), "there is an empty text"),
    "empty prompt": (("generate", "HERE/endless", "--prompt", ""), "has no token that begins a text: give it a begi"),
    "empty input": (("generate", "HERE/endless", "--prompt", "-"), "has no token that begins a text: give it a begi"),
    "no UTF-8": (("generate", "HERE/gpt", "--prompt", "a\udcff"), "its bytes are not UTF-8"),
    "no file": (("embed", "HERE/embedder", "--file", "HERE/no.txt"), "cannot read HERE/no.txt"),
    "no text": (("embed", "HERE/embedder"), "there is no text: give TEXT"),
    "empty stop": (("generate", "HERE/gpt", *HI, "--stop", ""), "--stop '' would end every answer"),
    "temperature": (("generate", "HERE/gpt", *HI, "--temperature", -1), "--temperature -1.0 must be 0 or more"),
    "top-p": (("generate", "HERE/gpt", *HI, "--top-p", 0), "--top-p 0.0 must be above 0"),
    "no tokens": (("generate", "HERE/gpt", *HI, "--max-new-tokens", 0), "--max-new-tokens 0 must be positive"),
    "seed": (("generate", "HERE/gpt", *HI, "--seed", -1), "--seed -1 must not be negative"),
    "two precisions": (("chat", "HERE/gpt", "--quantize", "int8", "--precision", "fp32"), "computes in bfloat16"),
    "no array": (("embed", "HERE/embedder", "hi", "--out", "HERE/x.csv"), "--out HERE/x.csv must be a .npy file"),
    "nowhere to save": (("embed", "HERE/embedder", "hi", "--out", "HERE/no/x.npy"), "cannot write HERE/no/x.npy"),
    "another vocabulary": (
        ("embed", "HERE/foreign", "the sky"),
        "the token 12, but the model only has 12: they do not",
    ),
    "another vocabulary to fill": (("fill", "HERE/foreign-mask", "the [MASK]"), "they do not belong together"),
    "not finite": (("embed", "HERE/broken", "the sky"), "the model computes NaN or infinite values"),
    "not finite to generate": (("generate", "HERE/huge", *HI), "NaN or infinite values.*: token 1 of an answer has no"),
    "no numbers": (("generate", "HERE/nan", *HI), "HERE/nan: 'model.embed_tokens.weight' holds NaN or infinite values"),
    "projections": (("embed", "HERE/routed", "hi"), "HERE/routed/modules.json: .* go through .*, Router are not"),
    "no name": (("embed", "", "x"), "'' is no name of a model"),
    "a long name": (("embed", "x" * 5000, "x"), "is no name of a model"),
    "no pair": (("classify", "HERE/judge", "hi", "--pairs"), "'hi' is no pair"),
}


@pytest.mark.parametrize(("argv", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(run, argv, sentence):
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert re.fullmatch(rf"error: .*{sentence}.*\n", err)


@pytest.mark.parametrize(("module", "extra"), [("tokenizers", "text"), ("jinja2", "text")])
def test_a_missing_extra_is_named(run, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run(*(("chat", "HERE/gpt") if module == "jinja2" else ("embed", "HERE/embedder", "hi")))
    assert code == 2
    assert f"needs the library {module}: pip install -e '.[{extra}]'" in err


def test_who_has_seen_enough_may_leave(here):
    command = f"{sys.executable} -m minillm generate {here / 'long'} --prompt x --max-new-tokens 3000"
    done = subprocess.run(
        f"{command} --temperature 0 | head -c 10",
        shell=True,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=60,
    )
    assert re.fullmatch(b"[A-Za-z]{10}", done.stdout)
    assert done.stderr == b""

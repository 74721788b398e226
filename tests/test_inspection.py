"""What is trained, shown token by token; and each rule, broken once, is noticed."""

import dataclasses
import io

import pytest
import torch
from rich.console import Console

import train_sft
from minillm import inspection
from minillm.batching import IGNORE, Batch
from minillm.errors import UserError
from minillm.inspection import documents_of
from minillm.tasks import TASKS
from minillm.tasks.arithmetic import Arithmetic, Options


def shown(count=2, task="arithmetic", **options):
    """What --inspect prints."""
    out = io.StringIO()
    args = train_sft.Args(task=task, inspect=count, precision="fp32", options=options.pop("of_task", Options(20)))
    train_sft.look_into(dataclasses.replace(args, **options), Console(file=out, width=100))
    return out.getvalue()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_token_with_all_that_is_asked_of_it(tmp_path):
    text = shown(3, batch_tokens=1000)
    assert text.count("example ") == 3
    assert "20 examples keep the rules" in text
    lines = [line for line in text.splitlines() if line.startswith("│ 5 ")]
    assert len(lines) == 3
    weight = f"{1 / 80:.2g}"  # 20 answers of 3 digits and an end
    assert all("'='" in line and weight in line for line in lines)
    assert text.count("<|end|>") == 3
    assert not list(tmp_path.iterdir())  # no run was begun


def test_a_step_in_pieces_has_the_weights_of_the_whole():
    assert shown(20, batch_tokens=1000, micro_tokens=50) == shown(20, batch_tokens=1000)


def test_texts_with_classes(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f"so good {i},fine\nso bad {i},awful\n" for i in range(20))
    )
    text = shown(1, "classify", of_task=TASKS["classify"].Options(tmp_path / "a.csv"))
    assert "[SEP]" in text
    assert ", label fine, weight" in text or ", label awful, weight" in text


def test_pairs_of_which_one_was_chosen(tmp_path):
    pytest.importorskip("tokenizers")
    rows = [f"why {i},because {i},no {i}\n" for i in range(20)]
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "".join(rows))
    text = shown(1, "preference", of_task=TASKS["preference"].Options(tmp_path / "a.csv"))
    assert text.index(", label 1, weight") < text.index(", label 0, weight")


# ---- broken rules --------------------------------------------------------------------------------


def broken(change):
    """Arithmetic whose documents are changed so."""

    class Broken(Arithmetic):
        def documents(self, example, tokenizer, rng):
            (document,) = super().documents(example, tokenizer, rng)
            return [change(document)]

    return Broken


def with_target(place, target):
    def change(document):
        targets = list(document.targets)
        targets[place] = target
        return dataclasses.replace(document, targets=targets)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_target(-1, IGNORE), "token 7: the answer ends here, but with no token that ends it"),
        (with_target(-1, 3), "token 8: the answer ends here, but with no token that ends it"),
        (with_target(2, 10), "token 2: its target is 10, but the token that follows is 1?[0-9]|a part of the prompt"),
        (with_target(5, IGNORE), "token 5: the answer begins here, but has no target"),
        (lambda d: dataclasses.replace(d, targets=[IGNORE] * 9), "token 0: nothing is learned from this document"),
        (
            lambda d: dataclasses.replace(d, targets=[*d.tokens[1:], d.targets[-1]]),
            "token 0: it is a part of the prompt, but has a target",
        ),
        (
            lambda d: dataclasses.replace(d, targets=[*d.targets[:5], *d.targets[6:], d.targets[-1]]),
            "token 5: its target is .*, but the token that follows is",
        ),
    ],
    ids=["no end", "another end", "prompt", "beginning", "nothing", "all", "shifted"],
)
def test_a_broken_rule_is_noticed(monkeypatch, change, sentence):
    monkeypatch.setitem(TASKS, "arithmetic", broken(change))
    with pytest.raises(UserError, match=rf"example \d+, {sentence}"):
        shown()


def test_documents_that_are_not_told_apart_are_noticed(monkeypatch):
    """Two in a row that count as one."""

    class Joined:
        def __init__(self, packing):
            self.lengths, self.cu_seqlens = packing.lengths, packing.cu_seqlens
            self.positions = torch.arange(packing.num_tokens)

    def joined(batch, count):
        yield from documents_of(Batch(batch.tokens, batch.targets, batch.labels, None, Joined(batch.packing), 1), count)

    monkeypatch.setattr(inspection, "documents_of", joined)
    with pytest.raises(UserError, match="token 0: its position is 9, so that documents are not told apart"):
        shown()


def test_a_number_of_examples_that_is_none():
    with pytest.raises(UserError, match="--inspect 0 must be positive"):
        shown(0)

"""Words in place of others, as a masked language model proposes them: those it finds likeliest, and none of its own."""

import json
import signal

import numpy as np
import pytest
import scripts
import torch
from safetensors.torch import load_file

import minillm.curves
import train_sft
from minillm.commands import fill
from minillm.errors import UserError
from minillm.heads import MaskedLM
from minillm.modernbert import ModernBERTConfig
from minillm.proposals import APART, CANDIDATES, PROPOSED, Proposals, masked, masked_together
from minillm.session import Session
from minillm.tasks.classify import Classify, Options

pytest.importorskip("tokenizers")
from minillm.published.subwords import learn_vocabulary

WORDS = (
    *["the", "film", "was", "great", "and", "a", "movie", "is", "poor", "but", "it", "had", "some", "fine", "scenes"],
    *["an", "awful", "long", "plot"],
)
TEXT = '"The film, was great!" and  it had fine — scenes with a long plot'


@pytest.fixture(scope="module")
def tokenizer():
    return learn_vocabulary([" ".join(WORDS), TEXT] * 5, 100)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Sure of what it says, whatever that is."""
    torch.manual_seed(0)
    made = MaskedLM(ModernBERTConfig(tokenizer.vocab_size, 64, num_layers=1, width=16, num_heads=2)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def test_every_word_is_masked_once_and_what_is_none_never():
    groups = list(masked_together(TEXT))
    assert sorted(i for group in groups for i in group) == [i for i, word in enumerate(TEXT.split()) if word != "—"]
    assert len(groups) == APART
    assert masked(TEXT, [1, 3], "[M]") == '"The [M], was [M]!" and it had fine — scenes with a long plot'
    assert list(masked_together("— …")) == []


def test_proposals_are_what_the_model_finds_likeliest(model, tokenizer):
    """As the command `fill` has it, of the same text with the same masks."""
    found = Proposals(model, tokenizer, [TEXT, "a film"]).of_text
    seen = 0
    for text in (TEXT, "a film"):
        for group in masked_together(text):
            expected = fill.candidates(model, tokenizer, masked(text, group, fill.MASK), CANDIDATES)
            for word, candidates in zip(group, expected, strict=True):
                own = text.split()[word].strip('",!').lower()
                names = [c["text"].strip() for c in candidates if c["id"] not in tokenizer.control.values()]
                names = [name for name in names if name[:1].isalnum() and name.lower() != own]
                assert found[text][word] == names[:PROPOSED]
                seen += len(names[:PROPOSED])
    assert seen > 20


def test_a_share_of_the_words_is_replaced_and_signs_around_them_stay(model, tokenizer):
    proposals, rng = Proposals(model, tokenizer, [TEXT]), np.random.default_rng(0)
    words, changed = TEXT.split(), np.zeros(len(TEXT.split()))
    for _ in range(2000):
        new = proposals(TEXT, rng).split()
        assert len(new) == len(words)
        for i, (a, b) in enumerate(zip(words, new, strict=True)):
            changed[i] += a != b
            assert b in (
                a,
                *(
                    f"{a[: a.index(core)]}{p}{a[a.index(core) + len(core) :]}"
                    for core in [a.strip('",!')]
                    for p in proposals.of_text[TEXT][i]
                ),
            )
    assert changed[words.index("—")] == 0
    has_some = np.array([bool(each) for each in proposals.of_text[TEXT]])
    np.testing.assert_allclose(changed[has_some] / 2000, 0.1, atol=0.03)
    same = [proposals(TEXT, np.random.default_rng(7)) for _ in range(2)]
    assert same[0] == same[1]


def test_a_vocabulary_without_a_mask_is_refused(model, tokenizer):
    class Bare:
        mask = None

    with pytest.raises(UserError, match="names no mask"):
        Proposals(model, Bare(), [TEXT])


@pytest.mark.parametrize(
    "options", [{"augment": "mask"}, {"augment_model": "x"}, {"augment": "drop", "augment_model": "x"}]
)
def test_the_two_options_go_together(options):
    with pytest.raises(UserError, match="--augment mask and --augment-model MODEL go together"):
        Classify(Options(train="nowhere.jsonl", **options), 0)


# ---- in a training -------------------------------------------------------------------------------

FAST = {"precision": "fp32", "lr": 0.003, "embedding_lr": 0.003, "width": 16, "layers": 1, "heads": 2, "evaluations": 1}


def main(**options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        return scripts.main(train_sft, **FAST, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Texts of two classes, and a masked language model of them."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    rows = [{"text": " ".join(rng.choice(WORDS, size=8)), "label": "ab"[i % 2]} for i in range(60)]
    for name, some in (("train", rows[:40]), ("dev", rows[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    found = {name: folder / f"{name}.jsonl" for name in ("train", "dev")}
    for seed in (0, 1):
        assert main(**found, task="mlm", steps=5, seed=seed, out=folder / f"mlm-{seed}") == 0
    return found


def test_a_resumed_training_is_the_one_that_was_not_interrupted(files, tmp_path, monkeypatch, capsys):
    """But for one with another model, which is refused."""
    model = files["train"].parent / "mlm-0"
    moved = model.rename(tmp_path / "mlm")
    chosen = {**files, "task": "classify", "augment": "mask", "augment_model": moved, "steps": 8, "batch_tokens": 200}
    assert main(**chosen, out=tmp_path / "whole") == 0
    assert main(**{**chosen, "augment": None, "augment_model": None}, out=tmp_path / "plain") == 0
    real, calls = Session.set_lr, []

    def set_lr(*args):
        calls.append(args)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "set_lr", set_lr)
        assert main(**chosen, out=tmp_path / "cut") == 130
    moved.rename(tmp_path / "first")
    (model.parent / "mlm-1").rename(moved)
    with monkeypatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        assert scripts.main(train_sft, resume=tmp_path / "cut") == 2
        assert "this has changed since it began: augment model" in capsys.readouterr().err
        moved.rename(model.parent / "mlm-1")
        (tmp_path / "first").rename(moved)
        assert scripts.main(train_sft, resume=tmp_path / "cut") == 0
    whole, cut, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut", "plain"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)


def test_a_model_that_fills_in_nothing_is_refused(files, tmp_path, capsys):
    assert main(**files, task="classify", steps=1, out=tmp_path / "run") == 0
    chosen = {"augment": "mask", "augment_model": tmp_path / "run"}
    assert main(**files, **chosen, task="classify", steps=1, out=tmp_path / "other") == 2
    assert "has no head that predicts masked words" in capsys.readouterr().err

"""Embeddings as sentence-transformers makes them of the same files."""

import json

import pytest
import torch
from tiny import bert_config, packed, sequences
from torch.nn.functional import normalize

from minillm.bert import BERT
from minillm.errors import UserError
from minillm.evaluate import read
from minillm.heads import SentenceEmbedder
from minillm.published import checkpoint

POOLING = "1_Pooling/config.json"


@pytest.fixture
def folder(tmp_path):
    """A BERT without any file about embeddings."""
    checkpoint.save(BERT(bert_config()), tmp_path)
    return tmp_path


def modules(*kinds, path="1_Pooling"):
    return [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind in kinds]


def write(folder, name, fields):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(fields))


@torch.no_grad()
@pytest.mark.parametrize(
    ("fields", "pool"),
    [
        (None, lambda hidden: hidden.mean(0)),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, lambda hidden: hidden.mean(0)),
        ({"pooling_mode": "mean"}, lambda hidden: hidden.mean(0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda hidden: hidden[0]),
        ({"pooling_mode": "cls"}, lambda hidden: hidden[0]),
        ({"pooling_mode_lasttoken": True}, lambda hidden: hidden[-1]),
    ],
)
def test_pooling(folder, fields, pool):
    if fields:
        write(folder, POOLING, fields)
    ids = sequences([3, 1, 6])
    encoder, embedder = (checkpoint.load(folder, head, dtype=torch.float64) for head in ("encoder", "embed"))
    truth = torch.stack([normalize(pool(encoder(*packed([each]))), dim=0) for each in ids])
    torch.testing.assert_close(embedder(*packed(ids)), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
            "max_tokens and mean",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "cls_token and mean",
        ),
        (POOLING, {"pooling_mode": "weightedmean"}, "by pooling weightedmean are not supported"),
        (POOLING, {"pooling_mode_cls_token": False}, "by pooling nothing"),
        ("modules.json", modules("Transformer", "Pooling", "Dense"), "through Transformer, Pooling, Dense are not"),
        ("modules.json", modules("Transformer"), "through Transformer are not supported"),
        ("modules.json", [5, None], "through None, None are not"),
        ("modules.json", [], "through nothing are not"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "a prompt put before every text"),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "max_seq_length='many' is no number"),
        ("modules.json", modules("Transformer", "Pooling", path="pool"), "pooling in 'pool' is not supported"),
        ("sentence_bert_config.json", {"max_seq_length": True}, "max_seq_length=True is no number"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length=0 is no number"),
    ],
)
def test_what_we_lack_is_named(folder, name, fields, sentence):
    write(folder, name, fields)
    with pytest.raises(UserError, match=f"{name}: .*{sentence}"):
        checkpoint.load(folder, head="embed")
    checkpoint.load(folder, head="encoder")  # which needs none of it


def test_pooling_that_is_said_to_be_there_must_be(folder):
    write(folder, "modules.json", modules("Transformer", "Pooling"))
    with pytest.raises(UserError, match=r"cannot read .*1_Pooling/config\.json: .*No such file"):
        checkpoint.load(folder, head="embed")


class Letters:
    """A token a letter, so that what is cut can be counted."""

    def wrap(self, text, limit=None, control=False):
        ids = [ord(letter) - ord("a") for letter in text][:limit]
        return ids, [0] * len(ids)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_texts_are_read_as_far_as_the_files_say(folder, name):
    write(folder, name, {"max_seq_length": 4, "do_lower_case": False})
    model = checkpoint.load(folder, head="embed")
    assert model.max_seq_len == 4
    long, short = read(model, Letters(), [("abcdefg",), ("abcd",)])
    assert (long == short).all()
    write(folder, name, {"max_seq_length": 10**6})
    assert checkpoint.load(folder, head="embed").max_seq_len == bert_config().max_seq_len
    write(folder, name, {"max_seq_length": None})
    assert checkpoint.load(folder, head="embed").max_seq_len == bert_config().max_seq_len


def test_texts_are_read_in_lower_case_if_the_files_say_so(folder):
    write(folder, "sentence_bert_config.json", {"do_lower_case": True})
    model = checkpoint.load(folder, head="embed")
    small, large = (read(model, Letters(), [(text,)]) for text in ("abc", "aBC"))
    assert (small == large).all()


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_an_embedder_comes_back(tmp_path, pooling):
    checkpoint.save(SentenceEmbedder(bert_config(), pooling, max_seq_len=2, lower_case=True), tmp_path)
    model = checkpoint.load(tmp_path, head="embed")
    assert (model.pooling, model.max_seq_len, model.lower_case) == (pooling, 2, True)


def test_an_embedder_checks_itself():
    with pytest.raises(ValueError, match="pooling='max'"):
        SentenceEmbedder(bert_config(), "max")
    for limit in (0, -3):
        with pytest.raises(ValueError, match=f"max_seq_len={limit} must be positive"):
            SentenceEmbedder(bert_config(), max_seq_len=limit)

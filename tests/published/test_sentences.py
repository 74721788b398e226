"""Embeddings as sentence-transformers makes them of the same files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, packed, sequences, shake
from torch.nn.functional import normalize

from minillm.bert import BERT
from minillm.embedder import SentenceEmbedder
from minillm.errors import UserError
from minillm.evaluate import read
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer

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
        ("modules.json", modules("Transformer", "Pooling", "LayerNorm"), "Transformer, Pooling, LayerNorm are not"),
        ("modules.json", modules("Transformer", "Pooling", "Normalize", "Dense"), "Pooling, Normalize, Dense are not"),
        ("modules.json", modules("Transformer", "WordWeights", "Pooling"), "WordWeights, Pooling are not supported"),
        ("modules.json", modules("WordEmbeddings", "Pooling"), "through WordEmbeddings, Pooling are not supported"),
        ("modules.json", modules("Transformer", "Pooling", "Dropout", "Normalize"), "Dropout, Normalize are not"),
        ("modules.json", modules("Transformer"), "through Transformer are not supported"),
        ("modules.json", [5, None], "through None, None are not"),
        ("modules.json", [], "through nothing are not"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "a prompt put before every text"),
        ("config_sentence_transformers.json", {"truncate_dim": "8"}, "truncate_dim='8' is no whole number"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim=0 is no number of columns"),
        ("config_sentence_transformers.json", {"truncate_dim": -8}, "truncate_dim=-8 is no number of columns"),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "euclidean"},
            "'euclidean' is not supported, only",
        ),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case='yes' is not true or false"),
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


# ---- against sentence-transformers itself ------------------------------------------------------------

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
TEXTS = ["a b c", "x", "the quick brown fox jumps over it again and again", "d e f g h i j k l m n o p q"]
TANH, NONE, RELU = (f"torch.nn.modules.{name}" for name in ("activation.Tanh", "linear.Identity", "activation.ReLU"))


@pytest.fixture
def model_folder(tmp_path):
    """A BERT with a vocabulary of letters and random weights, and two projections beside it."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    config = bert_config(vocab_size=len(VOCABULARY), max_seq_len=32)
    checkpoint.save(shake(BERT(config)).float(), tmp_path, pad_token_id=0)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    library = load_tokenizer(tmp_path)
    library.save(tmp_path)
    write(tmp_path, "tokenizer_config.json", {**library.config, "tokenizer_class": "BertTokenizer"})
    write(tmp_path, POOLING, {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    for name, rows, columns in (("2_Dense", 12, 16), ("3_Dense", 10, 12)):
        (tmp_path / name).mkdir()
        weights = {"linear.weight": torch.randn(rows, columns), "linear.bias": torch.randn(rows)}
        save_file(weights, tmp_path / name / "model.safetensors")
        write(tmp_path, f"{name}/config.json", {"in_features": columns, "out_features": rows, "bias": True})
    return tmp_path


def steps(*kinds):
    """modules.json, each module in a folder of its own."""
    kinds = ("Transformer", "Pooling", *kinds)
    places = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i > 0)]
    return [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, place) in enumerate(zip(kinds, places, strict=True))
    ]


CASES = {
    "normalised": ({"modules.json": steps("Normalize")}, 16),
    "as long as it is": ({"modules.json": steps()}, 16),
    "by products": (
        {"modules.json": steps(), "config_sentence_transformers.json": {"similarity_fn_name": "dot"}},
        16,
    ),
    "first columns": (
        {"modules.json": steps("Normalize"), "config_sentence_transformers.json": {"truncate_dim": 8}},
        8,
    ),
    "more columns than there are": (
        {"modules.json": steps(), "config_sentence_transformers.json": {"truncate_dim": 99}},
        16,
    ),
    "a projection": ({"modules.json": steps("Dense")}, 12),
    "a projection, normalised": ({"modules.json": steps("Dense", "Normalize")}, 12),
    "two projections, first columns": (
        {"modules.json": steps("Dense", "Dense"), "config_sentence_transformers.json": {"truncate_dim": 4}},
        4,
    ),
    "few tokens, of the tokenizer": ({"modules.json": steps(), "tokenizer_config.json": {"model_max_length": 8}}, 16),
    "few tokens, of both": (
        {
            "modules.json": steps(),
            "tokenizer_config.json": {"model_max_length": 8},
            "sentence_bert_config.json": {"max_seq_length": 12},
        },
        16,
    ),
    "tokens without end": ({"modules.json": steps(), "tokenizer_config.json": {"model_max_length": 10**30}}, 16),
    "no limit here, but there": (
        {
            "modules.json": steps(),
            "tokenizer_config.json": {"model_max_length": 6},
            "sentence_bert_config.json": {"max_seq_length": None},
        },
        16,
    ),
}


@pytest.mark.parametrize(("files", "width"), CASES.values(), ids=CASES)
def test_vectors_are_those_of_sentence_transformers(model_folder, tmp_path_factory, files, width):
    for name, fields in files.items():
        old = json.loads((model_folder / name).read_text()) if (model_folder / name).exists() else {}
        write(model_folder, name, fields if isinstance(fields, list) else {**old, **fields})
    again = tmp_path_factory.mktemp("again")
    ours = checkpoint.load(model_folder, "embed")
    vectors = read(ours, load_tokenizer(model_folder), [(text,) for text in TEXTS])
    assert vectors.shape == (len(TEXTS), width)
    assert_equal_to_theirs(vectors, model_folder)

    checkpoint.save(ours, again, pad_token_id=0)  # and written again, for both
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (again / name).write_bytes((model_folder / name).read_bytes())
    assert_equal_to_theirs(vectors, again)
    back = checkpoint.load(again, "embed")
    assert (read(back, load_tokenizer(again), [(text,) for text in TEXTS]) == vectors).all()
    assert back.similarity == ours.similarity


def assert_equal_to_theirs(vectors, folder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(TEXTS)
    assert theirs.shape == vectors.shape
    assert abs(theirs - vectors).max() <= 1e-5 * abs(theirs).max()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"activation_function": "torch.nn.modules.activation.PReLU"}, "activation_function='torch.*PReLU' is not"),
        ({"activation_function": "os.system"}, "activation_function='os.system' is not supported, only torch's"),
        ({"activation_function": "evil.Tanh"}, "activation_function='evil.Tanh' is not supported"),
        ({"use_residual": True}, "use_residual=True is not supported"),
        ({"module_input_name": "token_embeddings"}, "module_input_name='token_embeddings' is not supported"),
        ({"module_output_name": "other"}, "module_output_name='other' is not supported"),
        ({"temperature": 2}, "'temperature' is unknown"),
        ({"out_features": None}, "'out_features' is missing"),
        ({"out_features": 12.0}, "out_features=12.0 is no whole number"),
        ({"bias": 1}, "bias=1 is not true or false"),
    ],
    ids=str,
)
def test_projections_that_are_not_understood(model_folder, fields, sentence):
    write(model_folder, "modules.json", steps("Dense"))
    old = json.loads((model_folder / "2_Dense/config.json").read_text())
    write(model_folder, "2_Dense/config.json", {**old, **fields})
    with pytest.raises(UserError, match=f"2_Dense/config.json: .*{sentence}"):
        checkpoint.load(model_folder, "embed")


@pytest.mark.parametrize("activation", [TANH, NONE, RELU, "torch.nn.modules.activation.GELU", None])
def test_activations_of_projections(model_folder, activation):
    write(model_folder, "modules.json", steps("Dense"))
    old = json.loads((model_folder / "2_Dense/config.json").read_text())
    write(model_folder, "2_Dense/config.json", {**old, **({"activation_function": activation} if activation else {})})
    vectors = read(checkpoint.load(model_folder, "embed"), load_tokenizer(model_folder), [(text,) for text in TEXTS])
    assert_equal_to_theirs(vectors, model_folder)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda t: t.pop("linear.bias"), r"lacks 'projections.0.bias'"),
        (lambda t: t.update({"linear.weight": t["linear.weight"][:3]}), r"'projections.0.weight' has shape \(3, 16\)"),
        (lambda t: t.update(extra=t["linear.bias"].clone()), "holds 'projections.0.extra'"),
        (lambda t: t["linear.bias"].fill_(float("nan")), "'projections.0.bias' holds NaN"),
        (lambda t: t.update({"linear.weight": t["linear.weight"].int()}), "'projections.0.weight' is of torch.int32"),
    ],
)
def test_weights_of_projections_are_accounted_for(model_folder, edit, sentence):
    write(model_folder, "modules.json", steps("Dense"))
    file = model_folder / "2_Dense/model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError, match=sentence):
        checkpoint.load(model_folder, "embed")


def test_weights_of_projections_that_are_a_pickle(model_folder):
    write(model_folder, "modules.json", steps("Dense"))
    (model_folder / "2_Dense/model.safetensors").rename(model_folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(UserError, match="2_Dense has its weights only as a pickle"):
        checkpoint.load(model_folder, "embed")


def test_a_module_lies_beside_the_others(model_folder):
    write(model_folder, "modules.json", [*steps(), {"type": "x.Dense", "path": "../2_Dense"}])
    with pytest.raises(UserError, match=r"modules.json: a description of Dense in .*\.\./2_Dense is not supported"):
        checkpoint.load(model_folder, "embed")


def test_texts_of_xlm_r_from_its_unigram_vocabulary(tmp_path):
    """From text to vector with a tokenizer.json as XLM-R's is; without modules.json it is the mean, of length 1."""
    library = pytest.importorskip("tokenizers")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    letters = [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces = [*((name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")), ("▁", -2.0), ("▁the", -3.0), *letters]
    backend = library.Tokenizer(library.models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    backend.normalizer = library.normalizers.NFKC()
    backend.pre_tokenizer = library.pre_tokenizers.Metaspace()
    backend.decoder = library.decoders.Metaspace()
    backend.post_processor = library.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    roles = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    config = {f"{role}_token": name for role, name in roles.items()}
    config |= {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 20}
    write(tmp_path, "tokenizer_config.json", config)
    shape = bert_config(vocab_size=len(pieces) + 1, max_seq_len=24, num_segments=1, position_offset=2, norm_eps=1e-5)
    checkpoint.save(shake(BERT(shape)).float(), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_type"] == "roberta"
    write(tmp_path, "config.json", {**fields, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]})
    texts = ["the cat", "A dog", "the end of a text that has more than twenty tokens", "?"]
    vectors = read(checkpoint.load(tmp_path, "embed"), load_tokenizer(tmp_path), [(text,) for text in texts])

    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    assert abs(theirs.encode(texts, normalize_embeddings=True) - vectors).max() <= 1e-6

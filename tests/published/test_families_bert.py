"""BERT, RoBERTa and its kin, DistilBERT and ModernBERT against transformers: values, gradients, files both ways."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity import arranged, close, loaded, randomise
from safetensors.torch import load_file, save_file
from tiny import VOCAB, gradients, packed, sequences
from torch import nn
from weights import minilm

from minillm.bert import BERT, BERTConfig
from minillm.embedder import SentenceEmbedder
from minillm.errors import UserError
from minillm.heads import ENDS, MaskedLM, SequenceClassifier, TokenClassifier, pooling_of
from minillm.modernbert import ModernBERT
from minillm.optim import adamw_under_head
from minillm.published import checkpoint
from minillm.published.checkpoint import Checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.start import with_dropout

transformers = pytest.importorskip("transformers", reason="transformers is not installed; pip install transformers")

LENGTHS = (5, 1, 23, 7, 3)
CLASSES = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
BERT_FIELDS = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}
ROBERTA_FIELDS = BERT_FIELDS | {"max_position_embeddings": 26, "type_vocab_size": 1, "pad_token_id": 1}
ROBERTA_FIELDS |= {"layer_norm_eps": 1e-5}
CASES = {
    "bert": ("Bert", BERT_FIELDS),
    "minilm": ("Bert", BERT_FIELDS | {"num_attention_heads": 8, "type_vocab_size": 1, "layer_norm_eps": 1e-6}),
    "roberta": ("Roberta", ROBERTA_FIELDS),
    "bert, relu": ("Bert", BERT_FIELDS | {"hidden_act": "relu"}),
    "bert, tanh gelu": ("Bert", BERT_FIELDS | {"hidden_act": "gelu_new"}),
    "xlm-roberta": ("XLMRoberta", ROBERTA_FIELDS),
    "distilbert": (
        "DistilBert",
        {"vocab_size": VOCAB, "dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 24},
    ),
    # Layers 0 and 3 see everything; the others see 4 tokens on either side, so that 23 are longer than the window.
    "modernbert": (
        "ModernBert",
        BERT_FIELDS
        | {"num_hidden_layers": 5, "local_attention": 8, "rope_parameters": None}
        | {"bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    ),
}
KINDS = {
    "encoder": "Model",
    "mlm": "ForMaskedLM",
    "classify": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "embed": "Model",
}
TYPES = {"mlm": MaskedLM, "classify": SequenceClassifier, "tag": TokenClassifier, "embed": SentenceEmbedder}
every_case = pytest.mark.parametrize("case", CASES)
every_head = pytest.mark.parametrize("head", KINDS)


def make(case, head, **fields):
    """A model of transformers with random weights; `head` is one of ours, or the end of its class's name."""
    name, common = CASES[case]
    config = getattr(transformers, f"{name}Config")(**(common | CLASSES | fields))
    return randomise(getattr(transformers, f"{name}{KINDS.get(head, head)}")(config))


def sentences():
    """Tokens 0 and 1 are the padding of one family or another, which theirs treats specially wherever it stands."""
    return [2 + part % (VOCAB - 2) for part in sequences(LENGTHS, high=1000)]


def both(ours, theirs, head):
    """Hidden states behind every layer, and what the head makes of them; ours packed, theirs padded on the right."""
    parts = sentences()
    pad = theirs.config.pad_token_id
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
    batch = {
        "input_ids": nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=pad),
        "attention_mask": mask,
    }
    segments = None
    if isinstance(ours.config, BERTConfig) and ours.config.num_segments > 1:
        kinds = [torch.arange(len(part)) // 2 % 2 for part in parts]
        segments = torch.cat(kinds)
        batch["token_type_ids"] = nn.utils.rnn.pad_sequence(kinds, batch_first=True)

    encoder, layers = getattr(ours, "encoder", ours), []
    hooks = [block.register_forward_hook(lambda _, __, x: layers.append(x)) for block in encoder.blocks[:-1]]
    hooks.append(encoder.register_forward_hook(lambda _, __, x: layers.append(x)))
    out = ours(*packed(parts), segments)
    for hook in hooks:
        hook.remove()

    answer, real = theirs(**batch, output_hidden_states=True), mask.bool()
    if head == "encoder":
        truth = answer.last_hidden_state[real]
    elif head == "embed":
        means = [row[:n].mean(0) for row, n in zip(answer.last_hidden_state, LENGTHS, strict=True)]
        truth = F.normalize(torch.stack(means), dim=-1)
    else:
        truth = answer.logits if head == "classify" else answer.logits[real]
    hidden = [x[real] for x in answer.hidden_states[1:]]
    if head == "classify" and (pooling := pooling_of(ours.config)) in ENDS:  # of the last layer no more is computed
        hidden[-1] = hidden[-1][ENDS[pooling](packed(parts)[1])]
    out = ours.logits(out) if head == "mlm" else out
    return [*layers, out], [*hidden, truth]


def assert_parity(ours, theirs, head, tolerance):
    found, truth = both(ours, theirs, head)
    assert len(found) == len(truth)
    for i, (x, y) in enumerate(zip(found, truth, strict=True)):
        close(x, y, tolerance, f"hidden states behind layer {i}")
    weights = torch.randn(truth[-1].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for out in (found[-1], truth[-1]):
        (out * weights.to(out)).sum().backward()
    named = theirs.named_parameters(remove_duplicate=False)
    theirs_too = {name: p.grad for name, p in named if p.grad is not None}
    truth, found = arranged(theirs_too, ours), gradients(ours)
    assert found.keys() == truth.keys() == dict(ours.named_parameters()).keys()
    for name in truth:
        close(found[name], truth[name], tolerance, f"gradient of {name}")


def exact(theirs, monkeypatch):
    """Theirs in float64 also where ModernBERT would turn queries and keys in float32."""
    theirs = theirs.double()
    if theirs.config.model_type != "modernbert":
        return theirs

    def angles(x, positions, kind):
        speeds = theirs.config.rope_parameters[kind]["rope_theta"] ** -(torch.arange(0, 4, 2).double() / 4)
        turned = positions[..., None] * torch.cat((speeds, speeds))
        return turned.cos(), turned.sin()

    def turn(q, k, cos, sin, unsqueeze_dim):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        half = q.shape[-1] // 2
        return [x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin for x in (q, k)]

    monkeypatch.setattr(transformers.models.modernbert.modeling_modernbert, "apply_rotary_pos_emb", turn)
    theirs.base_model.rotary_emb.forward = angles
    return theirs


# ---- values and gradients ------------------------------------------------------------------------


@every_case
@every_head
def test_float32(case, head, tmp_path):
    theirs = make(case, head)
    ours = loaded(theirs, tmp_path, head=head)
    assert type(ours) is TYPES.get(head, ModernBERT if case == "modernbert" else BERT)
    assert_parity(ours, theirs, head, 1e-5)


@every_case
@every_head
def test_float64(case, head, tmp_path, monkeypatch):
    theirs = exact(make(case, head), monkeypatch)
    assert_parity(loaded(theirs, tmp_path, torch.float64, head=head), theirs, head, 1e-10)


@pytest.mark.parametrize(
    "fields",
    [
        {"classifier_pooling": "mean"},
        {"local_attention": 2},
        {"local_attention": 128},
        {"global_attn_every_n_layers": 2},
        {"global_rope_theta": 50.0, "local_rope_theta": 300.0},
    ],
    ids=str,
)
def test_modernbert_choices(fields, tmp_path, monkeypatch):
    theirs = exact(make("modernbert", "classify", **fields), monkeypatch)
    assert_parity(loaded(theirs, tmp_path, torch.float64), theirs, "classify", 1e-10)


UNTIED = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert")


@every_head
@pytest.mark.parametrize("case", UNTIED)
def test_an_output_matrix_of_its_own(case, head, tmp_path, monkeypatch):
    theirs = exact(make(case, head, tie_word_embeddings=False), monkeypatch)
    ours = loaded(theirs, tmp_path, torch.float64, head=head)
    assert_parity(ours, theirs, head, 1e-10)
    checkpoint.save(ours, tmp_path / "again", pad_token_id=theirs.config.pad_token_id)
    assert all(
        torch.equal(p, q)
        for p, q in zip(ours.parameters(), checkpoint.load(tmp_path / "again", head).parameters(), strict=True)
    )
    if head == "mlm":
        assert ours.output.weight is not ours.encoder.tokens.weight
        again = type(theirs).from_pretrained(tmp_path / "again", dtype=torch.float64)
        if case != "modernbert":  # which turns queries in float32 there
            close(both(ours, again, head)[1][-1], both(ours, theirs, head)[1][-1], 1e-6)


@pytest.mark.parametrize("dropout", ["embedding_dropout", "attention_dropout", "mlp_dropout"])
def test_dropout_of_modernbert_is_none_of_inference(dropout, tmp_path):
    theirs = make("modernbert", "mlm", **{dropout: 0.3})
    assert_parity(loaded(theirs, tmp_path), theirs, "mlm", 1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh", "gelu_python"])
def test_activations_of_distilbert(activation, tmp_path):
    theirs = make("distilbert", "mlm", activation=activation)
    assert_parity(loaded(theirs, tmp_path), theirs, "mlm", 1e-5)


@pytest.mark.parametrize("case", UNTIED)
def test_question_answerers_embed(case, tmp_path):
    """What is behind the encoder is left."""
    theirs = make(case, "ForQuestionAnswering", id2label={0: "start", 1: "end"}, label2id={"start": 0, "end": 1})
    ours = loaded(theirs, tmp_path, head="embed")
    assert_parity(ours, theirs.base_model, "embed", 1e-5)
    assert checkpoint.open_checkpoint(tmp_path).head_name == "encoder"
    assert checkpoint.load(tmp_path, "classify", ["a", "b"]).classes == ("a", "b")


@pytest.mark.parametrize("kind", ["ForMultipleChoice", "ForNextSentencePrediction"])
def test_other_heads_are_left(kind, tmp_path):
    theirs = make("bert", kind)
    assert_parity(loaded(theirs, tmp_path, head="embed"), theirs.base_model, "embed", 1e-5)


@every_case
@pytest.mark.parametrize("head", ["mlm", "classify", "encoder"])
def test_tensors_tell_the_head_where_the_config_does_not(case, head, tmp_path):
    theirs = make(case, head)
    theirs.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for nothing in ({}, {"architectures": None}, {"architectures": []}):
        kept = {name: value for name, value in fields.items() if name != "architectures"} | nothing
        (tmp_path / "config.json").write_text(json.dumps(kept))
        found, truth = both(checkpoint.load(tmp_path), theirs, head)
        close(found[-1], truth[-1], 1e-5)


def test_tensors_tell_taggers_from_bodies_with_a_pooler(tmp_path):
    for kind, head in (("ForTokenClassification", "tag"), ("ForPreTraining", "mlm"), ("Model", "encoder")):
        make("bert", kind).save_pretrained(tmp_path)
        fields = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**fields, "architectures": None}))
        assert checkpoint.open_checkpoint(tmp_path).head_name == head


@pytest.mark.parametrize(("source", "trained"), [("Model", True), ("ForPreTraining", True), ("mlm", False)])
def test_a_pooler_that_came_along_learns_like_the_encoder(source, trained, tmp_path):
    make("bert", source).save_pretrained(tmp_path / "theirs")
    model = checkpoint.load(tmp_path / "theirs", "classify", ["a", "b"])
    checkpoint.save(model, tmp_path / "run")
    fields = json.loads((tmp_path / "run" / "config.json").read_text())
    later = Checkpoint(tmp_path, fields, {}).new()  # of a run that goes on
    for model in (model, with_dropout(model, 0.3), later):  # noqa: B020
        names = {id(p): name for name, p in model.named_parameters()}
        (optimizer,) = adamw_under_head(model, 1.0, 10.0)
        rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates == {n: 10.0 if n.startswith(("classifier.", "transform.")[: 2 - trained]) else 1.0 for n in rates}


def test_modernbert_windows_hide_what_is_far(tmp_path):
    """A change reaches 4 tokens farther with each local layer, and everything with a global one."""
    ours = loaded(make("modernbert", "encoder"), tmp_path, torch.float64)
    reached = []
    hooks = [block.register_forward_hook(lambda _, __, x: reached.append(x)) for block in ours.blocks]
    for block in ours.blocks:
        block.is_global = False  # or the first layer would show everything to everybody
    tokens, packing = packed(sequences([23]))
    ours(tokens, packing)
    tokens[11] = (tokens[11] + 1) % VOCAB
    ours(tokens, packing)
    for hook in hooks:
        hook.remove()
    for layer in range(2):
        differs = (reached[layer] != reached[len(ours.blocks) + layer]).any(1).nonzero().flatten().tolist()
        assert differs == list(range(11 - 4 * (layer + 1), 11 + 4 * (layer + 1) + 1))


# ---- files ---------------------------------------------------------------------------------------


@every_case
@every_head
@torch.no_grad()
def test_what_we_save_is_what_they_load(case, head, tmp_path):
    theirs = make(case, head)
    ours = loaded(theirs, tmp_path / "theirs", head=head)
    checkpoint.save(ours, tmp_path / "ours", pad_token_id=theirs.config.pad_token_id)
    auto = getattr(transformers, f"AutoModel{KINDS[head].removeprefix('Model')}")
    again, report = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    if case != "xlm-roberta":  # which is written as the RoBERTa that it is
        assert type(again) is type(theirs)
    assert all("pooler" in name for name in report["missing_keys"])  # of classifiers only, for us
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if name not in report["missing_keys"])
    close(both(ours, again, head)[1][-1], both(ours, theirs, head)[1][-1], 1e-6)

    back = checkpoint.load(tmp_path / "ours", head)
    assert type(back) is type(ours)
    assert back.config == ours.config
    assert all(torch.equal(p, back.get_parameter(name)) for name, p in ours.named_parameters())
    if head in ("classify", "tag"):
        assert again.config.id2label == theirs.config.id2label
        assert back.classes == ours.classes == ("bad", "fair", "good")


@every_case
def test_a_body_takes_any_head(case, tmp_path, caplog):
    """What another head has is left; a classifier that isn't there begins from random numbers, and that is logged."""
    theirs = make(case, "mlm")
    theirs.save_pretrained(tmp_path)
    found = checkpoint.load(tmp_path, "encoder").state_dict()
    for head in ("mlm", "embed"):
        state = checkpoint.load(tmp_path, head).encoder.state_dict()
        assert all(torch.equal(found[name], state[name]) for name in found)
    with pytest.raises(UserError, match=r"lacks .*'classifier"):
        checkpoint.load(tmp_path, "classify")
    torch.manual_seed(0)
    fresh = checkpoint.load(tmp_path, "classify", ["no", "yes"])
    assert fresh.classes == ("no", "yes")
    assert fresh.classifier.weight.shape[0] == 2
    assert abs(fresh.classifier.weight.std().item() / 0.02 - 1) < 0.5
    assert "classifier.weight" in caplog.text
    assert all(torch.equal(found[name], fresh.encoder.state_dict()[name]) for name in found)


def test_early_files_of_bert(tmp_path):
    """Google's own: gamma and beta, a second objective, the prefix left out or not, positions stored."""
    theirs = randomise(transformers.BertForPreTraining(transformers.BertConfig(**BERT_FIELDS)))
    ours = loaded(theirs, tmp_path)
    assert type(ours) is MaskedLM
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    renamed["bert.embeddings.position_ids"] = torch.arange(24)[None]
    renamed["cls.predictions.decoder.weight"] = renamed["bert.embeddings.word_embeddings.weight"].clone()
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file)
    again = checkpoint.load(tmp_path)
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in ours.named_parameters())
    pooler = checkpoint.load(tmp_path, "classify", "ab").transform.dense.weight
    assert torch.equal(pooler, theirs.bert.pooler.dense.weight)

    renamed["cls.predictions.decoder.weight"] += 1
    save_file(renamed, file)
    with pytest.raises(UserError, match=r"'cls.predictions.decoder.weight' should be tied"):
        checkpoint.load(tmp_path)
    del renamed["cls.predictions.decoder.weight"]
    save_file(renamed | {"bert.encoder.layer.0.adapter.weight": torch.ones(2)}, file)
    with pytest.raises(UserError, match=r"holds 'bert.encoder.layer.0.adapter.weight', which this"):
        checkpoint.load(tmp_path)
    del renamed["bert.encoder.layer.2.output.dense.bias"]
    save_file(renamed, file)
    with pytest.raises(UserError, match=r"lacks 'bert.encoder.layer.2.output.dense.bias', which this"):
        checkpoint.load(tmp_path)


# ---- config.json as it is found ------------------------------------------------------------------

BERT_BASE = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
ROBERTA_BASE = BERT_BASE | {
    "architectures": ["RobertaForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
DISTILBERT_BASE = {
    "activation": "gelu",
    "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "vocab_size": 30522,
}
MODERNBERT_BASE = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "vocab_size": 50368,
}
PUBLISHED = {
    "BERT": BERT_BASE,
    "RoBERTa": ROBERTA_BASE,
    "DistilBERT": DISTILBERT_BASE,
    "ModernBERT": MODERNBERT_BASE,
}


def config_of(fields):
    return checkpoint.Checkpoint(Path("model"), fields, {}).config


@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configs(fields):
    with torch.device("meta"):
        ours = MaskedLM(config_of(fields))
        config = transformers.AutoConfig.for_model(**fields)
        theirs = transformers.AutoModelForMaskedLM.from_config(config)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    written = checkpoint.describe(ours)
    assert written["model_type"] == fields["model_type"]
    assert written["architectures"] == fields["architectures"]
    assert config_of(written) == ours.config
    assert config_of(config.to_dict()) == ours.config  # as their newest version writes it


def test_a_window_counts_both_sides():
    assert config_of(MODERNBERT_BASE).window == 65


def test_dropout_survives():
    config = dataclasses.replace(
        config_of(BERT_BASE), num_layers=1, dropout=0.3, attention_dropout=0.2, classifier_dropout=0.4
    )
    with torch.device("meta"):
        model = SequenceClassifier(config, "ab")
    assert config_of(checkpoint.describe(model)) == config


@pytest.mark.parametrize(
    ("base", "change", "sentence"),
    [
        (BERT_BASE, {"hidden_act": "silu"}, "hidden_act='silu' is not supported, only 'gelu' or"),
        (ROBERTA_BASE, {"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'gelu'"),
        (BERT_BASE, {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not"),
        (BERT_BASE, {"is_decoder": True}, "is_decoder=True is not supported"),
        (BERT_BASE, {"tie_word_embeddings": 0}, "tie_word_embeddings=0 is not true or false"),
        (BERT_BASE, {"num_attention_heads": 7}, "width=768 is no multiple of num_heads=7"),
        (BERT_BASE, {"model_type": "albert"}, "model_type='albert' is not supported, only .*bert, roberta"),
        (DISTILBERT_BASE, {"activation": "quick_gelu"}, "activation='quick_gelu' is not supported"),
        (MODERNBERT_BASE, {"norm_bias": True}, "norm_bias=True is not supported"),
        (MODERNBERT_BASE, {"mlp_dropout": 1.5}, r"mlp_dropout=1.5 is not in \[0, 1\)"),
        (MODERNBERT_BASE, {"sliding_window": 128}, "sliding_window=128 is not supported, only 64"),
        (MODERNBERT_BASE, {"classifier_pooling": "max"}, "classifier_pooling='max' is not supported"),
        (
            MODERNBERT_BASE,
            {"layer_types": ["full_attention"] * 21 + ["sliding_attention"]},
            "layer_types=.* is not supported, only every so many",
        ),
        (
            MODERNBERT_BASE,
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
            "rope_type='yarn' is not supported",
        ),
        (MODERNBERT_BASE, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn' is not supported"),
    ],
    ids=str,
)
def test_what_we_lack_is_named(base, change, sentence):
    with pytest.raises(UserError, match=sentence):
        config_of(base | change)


def test_configs_that_no_family_has():
    with pytest.raises(TypeError, match="has no form in files"), torch.device("meta"):
        checkpoint.describe(BERT(BERTConfig(vocab_size=9, num_segments=0, pooler="tanh")))


# ---- real weights --------------------------------------------------------------------------------

SUBJECTS = (
    "The old ship",
    "A physicist",
    "My neighbour's cat",
    "Nobody",
    "Café Zürich",
    "The 3rd quarter",
    "She",
    "It",
)
DEEDS = ("sold seven apples", "fell asleep at noon", "explains general relativity", "wasn't worth £4", "lost again")
ENDINGS = (
    ".",
    " because it rained all night in the mountains.",
    "?!",
    " — or so they said, years later, to all",
    "",
)


@torch.no_grad()
def test_minilm_embeds_sentences_as_theirs():
    """From text to embedding, on both sides by their own tokenizers, 200 sentences."""
    folder = minilm()
    texts = [f"{who} {does}{end}" for who in SUBJECTS for does in DEEDS for end in ENDINGS]
    assert len(set(texts)) == 200
    tokenizer = load_tokenizer(folder)
    ids = [torch.tensor(tokenizer.wrap(text)[0]) for text in texts]
    ours = checkpoint.load(folder, "embed")(*packed(ids))

    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    hidden = theirs(**batch).last_hidden_state
    truth = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)
    assert (ours @ ours.T).fill_diagonal_(0).max() < 0.999  # nor are they all the same

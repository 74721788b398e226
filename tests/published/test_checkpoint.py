"""Checkpoints: every tensor accounted for, little memory, nothing run, one sentence for what cannot be read."""

import dataclasses
import json
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, gpt, gpt_config, packed, sequences

from minillm.bert import BERT
from minillm.errors import UserError
from minillm.gpt import GPT
from minillm.heads import SequenceClassifier
from minillm.layers import Llama3Scaling
from minillm.published import checkpoint
from minillm.published.checkpoint import Checkpoint

LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "num_kv_heads": 2, "mlp_width": 20}
GPT2 = {"positions": "learned", "bias": True}
WEIGHTS = "model.safetensors"


@pytest.fixture
def llama(tmp_path):
    """A folder with an untied Llama."""
    checkpoint.save(gpt(**LLAMA, tie_embeddings=False).float(), tmp_path)
    return tmp_path


def change_weights(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    tensors = edit(tensors) or tensors
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS)


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder, sentence, **options):
    with pytest.raises(UserError, match=sentence) as caught:
        checkpoint.load(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def same(first, second):
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- which form a model has in files -------------------------------------------------------------

SCALING = Llama3Scaling(8.0, 1.0, 4.0, 8)
FORMS = {
    "gpt2": GPT2,
    "gpt2 ": GPT2 | {"tie_embeddings": False, "dropout": 0.2, "attention_dropout": 0.1},
    "llama": LLAMA,
    "llama ": LLAMA | {"rope_scaling": SCALING, "head_dim": 6, "bias": True, "dropout": 0.2, "rope_theta": 1e6},
    "qwen2": LLAMA | {"qkv_bias": True},
    "qwen3": LLAMA | {"qk_norm": True, "head_dim": 6},
    "": {},
    "  ": {"rope_scaling": SCALING, "qkv_bias": True},
    "   ": LLAMA | {"qkv_bias": True, "qk_norm": True},
    "    ": LLAMA | {"norm": "layernorm"},
    "     ": GPT2 | {"mlp": "swiglu"},
    "      ": GPT2 | {"num_kv_heads": 2},
    "       ": GPT2 | {"qk_norm": True},
}


@pytest.mark.parametrize(("model_type", "choices"), FORMS.items(), ids=[f"{k.strip()} {v}" for k, v in FORMS.items()])
@pytest.mark.parametrize("head", ["lm", "classify"])
def test_a_model_comes_back_bit_for_bit(model_type, choices, head, tmp_path):
    model = gpt(**choices).float()
    if head == "classify":
        model = SequenceClassifier(model.config, ("no", "yes"))
    checkpoint.save(model, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields.get("model_type", "") == model_type.strip()
    back = checkpoint.load(tmp_path)
    assert type(back) is type(model)
    assert not back.training
    assert back.config == model.config
    assert same(back, model)
    assert getattr(back, "classes", None) == getattr(model, "classes", None)
    assert not list(tmp_path.glob("*.partial"))
    tokens, packing = packed(sequences((5, 3)))
    assert torch.equal(back(tokens, packing), model.eval()(tokens, packing))


def test_our_own_form_is_as_it_was(tmp_path):
    """A run folder of before there were families, and its names of tensors."""
    model = gpt().float()
    fields = {"architecture": "GPT", "vocab_size": 11, "max_seq_len": 16, "num_layers": 2, "width": 16, "num_heads": 4}
    fields |= {"num_kv_heads": 0, "mlp_width": 0, "positions": "rope", "rope_theta": 10000.0, "norm": "layernorm"}
    fields |= {"norm_eps": 1e-5, "mlp": "gelu", "bias": False, "tie_embeddings": True, "dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, tmp_path / WEIGHTS)
    back = checkpoint.load(tmp_path)
    assert back.config == model.config
    assert same(back, model)
    checkpoint.save(model, tmp_path / "again")
    assert load_file(tmp_path / "again" / WEIGHTS).keys() == load_file(tmp_path / WEIGHTS).keys()


def test_config_takes_more_entries(llama):
    model = checkpoint.load(llama)
    checkpoint.save(model, llama / "more", eos_token_id=[1, 2])
    assert json.loads((llama / "more" / "config.json").read_text())["eos_token_id"] == [1, 2]


# ---- dtype and shared parameters -----------------------------------------------------------------


def test_parameters_are_of_the_dtype_asked_for(tmp_path):
    model = gpt(**LLAMA).bfloat16()
    checkpoint.save(model, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        back = checkpoint.load(tmp_path, dtype=dtype)
        assert {p.dtype for p in back.parameters()} == {dtype}
        assert all(torch.equal(p, model.get_parameter(name).to(dtype)) for name, p in back.named_parameters())
        assert all(p.requires_grad and p.is_leaf for p in back.parameters())


def test_tied_parameters_stay_tied_and_are_stored_once(tmp_path):
    checkpoint.save(gpt(**LLAMA), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    back = checkpoint.load(tmp_path)
    assert back.output.weight is back.tokens.weight


def test_a_tied_parameter_may_be_stored_twice_but_not_with_two_values(tmp_path):
    model = gpt(**LLAMA).float()
    checkpoint.save(model, tmp_path)
    change_weights(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert same(checkpoint.load(tmp_path), model)
    change_weights(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1e-3}))
    refused(tmp_path, "'lm_head.weight' should be tied to another tensor, but has other values")


# ---- every tensor is accounted for ---------------------------------------------------------------

Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda t: t.pop(NORM), f"lacks '{NORM}', which this architecture needs"),
        (lambda t: [t.pop(n) for n in sorted(t)[:5]], "lacks '.*', '.*', '.*' and 2 more, which"),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[NORM]}),
            "holds 'model.layers.2.mlp.up_proj.weight'",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": t[NORM]}),
            "holds 'model.layers.0.self_attn.q_proj",
        ),
        (lambda t: t.update({"lora_A": t[NORM]}), "holds 'lora_A', which this architecture does not have"),
        (lambda t: t.update({Q: t[Q][:8]}), rf"'{Q}' has shape \(8, 16\), but this architecture needs \(16, 16\)"),
        (lambda t: t.update({Q: t[Q][0]}), rf"'{Q}' has shape \(16,\), but"),
        (
            lambda t: t.update({NORM: t[NORM].int(), Q: t[Q][:8]}),
            rf"'{Q}' has shape .*; '{NORM}' is of torch.int32, not",
        ),
        (lambda t: t[Q].view(-1)[3:4].fill_(float("nan")), f"'{Q}' holds NaN or infinite values"),
        (lambda t: t[NORM].fill_(float("nan")), f"'{NORM}' holds NaN or infinite values"),
        (lambda t: t[NORM][-1:].fill_(float("inf")), f"'{NORM}' holds NaN or infinite values"),
        (lambda t: t["lm_head.weight"][-1].fill_(-float("inf")), "'lm_head.weight' holds NaN or infinite values"),
        (lambda t: t.update({Q: t[Q].half() * 1e6}), f"'{Q}' holds NaN or infinite values"),
        (lambda t: t.update({NORM.removeprefix("model."): t[NORM]}), f"holds '(model.)?{NORM[6:]}' twice"),
    ],
)
def test_what_does_not_fit_is_named(llama, edit, sentence):
    change_weights(llama, lambda tensors: (edit(tensors), tensors)[1])
    refused(llama, sentence)


def test_queries_and_keys_of_swapped_sizes_do_not_slip_in(llama):
    """Together they would have the right number of rows."""
    K = Q.replace("q_proj", "k_proj")
    change_weights(llama, lambda t: t.update({Q: t[K], K: t[Q]}))
    refused(llama, rf"'{Q}' has shape \(8, 16\).*'{K}' has shape \(16, 16\)")


def test_a_transposed_matrix_is_of_another_shape(tmp_path):
    checkpoint.save(gpt(**GPT2), tmp_path)
    name = "transformer.h.0.mlp.c_fc.weight"
    change_weights(tmp_path, lambda t: t.update({name: t[name].T.contiguous()}))
    refused(tmp_path, rf"'{name}' has shape \(64, 16\), but this architecture needs \(16, 64\)")


def test_prefixes_may_be_left_out_and_buffers_are_no_weights(tmp_path):
    """As GPT-2's files on the hub are."""
    model = gpt(**GPT2).float()
    checkpoint.save(model, tmp_path)
    change_weights(tmp_path, lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})
    change_weights(tmp_path, lambda t: t.update({"h.0.attn.bias": torch.ones(1, 1, 16, 16).tril()}))
    assert same(checkpoint.load(tmp_path), model)


def test_shards(llama):
    model = checkpoint.load(llama)
    tensors = load_file(llama / WEIGHTS)
    (llama / WEIGHTS).unlink()
    names = sorted(tensors)
    halves = {"a-00001.safetensors": names[::2], "a-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, llama / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, part in halves.items() for n in part}}
    index_file = llama / "model.safetensors.index.json"
    index_file.write_text(json.dumps(index))
    assert same(checkpoint.load(llama), model)

    save_file({name: tensors[name] for name in names}, llama / "a-00002.safetensors")
    refused(llama, "a-00001.safetensors both hold")
    (llama / "a-00002.safetensors").unlink()
    refused(llama, r"cannot read .*a-00002\.safetensors")
    (llama / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {names[0]: "../a-00001.safetensors"}})
    )
    refused(llama, "names no files of this folder")
    index_file.write_text("{}")
    refused(llama, "names no files of this folder")


# ---- classifiers ---------------------------------------------------------------------------------


def test_a_new_classifier_is_asked_for_and_said(llama, caplog):
    refused(llama, "names no classes: it is no classifier yet", head="classify")
    model = checkpoint.load(llama, head="classify", classes=["no", "yes"])
    assert "new, from random numbers: classifier.weight" in caplog.text
    assert model.classes == ("no", "yes")
    base = checkpoint.load(llama)
    assert all(torch.equal(p, base.get_parameter(n)) for n, p in model.encoder.named_parameters())
    assert 0 < model.classifier.weight.std() < 0.1

    caplog.clear()
    checkpoint.save(model, llama / "trained")
    for classes in (None, ["no", "yes"]):
        assert same(checkpoint.load(llama / "trained", classes=classes), model)
    assert not caplog.text
    other = checkpoint.load(llama / "trained", classes=["yes", "no"])  # as many, but it would say the opposite
    assert "classifier.weight" in caplog.text
    assert not torch.equal(other.classifier.weight, model.classifier.weight)
    assert checkpoint.load(llama / "trained", classes=["a", "b", "c"]).classifier.weight.shape == (3, 16)


def test_a_new_head_that_fills_in_masks_is_asked_for(tmp_path, caplog):
    """As of an encoder that embeds; one that is there is taken over."""
    encoder = BERT(bert_config())
    checkpoint.save(encoder, tmp_path / "bare")
    refused(tmp_path / "bare", "lacks 'cls.predictions", head="mlm")
    model = checkpoint.open_checkpoint(tmp_path / "bare").load("mlm", may_be_new=True)
    assert "new, from random numbers: " in caplog.text
    assert same(model.encoder, encoder)
    caplog.clear()
    checkpoint.save(model, tmp_path / "whole")
    assert same(checkpoint.open_checkpoint(tmp_path / "whole").load("mlm", may_be_new=True), model)
    assert not caplog.text


def test_a_classifier_may_lose_its_head(tmp_path):
    model = SequenceClassifier(gpt_config(**LLAMA), ("no", "yes"))
    checkpoint.save(model, tmp_path)
    assert same(checkpoint.load(tmp_path, head="lm"), model.encoder)


def test_heads_are_those_of_the_family(llama):
    refused(llama, "this is a GPT, and the head 'mlm' takes a BERT", head="mlm")
    change_config(llama, architectures=["LlamaForQuestionAnswering"])
    refused(llama, "architecture LlamaForQuestionAnswering is not supported, only LlamaForCausalLM, LlamaModel, Llama")
    assert isinstance(checkpoint.load(llama, head="lm"), GPT)
    change_weights(llama, lambda t: t.update({"score.weight": torch.ones(2, 16)}))
    change_config(llama, architectures=None)
    assert checkpoint.open_checkpoint(llama).head_name == "classify"
    change_weights(llama, lambda t: {name: t[name] for name in t if name != "score.weight"})
    for nothing in (None, []):
        change_config(llama, architectures=nothing)
        assert isinstance(checkpoint.load(llama), GPT)
    for nonsense in (3, [["LlamaForCausalLM"]], {"a": 1}):
        change_config(llama, architectures=nonsense)
        refused(llama, "config.json: architecture .* is not supported")


def test_classes_are_in_the_order_of_the_outputs(tmp_path):
    model = SequenceClassifier(gpt_config(**LLAMA), [str(i) for i in range(12)])
    checkpoint.save(model, tmp_path)
    assert checkpoint.load(tmp_path).classes == model.classes
    change_config(tmp_path, id2label=["no", "yes"])
    refused(tmp_path, "id2label is no table of classes")
    for names in ({"0": "a", "1": "a"}, {"0": "a", "7": "b"}, {"0": "a", "00": "b"}, {"0": None, "1": "a"}):
        change_config(tmp_path, id2label=names)
        refused(tmp_path, "id2label does not give the numbers from 0 on a name of their own each")
        assert checkpoint.load(tmp_path, head="lm")  # which has no classes
        assert checkpoint.load(tmp_path, head="classify", classes=["x", "y"]).classes == ("x", "y")
    change_config(tmp_path, id2label={str(i): i for i in range(12)})  # numbers for names
    assert checkpoint.load(tmp_path).classes == model.classes
    change_config(tmp_path, id2label={"0": "a", "1": "b"}, problem_type="regression")
    refused(tmp_path, "problem_type='regression' is not supported")
    assert checkpoint.load(tmp_path, head="classify", classes=["x", "y"])
    change_config(tmp_path, id2label=None, problem_type=None)
    assert checkpoint.load(tmp_path).classes == tuple(f"LABEL_{i}" for i in range(12))  # as in transformers
    checkpoint.save(gpt(**LLAMA).float(), tmp_path)
    refused(tmp_path, "names no classes: it is no classifier yet", head="classify")


# ---- memory --------------------------------------------------------------------------------------


class Watched(Mapping):
    """Tensors, of which no two may be alive at a time."""

    def __init__(self, tensors):
        self.tensors, self.alive, self.reads = tensors, [], []

    def __getitem__(self, name):
        assert all(ref() is None for ref in self.alive), f"{self.reads[-1]} is still held while {name} is read"
        self.reads.append(name)
        tensor = self.tensors[name].clone()
        self.alive = [weakref.ref(tensor)]
        return tensor

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


@pytest.mark.parametrize("choices", [LLAMA, GPT2, {}], ids=["llama", "gpt2", "own"])
def test_one_tensor_at_a_time_each_once(choices, tmp_path):
    model = gpt(**choices).float()
    checkpoint.save(model, tmp_path)
    saved = checkpoint.open_checkpoint(tmp_path)
    watched = Watched(load_file(tmp_path / WEIGHTS))
    assert same(dataclasses.replace(saved, tensors=watched).load(), model)
    assert sorted(watched.reads) == sorted(watched.tensors)


MEASURE = """
import re, sys
from pathlib import Path
from minillm.published import checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

checkpoint.load(Path(sys.argv[1]))  # a tiny one, so that everything is imported
before = peak()
model = checkpoint.load(Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status")
def test_peak_memory_is_the_model_and_a_tensor(llama):
    model = GPT(gpt_config(vocab_size=2000, width=512, num_layers=8, norm="rmsnorm", mlp="swiglu"))
    checkpoint.save(model, llama / "large")
    tensors = [p.numel() * 4 for p in model.parameters()]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEASURE, str(llama), str(llama / "large")]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    peak = int(found.stdout) * 1024
    # Between them: half a model more, and it would be a copy of the file or of the model.
    assert sum(tensors) < peak < sum(tensors) + max(tensors) + 16 * 2**20


# ---- what cannot be read -------------------------------------------------------------------------


def test_pickles_are_refused(llama, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    (llama / WEIGHTS).unlink()
    refused(llama, "has no weights: there is no model.safetensors")
    for name in ("pytorch_model.bin", "consolidated.00.pth", "weights.pt"):
        (llama / name).write_bytes(b"\x80\x04")
        refused(llama, f"has its weights only as a pickle .{name}.*can run any code.*convert it with transformers")
        (llama / name).unlink()


def test_damaged_weights(llama):
    whole = (llama / WEIGHTS).read_bytes()
    for damaged in (b"", whole[:4], whole[:100], whole[:-1], whole + b"x", b"\xff" * 100, whole[:8] + b"?" + whole[9:]):
        (llama / WEIGHTS).write_bytes(damaged)
        refused(llama, r"cannot read .*model\.safetensors: .*; if it is damaged, copy or download it again")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "holds no model: it has no config.json"),
        (b"", r"cannot read .*config\.json: Expecting value"),
        (b'{"model_type": "llama", ', r"cannot read .*config\.json"),
        (b"\xff\xfe", r"cannot read .*config\.json"),
        (b"[]", r"config\.json holds no JSON object"),
        (b"{}", r"config\.json: model_type=None is not supported, only gpt2, llama, mistral, qwen2, qwen3"),
        (b'{"model_type": "mamba"}', "model_type='mamba' is not supported, only gpt2, llama, "),
        (b'{"model_type": ["llama"]}', r"model_type=\['llama'\] is not supported"),
        (b'{"model_type": "llama"}', "config.json: 'vocab_size' is missing"),
        (b'{"architecture": "RNN"}', "config.json: architecture"),
        (b'{"architecture": "GPT"}', "config.json: .*'vocab_size'"),
        (b'{"architecture": "GPT", "colour": 1}', "config.json: 'colour' is unknown"),
        (b'{"architecture": "GPT", "vocab_size": 10.5}', "config.json: vocab_size=10.5 is no whole number"),
        (b'{"architecture": "GPT", "vocab_size": 5, "max_seq_len": 5, "bias": "x"}', "bias='x' is not true or false"),
        (b"[" * 100_000, "cannot read .*config.json"),
    ],
)
def test_spoiled_configs(llama, content, sentence):
    (llama / "config.json").unlink() if content is None else (llama / "config.json").write_bytes(content)
    refused(llama, sentence)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rms_norm_eps": -1}, "rms_norm_eps=-1.0 is not positive"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is not positive"),
        ({"rms_norm_eps": 10**400}, "too large"),
        ({"rope_theta": 0}, "rope_theta=0.0 is not positive"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 is not at least 1"),
        ({"head_dim": 0}, "head_dim=0 is not at least 1"),
        ({"intermediate_size": 0}, "intermediate_size=0 is not at least 1"),
        ({"vocab_size": 10**30}, "vocab_size=1.* is too large"),
        ({"vocab_size": 2**31 - 1, "hidden_size": 2**20}, "there is no memory for a model of these sizes"),
        ({"num_hidden_layers": 10**6}, "1000000 layers, but there are only"),
    ],
)
def test_sizes_that_cannot_be(llama, fields, sentence):
    change_config(llama, **fields)
    refused(llama, f"config.json: .*{sentence}")


def test_code_that_comes_with_a_model_is_never_run(llama):
    (llama / "modeling_evil.py").write_text("raise SystemExit('run!')")
    model = checkpoint.load(llama)
    change_config(llama, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, trust_remote_code=True)
    assert same(checkpoint.load(llama), model)
    change_config(llama, model_type="evil")
    refused(llama, "model_type='evil' is not supported")


# ---- names of models -----------------------------------------------------------------------------


def test_names_of_models(llama, monkeypatch):
    assert checkpoint.resolve(llama) == checkpoint.resolve(str(llama)) == llama
    (llama / "model.gguf").touch()
    assert checkpoint.resolve(llama / "model.gguf") == llama / "model.gguf"
    for name, sentence in (
        (llama / WEIGHTS, "is one file; name the folder that it lies in"),
        (llama / "nowhere", "there is no folder or .gguf file .*nowhere, and it is no id of the hub"),
        ("model.gguf", "there is no folder or .gguf file model.gguf"),
        ("../a/b", "there is no folder"),
        ("runs/nowhere", "there is no folder runs/nowhere$"),  # and no word of the hub, which nobody meant
    ):
        with pytest.raises(UserError, match=sentence):
            checkpoint.resolve(name)


def test_downloads(llama, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(llama)

    monkeypatch.setattr(hub, "snapshot_download", download)
    for name in ("gpt2", "owner/some-model_1.5"):
        assert checkpoint.resolve(name) == llama
        assert asked["name"] == name
    files = ["model.safetensors", "config.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    unwanted = [
        "pytorch_model.bin",
        "model.py",
        "onnx/config.json",
        "original/a.safetensors",
        "2_Dense/pytorch_model.bin",
    ]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(hub.utils.filter_repo_objects([*files, *unwanted], **patterns)) == files

    def fail(error):
        def download(*_, **__):
            raise error

        monkeypatch.setattr(hub, "snapshot_download", download)
        with pytest.raises(
            UserError, match=r"there is no folder owner/name, and downloading it .* failed: .+"
        ) as caught:
            checkpoint.resolve("owner/name")
        assert "\n" not in str(caught.value)

    fail(hub.errors.LocalEntryNotFoundError("not found\nand not online"))
    fail(hub.errors.HFValidationError("no such name"))
    fail(ConnectionError("unreachable"))
    fail(OSError())


def test_without_the_extra_the_hub_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"owner/name, and downloading .* needs .*: pip install -e '\.\[hub\]'"):
        checkpoint.resolve("owner/name")


def test_checkpoint_is_cheap_to_open(llama):
    """The config is known before any tensor is read: a prompt that is too long is refused at once."""
    saved = Checkpoint(llama, json.loads((llama / "config.json").read_text()), {})
    assert saved.config.max_seq_len == 16
    assert saved.head_name == "lm"

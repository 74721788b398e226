"""Adapters in peft's layout: peft computes with ours what we do, and we merge its own as it does."""

import json
import warnings

import pytest
import torch
from parity import close, padded, randomise
from safetensors.torch import load_file, save_file
from tiny import gpt, packed, sequences

from minillm import lora
from minillm.errors import UserError
from minillm.published import adapters, checkpoint

transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SIZES | {"intermediate_size": 24, "num_key_value_heads": 2, "pad_token_id": 0}
BERT = SIZES | {"intermediate_size": 24, "max_position_embeddings": 16, "num_labels": 3}
GPT2 = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
DISTIL = {"vocab_size": 11, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 16}
MODERN = SIZES | {"intermediate_size": 24, "num_labels": 3, "pad_token_id": 0, "local_attention": 4}
MODELS = {  # class of transformers, its config, what peft calls the task
    "gpt2": ("GPT2LMHeadModel", GPT2, "CAUSAL_LM"),
    "llama": ("LlamaForCausalLM", LLAMA, "CAUSAL_LM"),
    "qwen2": ("Qwen2ForCausalLM", LLAMA, "CAUSAL_LM"),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 8}, "CAUSAL_LM"),
    "mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": None}, "CAUSAL_LM"),
    "llama, classes": ("LlamaForSequenceClassification", LLAMA | {"num_labels": 3}, "SEQ_CLS"),
    "gpt2, classes": ("GPT2ForSequenceClassification", GPT2 | {"num_labels": 3}, "SEQ_CLS"),
    "bert": ("BertForSequenceClassification", BERT, "SEQ_CLS"),
    "bert, tags": ("BertForTokenClassification", BERT, "TOKEN_CLS"),
    "bert, words": ("BertForMaskedLM", BERT, None),
    "roberta": ("RobertaForSequenceClassification", BERT | {"pad_token_id": 1, "type_vocab_size": 1}, "SEQ_CLS"),
    "distilbert": ("DistilBertForSequenceClassification", DISTIL | {"num_labels": 3}, "SEQ_CLS"),
    "modernbert": ("ModernBertForSequenceClassification", MODERN, "SEQ_CLS"),
}
TEXTS = [2 + text for text in sequences((5, 1, 7), high=9)]  # without the tokens that theirs pad with
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


def new(name):
    kind, sizes, _ = MODELS[name]
    kind = getattr(transformers, kind)
    torch.manual_seed(0)
    return randomise(kind(kind.config_class(**sizes)))


@torch.no_grad()
def theirs_of(model):
    batch = padded(TEXTS)
    logits = model(**batch).logits
    return logits[batch["attention_mask"].bool()] if logits.ndim == 3 else logits


@torch.no_grad()
def ours_of(model):
    found = model(*packed(TEXTS))
    return model.logits(found) if hasattr(model, "logits") else found


def trained(folder, head=None):
    """Ours, with pairs and whatever else learns away from where they began."""
    model = lora.adapted(checkpoint.load(folder, head), rank=3)
    for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        generator = torch.Generator().manual_seed(i)
        parameter.data += torch.randn(parameter.shape, generator=generator) / 10
    return model


@every_model
def test_peft_computes_with_ours_what_we_do(name, peft, tmp_path):
    new(name).save_pretrained(tmp_path / "base")
    ours = trained(tmp_path / "base")
    adapters.save(ours, tmp_path / "adapter", "some/model")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(new(name), tmp_path / "adapter")
    assert theirs.peft_config["default"].base_model_name_or_path == "some/model"
    assert (theirs_of(theirs) - theirs_of(new(name))).abs().max() > 0.05
    close(ours_of(ours), theirs_of(theirs), 1e-5)


@every_model
def test_what_peft_saved_is_merged_as_it_merges(name, peft, tmp_path):
    """With a pair beside every linear layer, of which some of ours are several, and in each of its ways to scale."""
    new(name).save_pretrained(tmp_path / "base")
    options = {"target_modules": "all-linear", "r": 3, "lora_alpha": 5, "init_lora_weights": False}
    options["exclude_modules"] = r".*(classifier|score).*"  # those learn whole
    config = peft.LoraConfig(
        task_type=MODELS[name][2], use_rslora=name != "bert", fan_in_fan_out="gpt2" in name, **options
    )
    theirs = peft.get_peft_model(new(name), config).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape) / 10
    theirs.save_pretrained(tmp_path / "adapter")
    merged = adapters.merged(tmp_path / "adapter", checkpoint.open_checkpoint(tmp_path / "base"))
    assert (theirs_of(theirs) - theirs_of(new(name))).abs().max() > 0.05
    close(ours_of(merged), theirs_of(theirs), 1e-5)
    checkpoint.save(merged, tmp_path / "merged")
    whole = type(new(name)).from_pretrained(tmp_path / "merged").eval()
    whole.config.pad_token_id = theirs.config.pad_token_id
    close(theirs_of(whole), theirs_of(theirs), 1e-5)


@every_model
def test_ours_merges_back_to_the_bit(name, tmp_path):
    """Also onto a checkpoint that has neither the classifier nor a name for its model."""
    theirs = new(name)
    (theirs if MODELS[name][2] != "SEQ_CLS" else theirs.base_model).save_pretrained(tmp_path / "bare")
    theirs.save_pretrained(tmp_path / "base")
    ours = trained(tmp_path / "base")
    adapters.save(ours, tmp_path / "adapter", None)
    base = checkpoint.open_checkpoint(tmp_path / "bare")
    merged = adapters.merged(tmp_path / "adapter", base)
    expected = dict(lora.merged(ours).named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in merged.named_parameters())
    if hasattr(ours, "classes"):
        assert merged.classes == ("LABEL_0", "LABEL_1", "LABEL_2")
        assert adapters.merged(tmp_path / "adapter", base, ["x", "y", "z"]).classes == ("x", "y", "z")
        with pytest.raises(UserError, match="has 3 outputs, but there are 2 names"):
            adapters.merged(tmp_path / "adapter", base, ["x", "y"])


def test_our_own_models_have_adapters_too(tmp_path):
    checkpoint.save(gpt(mlp="gelu-erf").float(), tmp_path / "base")
    ours = trained(tmp_path / "base")
    adapters.save(ours, tmp_path / "adapter", None)
    merged = adapters.merged(tmp_path / "adapter", checkpoint.open_checkpoint(tmp_path / "base"))
    close(ours_of(merged), ours_of(ours), 1e-5)


@pytest.fixture
def adapter(tmp_path):
    new("llama").save_pretrained(tmp_path / "base")
    adapters.save(trained(tmp_path / "base"), tmp_path / "adapter", None)
    return tmp_path / "adapter"


def merge(adapter):
    return adapters.merged(adapter, checkpoint.open_checkpoint(adapter.parent / "base"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported, only 'LORA'"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"use_dora": True}, "use_dora is set, which is a LoRA that cannot be merged here"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is set"),
        ({"lora_alpha": None}, "'lora_alpha' is missing"),
    ],
)
def test_what_is_no_plain_lora_is_refused(adapter, change, sentence):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=sentence):
        merge(adapter)


LAYER = "base_model.model.model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({f"{LAYER}.lora_A.weight": None}, "up_proj.lora_B.weight', beside which .* has no weight"),
        ({f"{LAYER}s.lora_A.weight": torch.ones(3, 16)}, "up_projs.lora_A.weight', beside which"),
        ({f"{LAYER}.bias": torch.ones(24)}, "up_proj.bias', which this architecture does not have"),
        ({f"{LAYER}.lora_A.weight": torch.ones(3, 15)}, "a pair of shapes .* not for a weight of"),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 16)}, "a pair of shapes .* not for a weight of"),
        ({f"{LAYER}.lora_A.weight": torch.full((3, 16), torch.nan)}, "up_proj holds NaN"),
    ],
)
def test_every_tensor_is_accounted_for(adapter, change, sentence):
    path = adapter / "adapter_model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(UserError, match=sentence):
        merge(adapter)

"""GPT-2, Llama, Mistral, Qwen2 and Qwen3 against transformers: values, gradients, files in both directions."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from parity import LENGTHS, assert_parity, assert_round_trip, close, exact, loaded, padded, randomise
from tiny import VOCAB, packed, sequences

from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.heads import SequenceClassifier, TokenClassifier
from minillm.layers import Llama3Scaling, RopeScaling, YarnScaling, rope
from minillm.published import checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is not installed; pip install transformers")

THETA = 500.0
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
RELATIVE = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
GPT2 = {"vocab_size": VOCAB, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 20}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
SCALED = Llama3Scaling(8.0, 1.0, 4.0, 40)
CASES = {
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", GPT2 | {"tie_word_embeddings": False}),
    "gpt2, default mlp": ("GPT2", GPT2 | {"n_inner": None}),
    "gpt2, relu": ("GPT2", GPT2 | {"activation_function": "relu"}),
    "gpt2, exact gelu": ("GPT2", GPT2 | {"activation_function": "gelu"}),
    "gpt2, dropouts": ("GPT2", GPT2 | {"embd_pdrop": 0.0, "resid_pdrop": 0.2, "attn_pdrop": 0.3}),
    "llama 2": ("Llama", RELATIVE | {"num_key_value_heads": 4}),
    "llama 3.1": ("Llama", RELATIVE | {"rope_parameters": {"rope_theta": THETA, **LLAMA3}}),
    "llama 3.2": (
        "Llama",
        RELATIVE | {"rope_parameters": {"rope_theta": THETA, **LLAMA3, "factor": 32.0}, "tie_word_embeddings": True},
    ),
    "smollm2": ("Llama", RELATIVE | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, biases": ("Llama", RELATIVE | {"attention_bias": True, "mlp_bias": True}),
    "llama, biases of attention": ("Llama", RELATIVE | {"attention_bias": True}),
    "llama, own head dim": ("Llama", RELATIVE | {"head_dim": 10}),
    "mistral": ("Mistral", RELATIVE | {"sliding_window": None}),
    "mistral, window": ("Mistral", RELATIVE | {"sliding_window": 7, "head_dim": 10}),
    "qwen2": ("Qwen2", RELATIVE),
    "qwen2, windows": ("Qwen2", RELATIVE | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen2.5, tied": ("Qwen2", RELATIVE | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", RELATIVE | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, biases": ("Qwen3", RELATIVE | {"head_dim": 6, "attention_bias": True}),
    "qwen3, untied": ("Qwen3", RELATIVE | {"head_dim": 6}),
}
every_case = pytest.mark.parametrize(("name", "fields"), CASES.values(), ids=CASES)


def make(name, fields, kind="LMHeadModel"):
    """A model of transformers with random weights; `kind` is the end of its class's name."""
    config = getattr(transformers, f"{name}Config")(**fields)
    if kind == "LMHeadModel" and name != "GPT2":
        kind = "ForCausalLM"
    return randomise(getattr(transformers, f"{name}{kind}")(config))


def speeds(fields):
    """Radians a token of each pair, by the definition in plain numbers; None where nothing turns."""
    if "rope_parameters" not in fields:
        return None
    rope, width = fields["rope_parameters"], fields.get("head_dim") or fields["hidden_size"] // 4
    plain = [rope["rope_theta"] ** (-i / width) for i in range(0, width, 2)]
    if rope["rope_type"] == "default":
        return torch.tensor(plain, dtype=torch.float64)
    low, high, context = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    scaled = []
    for speed in plain:
        wavelength = 2 * math.pi / speed
        if wavelength < context / high:
            scaled.append(speed)
        elif wavelength > context / low:
            scaled.append(speed / rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * speed / rope["factor"] + smooth * speed)
    return torch.tensor(scaled, dtype=torch.float64)


# ---- values and gradients ------------------------------------------------------------------------


@every_case
def test_float32(name, fields, tmp_path):
    theirs = make(name, fields)
    assert_parity(loaded(theirs, tmp_path), theirs, 1e-5)


@every_case
def test_float64(name, fields, tmp_path):
    theirs = exact(make(name, fields), speeds(fields))
    assert_parity(loaded(theirs, tmp_path, torch.float64), theirs, 1e-10)


@every_case
def test_what_we_save_is_what_they_load(name, fields, tmp_path):
    theirs = make(name, fields)
    assert_round_trip(loaded(theirs, tmp_path / "theirs"), theirs, tmp_path / "ours")


@every_case
def test_classifiers(name, fields, tmp_path):
    labels = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
    theirs = make(name, fields | labels | {"pad_token_id": VOCAB - 1}, "ForSequenceClassification")
    ours = loaded(theirs, tmp_path / "theirs")
    assert isinstance(ours, SequenceClassifier)
    assert ours.classes == ("bad", "fair", "good")
    parts = [part % (VOCAB - 1) for part in sequences(LENGTHS)]
    batch = padded(parts)
    batch["input_ids"][batch["attention_mask"] == 0] = VOCAB - 1  # theirs looks for the last that isn't padding
    with torch.no_grad():
        truth = theirs(**batch).logits
        close(ours(*packed(parts)), truth, 1e-5)
        checkpoint.save(ours, tmp_path / "ours", pad_token_id=VOCAB - 1)
        again = type(theirs).from_pretrained(tmp_path / "ours")
        assert again.config.id2label == theirs.config.id2label
        close(again(**batch).logits, truth, 1e-6)


@pytest.mark.parametrize("case", ["gpt2", "llama 3.2", "mistral", "qwen2, windows", "qwen3, untied"])
def test_taggers(case, tmp_path):
    """Values, gradients and files; and with a class of the whole, which theirs leaves out."""
    name, fields = CASES[case]
    labels = {"id2label": {0: "O", 1: "B-x", 2: "I-x"}, "label2id": {"O": 0, "B-x": 1, "I-x": 2}}
    theirs = make(name, fields | labels, "ForTokenClassification")
    ours = loaded(theirs, tmp_path / "theirs")
    assert isinstance(ours, TokenClassifier)
    assert ours.classes == ("O", "B-x", "I-x")
    assert_parity(ours, theirs, 1e-5)
    assert_round_trip(ours, theirs, tmp_path / "ours")
    both = checkpoint.load(tmp_path / "ours", classes=ours.classes, sequence_classes=("a", "b"))
    checkpoint.save(both, tmp_path / "both")
    again = checkpoint.load(tmp_path / "both")
    assert again.sequence_classes == ("a", "b")
    assert torch.equal(again.sequence_classifier.weight, both.sequence_classifier.weight)
    batch = padded(sequences(LENGTHS))
    with torch.no_grad():
        close(type(theirs).from_pretrained(tmp_path / "both")(**batch).logits, theirs(**batch).logits, 1e-6)


SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},  # nothing changes within max_position_embeddings
    "llama 3": LLAMA3 | {"original_max_position_embeddings": 200, "low_freq_factor": 2.0},
    "llama 3, context of the model": {name: LLAMA3[name] for name in LLAMA3 if not name.startswith("original")},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 200},
    "yarn, context of the model": {"rope_type": "yarn", "factor": 8.0},
    "yarn, no steps": {"rope_type": "yarn", "factor": 2.5, "beta_fast": 16, "beta_slow": 0.5, "truncate": False}
    | {"original_max_position_embeddings": 1000},
    "yarn, no scale": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0},
    "yarn, deepseek": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.8, "mscale_all_dim": 0.4},
    "yarn, half of deepseek": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.8},
    "yarn, everything within": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2},
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_scaled_rope(scaling, tmp_path):
    """Values, gradients and files; once in rope_parameters, once in an older file's rope_scaling."""
    theirs = make("Llama", RELATIVE | {"head_dim": 16, "rope_parameters": {"rope_theta": THETA, **scaling}})
    ours = loaded(theirs, tmp_path / "theirs")
    assert_parity(ours, theirs, 1e-5)
    assert_round_trip(ours, theirs, tmp_path / "ours")
    fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del fields["rope_parameters"]
    early = {("type" if name == "rope_type" else name): value for name, value in scaling.items()}
    assert config_of(fields | {"rope_theta": THETA, "rope_scaling": early}) == ours.config
    if scaling["rope_type"] != "dynamic":
        plain = dataclasses.replace(ours.config, rope_scaling=None)
        tokens, packing = packed(sequences([14]))
        other = GPT(plain)
        other.load_state_dict(ours.state_dict())
        assert (other(tokens, packing) - ours(tokens, packing)).abs().max() > 0.01  # so that it would be seen


@pytest.mark.parametrize("kind", ["llama 3", "yarn"])
def test_the_context_before_may_stand_outside(kind, tmp_path):
    """And counts more there, as in transformers."""
    theirs = make("Llama", RELATIVE | {"rope_parameters": {"rope_theta": THETA, **SCALINGS[kind]}})
    theirs.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "original_max_position_embeddings": 7}))
    ours, parts = checkpoint.load(tmp_path), sequences([14])
    assert ours.config.rope_scaling.original_max_seq_len == 7
    logits = transformers.LlamaForCausalLM.from_pretrained(tmp_path)(parts[0][None]).logits[0]
    close(ours.logits(ours(*packed(parts))), logits, 1e-5)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_scaling_survives_in_our_own_files(kind, tmp_path):
    scaling = {"linear": RopeScaling(3.0), "llama3": SCALED, "yarn": YarnScaling(4.0, 9, magnitude=1.5)}[kind]
    model = GPT(GPTConfig(vocab_size=VOCAB, max_seq_len=16, rope_scaling=scaling, num_layers=1, width=16, num_heads=2))
    checkpoint.save(model, tmp_path)
    assert "architecture" in json.loads((tmp_path / "config.json").read_text())
    assert checkpoint.load(tmp_path).config == model.config


@pytest.mark.parametrize(
    ("name", "fields"), [CASES["mistral, window"], CASES["qwen2, windows"]], ids=["mistral", "qwen2"]
)
def test_texts_end_where_a_window_would_hide_something(name, fields, tmp_path):
    theirs = make(name, fields)
    ours = loaded(theirs, tmp_path)
    assert ours.config.max_seq_len == 7
    parts = sequences([7])
    logits = theirs(parts[0][None]).logits[0]
    close(ours.logits(ours(*packed(parts))), logits, 1e-5)
    (tokens,) = sequences([8])
    longer = make(name, fields | {"sliding_window": 8})
    assert not torch.allclose(theirs(tokens[None]).logits[0, -1], longer(tokens[None]).logits[0, -1], atol=1e-4)
    with pytest.raises(ValueError, match="a sequence has 8 tokens but max_seq_len=7"):
        ours(*packed([tokens]))


@pytest.mark.parametrize(
    ("name", "more"),
    [("Mistral", {}), ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1})],
    ids=["mistral", "qwen2"],
)
def test_a_window_is_there_where_files_name_none(name, more):
    """But for null, as in transformers."""
    fields = RELATIVE | more | {"model_type": name.lower(), "max_position_embeddings": 9000}
    theirs = getattr(transformers, f"{name}Config")(**fields)
    assert theirs.sliding_window == config_of(fields).max_seq_len == 4096
    assert config_of(fields | {"sliding_window": None}).max_seq_len == 9000


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_turns_as_theirs(factor):
    fields = LLAMA3 | {"rope_theta": 500_000.0, "factor": factor, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(hidden_size=4096, num_attention_heads=32, rope_parameters=fields)
    theirs, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    cos, sin = rope(torch.ones(1), 128, 500_000.0, torch.float64, Llama3Scaling(factor, 1.0, 4.0, 8192))
    angles = torch.atan2(sin, cos)[0, 0]
    torch.testing.assert_close(angles.float(), theirs, rtol=1e-5, atol=0)
    assert (angles[-1] * factor / 500_000.0 ** (-126 / 128)).item() == pytest.approx(1)
    assert angles[0] == 1


# ---- config.json as it is found ------------------------------------------------------------------

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}
LLAMA32 = SMOLLM2 | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = QWEN25 | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "sliding_window": None,
}
GPT2_124M = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
PUBLISHED = {
    "GPT-2": (GPT2_124M, 124_439_808),
    "SmolLM2-135M": (SMOLLM2, 134_515_008),
    "Llama-3.2-1B": (LLAMA32, 1_235_814_400),
    "Qwen2.5-0.5B": (QWEN25, 494_032_768),
    "Qwen3-0.6B": (QWEN3, 596_049_920),
}


def config_of(fields):
    return checkpoint.Checkpoint(Path("model"), fields, {}).config


@pytest.mark.parametrize(("fields", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_configs(fields, parameters):
    config = config_of(fields)
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    written = checkpoint.describe(model)
    assert written["model_type"] == fields["model_type"]
    assert written["architectures"] == fields["architectures"]
    assert config_of(written) == config


@pytest.mark.parametrize(
    ("base", "change", "sentence"),
    [
        (
            GPT2_124M,
            {"activation_function": "quick_gelu"},
            "activation_function='quick_gelu' is not supported, only 'ge",
        ),
        (GPT2_124M, {"activation_function": ["relu"]}, r"activation_function=\['relu'\] is not supported"),
        (GPT2_124M, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        (GPT2_124M, {"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        (GPT2_124M, {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        (GPT2_124M, {"embd_pdrop": 1.0}, r"embd_pdrop=1.0 is not in \[0, 1\)"),
        (GPT2_124M, {"resid_pdrop": "0.1"}, "resid_pdrop='0.1' is no number"),
        (GPT2_124M, {"n_layer": None}, "'n_layer' is missing"),
        (GPT2_124M, {"n_layer": "12"}, "n_layer='12' is no whole number"),
        (GPT2_124M, {"n_layer": 12.0}, "n_layer=12.0 is no whole number"),
        (GPT2_124M, {"n_head": 7}, "width=768 is no multiple of num_heads=7"),
        (LLAMA32, {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        (LLAMA32, {"mlp_bias": True}, "mlp_bias=True is not supported without attention_bias=True"),
        (LLAMA32, {"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention' is not supported"),
        (LLAMA32, {"mlp_bias": 1}, "mlp_bias=1 is not true or false"),
        (LLAMA32, {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type='longrope' is not supported, only"),
        (LLAMA32, {"rope_scaling": {"rope_type": "mrope"}}, "rope_type='mrope' is not supported, only 'default' or"),
        (LLAMA32, {"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
        (LLAMA32, {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor=0.5 must be at least 1"),
        (LLAMA32, {"rope_scaling": {"type": "dynamic", "factor": "2"}}, "factor='2' is no number"),
        (LLAMA32, {"rope_scaling": {"type": "yarn", "factor": None}}, "'factor' is missing"),
        (LLAMA32, {"rope_scaling": {"type": "yarn", "factor": float("inf")}}, "factor=inf must be at least 1"),
        (LLAMA32, {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": -1}}, "magnitude=-1.0 must be"),
        (LLAMA32, {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope_theta=1.0 above 1"),
        (LLAMA32, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        (LLAMA32, {"rope_scaling": LLAMA3 | {"factor": None}}, "'factor' is missing"),
        (LLAMA32, {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor=4.0 is not below"),
        (LLAMA32, {"rope_scaling": "llama3"}, "rope_scaling='llama3' is no table"),
        (LLAMA32, {"rope_theta": "high"}, "rope_theta='high' is no number"),
        (
            LLAMA32,
            {"rope_scaling": None, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5",
        ),
        (LLAMA32, {"rope_parameters": {"rope_theta": 1e4}}, "rope_scaling hides rope_parameters and its rope_theta=1"),
        (LLAMA32, {"quantization_config": {"quant_method": "gptq"}}, "quantization_config 'gptq' is not supported"),
        (QWEN25, {"use_sliding_window": 1}, "use_sliding_window=1 is not true or false"),
        (QWEN25, {"use_sliding_window": True, "sliding_window": "all"}, "sliding_window='all' is no whole number"),
        (QWEN25, {"use_sliding_window": True, "sliding_window": 0}, "sliding_window=0 is not at least 1"),
        (
            QWEN25,
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types names 'sliding_attention', but use_sliding_window is false",
        ),
    ],
    ids=str,
)
def test_what_we_lack_is_named(base, change, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        config_of(base | change)
    assert str(caught.value).startswith("model: ")


@pytest.mark.parametrize(
    ("base", "change", "context"),
    [
        (QWEN25, {"use_sliding_window": True, "max_window_layers": 24, "sliding_window": 8}, 32768),
        (QWEN25, {"use_sliding_window": True, "max_window_layers": 99, "sliding_window": 8}, 32768),
        (QWEN25, {"use_sliding_window": True, "max_window_layers": 23, "sliding_window": 8}, 8),
        (QWEN25, {"use_sliding_window": True, "sliding_window": 40000}, 32768),
        (QWEN25, {"use_sliding_window": True, "sliding_window": None}, 32768),
        (QWEN25, {"use_sliding_window": True, "layer_types": ["full_attention"] * 24, "sliding_window": 8}, 32768),
        (QWEN25, {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 24, "sliding_window": 8}, 8),
        (QWEN3, {"use_sliding_window": True, "max_window_layers": 28, "sliding_window": 8}, 40960),
        (LLAMA32 | {"model_type": "mistral"}, {"sliding_window": 4096}, 4096),
        (LLAMA32 | {"model_type": "mistral"}, {"sliding_window": None}, 131072),
    ],
)
def test_how_far_texts_are_read(base, change, context):
    assert config_of(base | change).max_seq_len == context


def test_null_is_nothing():
    nothing = {"rope_scaling": None, "head_dim": None, "num_key_value_heads": None, "hidden_act": None}
    without = {name: value for name, value in LLAMA32.items() if name not in nothing}
    assert config_of(LLAMA32 | nothing) == config_of(without)
    assert config_of(without).num_kv_heads == 32


def test_new_and_old_files_say_rope_differently():
    old = LLAMA32 | {"rope_theta": 7.0}
    scaling = old["rope_scaling"]
    new = {name: value for name, value in old.items() if name not in ("rope_theta", "rope_scaling")}
    new |= {"rope_parameters": {"rope_theta": 7.0, **scaling}}
    assert config_of(old) == config_of(new)
    assert config_of(old).rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)


def test_rope_scaling_added_by_hand_hides_rope_parameters(tmp_path):
    """As in transformers; without a scaling it was silently ignored."""
    theirs = make("Llama", RELATIVE)
    theirs.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["rope_parameters"] == RELATIVE["rope_parameters"]
    for scaling in ({"rope_type": "default"}, *SCALINGS.values()):
        scaling = scaling | {"rope_theta": THETA}
        (tmp_path / "config.json").write_text(json.dumps(fields | {"rope_scaling": scaling}))
        parts = sequences([14])
        logits = transformers.LlamaForCausalLM.from_pretrained(tmp_path)(parts[0][None]).logits[0]
        ours = checkpoint.load(tmp_path)
        close(ours.logits(ours(*packed(parts))), logits, 1e-5)
    for scaling in ({"rope_type": "yarn", "factor": 4.0}, {"type": "linear", "factor": 2.0}, {"rope_theta": 7.0}):
        with pytest.raises(UserError, match=r"rope_scaling hides rope_parameters and its rope_theta=500\.0"):
            config_of(fields | {"rope_scaling": scaling})


def test_dropout_survives():
    """GPT-2's three probabilities and, where a family has no name for it, our own."""
    for fields, dropouts in ((GPT2_124M, (0.1, 0.1)), (LLAMA32 | {"attention_dropout": 0.2}, (0.0, 0.2))):
        config = config_of(fields)
        assert (config.dropout, config.attention_dropout) == dropouts
        with torch.device("meta"):
            model = GPT(dataclasses.replace(config, num_layers=1, dropout=0.3))
        again = config_of(checkpoint.describe(model))
        assert again == model.config

"""GGUF files: every kind of quantisation, damage in one sentence, and a real model against transformers."""

import math
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from weights import smollm

from minillm.errors import UserError
from minillm.layers import RopeScaling, YarnScaling
from minillm.published import checkpoint
from minillm.published.gguf import GGUF
from minillm.published.gguf_model import open_gguf, unpermuted
from minillm.published.vocabularies import load_tokenizer

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
WIDTH, MLP, VOCAB = 64, 96, 270


def llama(path: Path, kind: str = "F32", architecture: str = "llama", **metadata) -> Path:
    """One layer of a tiny Llama, its matrices of this kind."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        kind_of = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(f"{architecture}.{key.replace('__', '.')}", value, kind_of)
    kind = gguf.GGMLQuantizationType[kind]
    for name, tensor in matrices().items():
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def matrices() -> dict[str, np.ndarray]:
    shapes = {
        "token_embd": (VOCAB, WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH // 2, WIDTH),
        "blk.0.attn_v": (WIDTH // 2, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (MLP, WIDTH),
        "blk.0.ffn_up": (MLP, WIDTH),
        "blk.0.ffn_down": (WIDTH, MLP),
    }
    random = np.random.default_rng(0)
    return {f"{name}.weight": random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", TYPES)
def test_tensors_are_what_was_written(tmp_path, kind):
    path = llama(tmp_path / "a.gguf", kind)
    _, tensors = open_gguf(path)
    written = matrices()["blk.0.ffn_up.weight"]
    read = tensors["model.layers.0.mlp.up_proj.weight"]
    kind = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(gguf.quants.quantize(written, kind), kind).reshape(written.shape)
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.from_numpy(np.array(expected, np.float32)))
    coarse = {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 0.02, "Q5_0": 0.2, "Q5_1": 0.15}.get(kind.name, 0.4)
    assert np.abs(read.numpy() - written).max() <= coarse * np.abs(written).max()
    assert checkpoint.load(path).config.num_kv_heads == 2  # every tensor finds its place


def test_queries_and_keys_are_in_llamas_order(tmp_path):
    """llama.cpp writes row 2i + j of a head for what is row i + j·D/2 elsewhere."""
    _, tensors = open_gguf(llama(tmp_path / "a.gguf"))
    for name, letter, heads in (("attn_q", "q", 4), ("attn_k", "k", 2)):
        written = torch.from_numpy(matrices()[f"blk.0.{name}.weight"])
        read = tensors[f"model.layers.0.self_attn.{letter}_proj.weight"]
        for head in range(heads):
            for i in range(8):
                for j in range(2):
                    assert torch.equal(read[16 * head + 8 * j + i], written[16 * head + 2 * i + j])


def cut(size: int):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def put(offset: int, content: bytes):
    def write(path):
        data = bytearray(path.read_bytes())
        data[offset : offset + len(content)] = content
        path.write_bytes(data)

    return write


def behind(name: bytes, distance: int, content: bytes):
    """Put so many bytes behind the first time that this is written."""
    return lambda path: put(path.read_bytes().index(name) + len(name) + distance, content)(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (cut(0), "damaged or cut off"),
        (cut(3), "damaged or cut off"),
        (cut(100), "damaged or cut off"),
        (cut(400), "damaged or cut off"),
        (cut(-70), "is cut off within"),
        (put(0, b"GGML"), "is no GGUF file"),
        (put(4, b"\x09"), "is GGUF of version 9"),
        (put(16, b"\xff" * 8), "damaged or cut off"),  # entries of metadata without end
        (put(24, b"\xff" * 8), "damaged or cut off"),  # a key longer than the file
        (behind(b"blk.0.ffn_up.weight", 4, b"\xff" * 7), "is cut off within 'blk.0.ffn_up.weight'"),  # 2^63 columns
        (behind(b"llama.attention.head_count", 4, bytes(4)), "describes no model that is supported"),  # no heads
    ],
)
def test_damage_ends_in_a_sentence(tmp_path, change, sentence):
    path = llama(tmp_path / "a.gguf")
    change(path)
    with pytest.raises(UserError, match=sentence):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("general.alignment", struct.pack("<II", 4, 0), "general.alignment=0 is no size"),
        ("x", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, "damaged or cut off"),  # lists within lists
        ("general.architecture", struct.pack("<IIQ", 9, 4, 0), r"architecture \[\] is not supported"),
        ("split.count", struct.pack("<IH", 2, 3), r"is one of 3 parts of a model \(split.count=3\); join them"),
    ],
)
def test_strange_metadata(tmp_path, key, value, sentence):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key.encode() + value)
    with pytest.raises(UserError, match=sentence):
        checkpoint.load(path)


def test_heads_that_do_not_fit_are_left_to_the_check_of_shapes():
    tensor = torch.arange(12.0)[:, None]
    for heads in (0, 4, 5):
        assert torch.equal(unpermuted(tensor, heads), tensor)
    assert unpermuted(tensor, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_merges_of_what_is_no_token(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a c"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"its vocabulary is incomplete or wrong .*`c` out of vocabulary"):
        load_tokenizer(tmp_path / "a.gguf")


def test_unknown_type(tmp_path):
    path = llama(tmp_path / "a.gguf")
    data = path.read_bytes()
    place = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    put(place, b"\xfa")(path)
    with pytest.raises(
        UserError, match=r"'blk\.0\.ffn_up\.weight' has shape .* type 250, which the gguf library cannot"
    ):
        checkpoint.load(path)


def test_what_is_not_supported_is_named(tmp_path):
    with pytest.raises(UserError, match="architecture 'mamba' is not supported"):
        open_gguf(llama(tmp_path / "a.gguf", architecture="mamba"))
    with pytest.raises(UserError, match="holds no vocabulary"):
        load_tokenizer(llama(tmp_path / "b.gguf"))
    with pytest.raises(UserError, match="cannot read"):
        GGUF(tmp_path / "none.gguf")


# ---- what the metadata says of the architecture --------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 8),
        ("attention__sliding_window", 4096),
        ("attention__causal", False),
        ("attention__clamp_kqv", 8.0),
        ("attention__max_alibi_bias", 8.0),
        ("attention__scale", 0.5),
        ("attention__value_length", 32),
        ("attention__layer_norm_epsilon", 1e-5),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.0625),
        ("residual_scale", 0.22),
        ("embedding_scale", 12.0),
        ("vocab_size", VOCAB + 1),
        ("rope__scaling__yarn_ext_factor", 0.5),
        ("rope__scaling__attn_factor", 0.8),
        ("rope__scaling__yarn_log_multiplier", 0.1),
        ("rope__dimension_sections", [1, 2]),
        ("use_parallel_residual", True),
        ("something_of_next_year", "on"),
        ("something_of_next_year", False),  # whatever that would mean
    ],
)
def test_what_is_not_understood_is_named(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"llama\.{key.replace('__', '.')}=.* is not supported"):
        checkpoint.load(llama(tmp_path / "a.gguf", **{key: value}))


@pytest.mark.parametrize(
    "metadata",
    [
        {"attention__causal": True},
        {"attention__clamp_kqv": 0.0, "attention__max_alibi_bias": 0.0, "attention__scale": 0.25},
        {"attention__sliding_window": 0, "expert_count": 0, "expert_used_count": 0, "pooling_type": 0},
        {"logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 0.0, "attn_logit_softcapping": 0.0},
        {"attention__key_length": 16, "attention__value_length": 16, "rope__dimension_count": 16},
        {"vocab_size": VOCAB, "tensor_data_layout": "Meta AI original pth"},
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
        {"rope__scaling__type": "none"},
        {"rope__scaling__type": "linear"},
        {"rope__scaling__factor": 1.0, "rope__scaling__attn_factor": 1.0},
        {"rope__scaling__factor": 0.0, "rope__scale_linear": 1.0, "rope__scaling__finetuned": False},
    ],
    ids=str,
)
def test_what_changes_nothing_is_accepted(tmp_path, metadata):
    config = checkpoint.load(llama(tmp_path / "a.gguf", **metadata)).config
    assert config == checkpoint.load(llama(tmp_path / "b.gguf")).config


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"scale_linear": 4.0}, RopeScaling(4.0)),
        ({"scaling__factor": 2.0, "scale_linear": 4.0}, RopeScaling(2.0)),
        ({"scaling__type": "linear", "scaling__factor": 8.0}, RopeScaling(8.0)),
        ({"scaling__type": "yarn", "scaling__factor": 4.0}, YarnScaling(4.0, 32, magnitude=0.1 * math.log(4) + 1)),
        (
            {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 8}
            | {"scaling__yarn_beta_fast": 16.0, "scaling__yarn_beta_slow": 2.0, "scaling__yarn_ext_factor": 1.0},
            YarnScaling(4.0, 8, 16.0, 2.0, magnitude=0.1 * math.log(4) + 1),
        ),
    ],
)
def test_scaled_rope(tmp_path, metadata, scaling):
    model = checkpoint.load(llama(tmp_path / "a.gguf", **{f"rope__{key}": value for key, value in metadata.items()}))
    assert model.config.rope_scaling == scaling


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"scaling__type": "yarn"}, r"rope\.scaling\.type='yarn' with factor 0\.0 is not supported"),
        ({"scaling__type": "longrope", "scaling__factor": 4.0}, "type='longrope' with factor 4.0 is not supported"),
        ({"scaling__factor": 0.5}, "factor=0.5 must be at least 1"),
        (
            {"scaling__type": "linear", "scaling__factor": 2.0, "scaling__yarn_ext_factor": 1.0},
            "yarn_ext_factor=1.0 is",
        ),
        ({"dimension_count": 8}, r"llama\.rope\.dimension_count=8 is not supported"),
    ],
)
def test_rope_that_is_not_understood(tmp_path, metadata, sentence):
    with pytest.raises(UserError, match=sentence):
        checkpoint.load(llama(tmp_path / "a.gguf", **{f"rope__{key}": value for key, value in metadata.items()}))


# ---- the ends of turns ---------------------------------------------------------------------------

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def vocabulary(path: Path, special: dict[str, int], flags: dict[str, bool] | None = None, **ids: str) -> Path:
    """Byte-level BPE of single letters; `special` gives each further token its kind, `flags` is what else is said."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters.append("<=")
    writer.add_token_list([*letters, *special])
    writer.add_token_types([NORMAL] * len(letters) + list(special.values()))
    writer.add_token_merges(["< ="])
    for role, name in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", len(letters) + list(special).index(name))
    for name, value in (flags or {}).items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


TURNS = {"<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL}


@pytest.mark.parametrize(
    ("special", "ids", "ends"),
    [
        (TURNS, {"eos": "<|endoftext|>"}, {"<|endoftext|>", "<|im_end|>"}),
        (TURNS, {"eos": "<|im_end|>"}, {"<|endoftext|>", "<|im_end|>"}),
        (TURNS, {"eos": "<|endoftext|>", "eot": "<|im_end|>"}, {"<|endoftext|>", "<|im_end|>"}),
        ({"</s>": CONTROL, "<|end|>": CONTROL}, {"eos": "</s>"}, {"</s>", "<|end|>"}),
        ({"</s>": CONTROL, "<|im_end|>": USER_DEFINED}, {"eos": "</s>"}, {"</s>", "<|im_end|>"}),
        ({"</s>": CONTROL, "<|im_end|>": NORMAL}, {"eos": "</s>"}, {"</s>"}),
        ({"</s>": CONTROL, "<tool>": CONTROL, "<b>": USER_DEFINED}, {"eos": "</s>"}, {"</s>"}),
        ({"<eos>": CONTROL, "<end_of_turn>": CONTROL}, {"eos": "<eos>"}, {"<eos>", "<end_of_turn>"}),
        (
            {"</s>": CONTROL, "<|eot_id|>": CONTROL, "<x>": CONTROL},
            {"eos": "</s>", "eom": "<x>"},
            {"</s>", "<|eot_id|>", "<x>"},
        ),
    ],
)
def test_a_turn_ends_at_every_token_of_that_name(tmp_path, special, ids, ends):
    tokenizer = load_tokenizer(vocabulary(tmp_path / "a.gguf", special, **ids))
    assert {tokenizer.backend.id_to_token(i) for i in tokenizer.stops} == ends
    assert tokenizer.backend.id_to_token(tokenizer.end) == ids["eos"]
    for name in ends:  # and no message can write one
        assert len(tokenizer.parse(name)[0]) == 1
        assert len(tokenizer.encode(name)) == len(name)


@pytest.mark.parametrize("key", ["add_eos_token", "add_sep_token", "remove_extra_whitespaces", "of_next_year"])
def test_what_a_vocabulary_says_is_heeded_or_named(tmp_path, key):
    ends = {"</s>": CONTROL}, {"eos": "</s>", "fim_pre": "</s>"}
    plain = load_tokenizer(vocabulary(tmp_path / "a.gguf", ends[0], **ends[1]))
    same = load_tokenizer(vocabulary(tmp_path / "b.gguf", ends[0], {key: False}, **ends[1]))
    assert same.wrap("a b") == plain.wrap("a b")
    with pytest.raises(UserError, match=rf"tokenizer\.ggml\.{key}=True is not supported"):
        load_tokenizer(vocabulary(tmp_path / "c.gguf", ends[0], {key: True}, **ends[1]))


# ---- a real one ----------------------------------------------------------------------------------


@pytest.mark.slow
@torch.inference_mode()
def test_smollm_equals_transformers():
    """Logits, and 20 greedy answers of 64 tokens; a tie is where the two best logits are nearer than the rounding."""
    transformers = pytest.importorskip("transformers")
    from kernels import Packing

    path = smollm()
    ours = checkpoint.load(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()
    tokenizer = load_tokenizer(path)
    ties = []
    for number in range(20):
        question = f"Name {number + 2} things that people in city number {number} like."
        prompt = tokenizer.parse(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")[0]
        answer = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, pad_token_id=2, repetition_penalty=1.0
        )[0]
        expected = theirs(answer[None]).logits[0]
        logits = ours.logits(ours(answer, Packing.from_lengths([len(answer)])))
        error = (logits - expected).abs().max() / expected.abs().max()
        assert error <= 1e-3, f"answer {number}: {error:.2e}"
        ahead = logits[len(prompt) - 1 : -1].topk(2).values
        likeliest = logits[len(prompt) - 1 : -1].argmax(-1)
        for place in (likeliest != answer[len(prompt) :]).nonzero()[:, 0].tolist():
            assert ahead[place, 0] - ahead[place, 1] < 1e-3
            ties.append((number, place))
    print(f"ties: {ties}")
    assert len(ties) <= 2

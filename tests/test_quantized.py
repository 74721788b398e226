"""Weights of few bits: each is off by half a step at most, whatever lies where, and models say nearly the same."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_inference import PROMPTS, every_choice
from tiny import gpt, packed

from minillm import inference, quantized
from minillm.generate import generate
from minillm.inference import KVCache, ready
from minillm.layers import Linear
from minillm.quantized import FORMS, GROUP, LAYOUTS, quantized_linear

HERE = Path(__file__).resolve()
MANY = 1 + max(quantized.FEW_ROWS.values())


def steps_of(weight, kind):
    """The distance of two neighbouring codes, for each weight."""
    if kind == "int8" or weight.shape[1] % GROUP:
        return (weight.abs().amax(1, keepdim=True) / 127).expand_as(weight)
    groups = weight.unflatten(1, (-1, GROUP))
    return ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(GROUP, 1)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), [(50, 64), (50, 42), (128, 96), (3, 32)])
@pytest.mark.parametrize("rows", [1, 5, 9, MANY])
def test_weights_are_rounded_by_half_a_step_at_most(kind, outputs, inputs, rows):
    """Read one by one, so that nothing adds up, each weight is off by half a step, by what rounding the scale to
    bfloat16 moves the outermost codes (2⁻⁹ of 127 or 8 steps), and by rounding the middle and the result."""
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    weight[-1, :32] = 0.3  # what has no spread
    weight[0] = 0  # or is nothing
    product = quantized_linear(weight, None, kind)
    got = torch.cat([product(x).float() for x in torch.eye(inputs).bfloat16().split(rows)]).t()
    codes = 127 if kind == "int8" or inputs % GROUP else 8
    bound = steps_of(weight, kind) * (0.5 + codes * 2**-9) + 2 * 2**-8 * weight.abs()
    assert torch.all((got - weight).abs() <= bound)
    assert (got - weight).abs().max() > 0
    x = torch.randn(rows, inputs).bfloat16()
    torch.testing.assert_close(
        quantized_linear(weight, bias.bfloat16(), kind)(x).float(), x.float() @ got.t() + bias, rtol=0.02, atol=0.1
    )


def test_the_kernel_of_four_bits_is_used():
    """On the processors whose order was seen, whatever they can do of it."""
    if platform.machine() in ("x86_64", "AMD64"):
        assert quantized._packed(torch.zeros(64, 64, dtype=torch.uint8).random_(16))[2]


def test_weights_of_four_bits_stay_what_they_are():
    """As those of a GGUF file of type Q4_1 are: a least weight and multiples of a scale. Scales that bfloat16 has stay
    too."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (64, 4, GROUP), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15
    scale = torch.randint(1, 9, (64, 4, 1), generator=generator) / 64
    weight = (scale * (codes - 8)).flatten(1)
    x = torch.eye(128).bfloat16()
    assert torch.equal(quantized_linear(weight, None, "int4")(x), weight.T.bfloat16())
    for row in (3, 77):  # by the kernel for few rows
        assert torch.equal(quantized_linear(weight, None, "int4")(x[row, None]), weight[None, :, row].bfloat16())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_packed_is_decoded(layout):
    codes = torch.randint(16, (128, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed_codes = layout.pack(codes)
    assert packed_codes.numel() == codes.numel() // 2
    both = torch.stack([torch.ones(2, 128), torch.full((2, 128), 8.0)], -1).bfloat16()
    assert torch.equal(quantized._decoded(packed_codes, layout, both), codes.t().bfloat16())


def test_an_unknown_order_is_not_read_by_the_kernel(monkeypatch):
    """Should PyTorch ever pack in another way."""
    weight, x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), torch.ones(1, 64).bfloat16()
    known = quantized_linear(weight, None, "int4")(x)
    convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu", lambda *of: convert(*of).flip(0))
    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", None)
    torch.testing.assert_close(quantized_linear(weight, None, "int4")(x), known, rtol=2**-6, atol=2**-4)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_processors_read_the_same(capability):
    """Each has an order of its own, which is recognised, and the bounds hold."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE),
        "-k",
        "half_a_step or stay or used",
    ]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def rounded(weight, kind):
    """As the products above have it, one weight at a time."""
    return quantized_linear(weight, None, kind)(torch.eye(weight.shape[1]).bfloat16()).float().t()


@pytest.mark.parametrize("kind", FORMS)
@every_choice
def test_a_quantised_model_is_the_model_with_rounded_weights(choices, kind, monkeypatch):
    monkeypatch.setattr(inference, "WORTH_QUANTISING", 1)
    model = gpt(vocab_size=5, width=64, **choices).float()
    twin, text = ready(model, kind), packed([torch.tensor(prompt) for prompt in PROMPTS])
    with torch.inference_mode():
        before = model.logits(model(*text)).log_softmax(-1)
        for layer in (module for module in model.modules() if isinstance(module, Linear)):
            of_layer = quantized.OF_OUTPUTS if layer is model.output else kind
            layer.weight = torch.nn.Parameter(rounded(layer.weight, of_layer))
        truth, got = model.logits(model(*text)).log_softmax(-1), twin.logits(twin(*text)).float().log_softmax(-1)
        assert KVCache.of(twin, 1, 1).layers[0][0].dtype == torch.bfloat16
    off, moved = ((of.exp() * (of - x)).sum(-1).max() for of, x in ((truth, got), (before, truth)))
    assert 0 < off < 0.06
    assert moved > 0
    assert len(generate(twin, PROMPTS, 4)) == len(PROMPTS)


def test_others_are_not_known():
    with pytest.raises(ValueError, match="int3"):
        ready(gpt(vocab_size=5), "int3")

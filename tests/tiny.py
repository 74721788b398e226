"""Tiny models in which every parameter matters, and batches for them."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kernels import Packing, attention
from minillm.batching import IGNORE, Batch
from minillm.bert import BERTConfig
from minillm.gpt import GPT, GPTConfig
from minillm.layers import Llama3Scaling

VOCAB = 11

LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "num_kv_heads": 2}
GPT_FAMILIES = {  # as choices of gpt_config
    "gpt2": {"positions": "learned", "bias": True},
    "llama 2": LLAMA | {"num_kv_heads": 4, "tie_embeddings": False},
    "llama 3": LLAMA | {"rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 12)},
    "qwen2": LLAMA | {"qkv_bias": True},
    "qwen3": LLAMA | {"qk_norm": True, "head_dim": 6},
}


@torch.no_grad()
def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for all parameters, in float64: nothing is 0 or 1, so nothing is left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for name, parameter in model.named_parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        if "norm" in name and name.endswith("weight"):
            parameter += 1
    return model


def gpt_config(**choices) -> GPTConfig:
    return GPTConfig(**{"vocab_size": VOCAB, "max_seq_len": 16, "num_layers": 2, "width": 16, "num_heads": 4} | choices)


def gpt(seed: int = 0, **choices) -> GPT:
    """A GPT of the default choices but for those named; float64, in evaluation mode."""
    return shake(GPT(gpt_config(**choices)), seed).eval()


def bert_config(**choices) -> BERTConfig:
    return BERTConfig(
        **{"vocab_size": VOCAB, "max_seq_len": 16, "num_layers": 2, "width": 16, "num_heads": 4} | choices
    )


def sequences(lengths: Sequence[int], seed: int = 0, high: int = VOCAB) -> list[Tensor]:
    """Random token ids, one tensor a sequence."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, high, (n,), generator=generator) for n in lengths]


def packed(parts: Sequence[Tensor]) -> tuple[Tensor, Packing]:
    return torch.cat(list(parts)), Packing.from_lengths([len(part) for part in parts])


def batch_of(
    tokens: Tensor,
    packing: Packing,
    targets: Tensor | None = None,
    labels: Tensor | None = None,
    segments: Tensor | None = None,
) -> Batch:
    """Packed tokens with what is asked of them; what is not given is not asked for."""
    targets = torch.full_like(tokens, IGNORE) if targets is None else targets
    labels = tokens.new_zeros(0) if labels is None else labels
    segments = torch.zeros_like(tokens) if segments is None else segments
    return Batch(tokens, targets, labels, segments, packing, int((targets != IGNORE).sum()) + len(labels))


def padded_attention(lengths: Sequence[int], causal: bool) -> Callable[..., Tensor]:
    """Attention for a batch whose rows were padded to one length by hand: its keys are masked by `lengths`."""
    counts = torch.tensor(list(lengths))
    dense = partial(attention, causal=causal, q_lengths=counts, k_lengths=counts)

    def attend(q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
        rows = (x.unflatten(0, (len(counts), -1)) for x in (q, k, v))
        return dense(*rows).flatten(0, 1)

    return attend


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all gradients, which are then cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Equal names and, up to rounding of the largest, equal values."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = value.abs().max().clamp_min(1)
        torch.testing.assert_close(second[name] / scale, value / scale, rtol=0, atol=tolerance, msg=name)

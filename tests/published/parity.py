"""Models of transformers with random weights, to hold ours against.

A family's tests give the models; what is compared, and how exactly, is here.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tiny import gradients, sequences
from torch import Tensor, nn

from kernels import Packing
from minillm.published import checkpoint, weights

LENGTHS = (5, 1, 7, 3)


@torch.no_grad()
def randomise(theirs: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for every parameter, so that nothing is 0 or 1 and nothing is left out unseen; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.2 * noise if is_norm else 0.3 * noise)
    return theirs.eval()


def loaded(theirs: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, **more) -> nn.Module:
    """Ours, by way of the files that theirs writes."""
    theirs.save_pretrained(folder)
    return checkpoint.load(folder, dtype=dtype, **more)


def exact(theirs: nn.Module, speeds: Tensor | None = None) -> nn.Module:
    """Theirs in float64 also where it would compute in float32: its RMSNorms and the angles of RoPE.

    `speeds` (D/2,): radians a token of the pairs of a head.
    """

    def rms_norm(module):
        return lambda x: F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)

    def turn(x, position_ids):
        angles = position_ids[..., None] * torch.cat((speeds, speeds))
        return angles.cos(), angles.sin()

    for module in theirs.double().modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = rms_norm(module)
        elif hasattr(module, "inv_freq"):
            module.forward = turn
    return theirs


def padded(parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """The batch as theirs reads it: as long as the longest, with a mask."""
    rows = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
    return {"input_ids": rows, "attention_mask": mask}


def close(ours: Tensor, theirs: Tensor, tolerance: float, name: str = "") -> None:
    """Equal up to `tolerance` times the largest value."""
    scale = float(theirs.detach().abs().max())
    assert scale > 0, f"{name} is nothing but zeros"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}")


def arranged(theirs: Mapping[str, Tensor], ours: nn.Module) -> dict[str, Tensor]:
    """Tensors that theirs has for each of its parameters, such as gradients, under the names of ours."""
    family, head = checkpoint.family_of(ours)
    with torch.device("meta"):
        model = type(ours)(ours.config, *(ours.outputs if head.has_classes else []))
    weights.allocate(model, next(iter(theirs.values())).dtype)
    weights.copy_weights(model, theirs, Path("theirs"), family, head)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_parity(ours: nn.Module, theirs: nn.Module, tolerance: float, **kinds: Sequence[Tensor]) -> None:
    """Hidden states behind every layer, logits, and gradients of all parameters; ours packed, theirs padded.

    For models with one row of logits a token. `kinds`: more of what theirs reads, by its name, and ours as `segments`.
    """
    parts = sequences(LENGTHS)
    batch = padded(parts)
    real = batch["attention_mask"].bool()
    extra = {name: nn.utils.rnn.pad_sequence(list(rows), batch_first=True) for name, rows in kinds.items()}
    out = theirs(**batch, **extra, output_hidden_states=True)
    truth = [hidden[real] for hidden in out.hidden_states]

    layers = []
    blocks = getattr(ours, "encoder", ours).blocks
    hooks = [block.register_forward_hook(lambda _, __, x: layers.append(x)) for block in blocks[:-1]]
    hidden = ours(torch.cat(parts), Packing.from_lengths(LENGTHS), *[torch.cat(list(rows)) for rows in kinds.values()])
    for hook in hooks:
        hook.remove()
    for i, layer in enumerate(layers):
        close(layer, truth[i + 1], tolerance, f"hidden states behind layer {i}")
    logits = ours.logits(hidden) if hasattr(ours, "logits") else hidden
    if logits is not hidden and hidden.shape == truth[-1].shape and hasattr(ours, "blocks"):
        close(hidden, truth[-1], tolerance, "hidden states")
    close(logits, out.logits[real], tolerance, "logits")

    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(logits)
    (logits * weights).sum().backward()
    (out.logits[real] * weights).sum().backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    truth = arranged(their_gradients, ours)
    found = gradients(ours)
    theirs.zero_grad()
    assert found.keys() == truth.keys()
    for name in truth:
        close(found[name], truth[name], tolerance, f"gradient of {name}")


@torch.no_grad()
def assert_round_trip(ours: nn.Module, theirs: nn.Module, folder: Path) -> None:
    """Saved by us, theirs is what it was, to the bit, and so is ours."""
    checkpoint.save(ours, folder, **{k: v for k in ("eos_token_id",) if (v := getattr(theirs.config, k, None)) == 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = type(theirs).from_pretrained(folder)
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    batch = padded(sequences(LENGTHS))
    close(again(**batch).logits, theirs(**batch).logits, 1e-6)
    back = checkpoint.load(folder)
    assert type(back) is type(ours)
    assert back.config == ours.config
    assert all(torch.equal(p, back.get_parameter(name)) for name, p in ours.named_parameters())

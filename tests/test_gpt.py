"""GPT: every choice of its config, packed and padded batches, causality, initialisation."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    GPT_FAMILIES,
    VOCAB,
    assert_same,
    batch_of,
    gpt,
    gpt_config,
    gradients,
    packed,
    padded_attention,
    sequences,
)

import minillm.gpt
from kernels import Packing, backend
from minillm.batching import IGNORE
from minillm.gpt import GPT, GPTConfig
from minillm.layers import dropout, rope, rotate

LENGTHS = (5, 1, 7, 3, 7)
CHOICES = {
    "default": {},
    "learned": {"positions": "learned"},
    "rmsnorm": {"norm": "rmsnorm"},
    "swiglu": {"mlp": "swiglu", "mlp_width": 24},
    "grouped": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1},
    "untied": {"tie_embeddings": False},
    "bias": {"bias": True},
    **GPT_FAMILIES,
}
every_choice = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


def run(model, tokens, packing, keep=None):
    """Hidden states, losses and gradients of a packed batch; only the rows `keep` count.

    The gradients are those of a scalar that every hidden state and every logit has its own part in.
    """
    keep = torch.ones(len(tokens), dtype=torch.bool) if keep is None else keep
    batch = batch_of(tokens, packing, ((tokens * 7 + 3) % VOCAB).where(keep, IGNORE))
    hidden, weights = model(tokens, packing)[keep], 1 + torch.sin(tokens.double())
    value = model.loss(batch, weights) + (hidden * torch.linspace(-1, 1, hidden.shape[1])).sum()
    value.backward()
    with torch.no_grad():
        found = {"hidden": hidden, "logits": model.logits(hidden), "loss": model.loss(batch)[keep]}
    return {**{name: x.detach() for name, x in found.items()}, **gradients(model)}


def one_by_one(model, parts):
    results = [run(model, *packed([part])) for part in parts]
    rows = ("hidden", "logits", "loss")
    return {name: (torch.cat if name in rows else sum)([r[name] for r in results]) for name in results[0]}


# ---- packed = padded = one by one ----------------------------------------------------------------


@every_choice
@pytest.mark.parametrize("impl", ["torch", "eager"])
def test_packed_is_one_by_one(choices, impl):
    model, parts = gpt(**choices), sequences(LENGTHS)
    truth = one_by_one(model, parts)
    backend.set_default(impl)
    assert_same(truth, run(model, *packed(parts)))


@every_choice
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "padding is only later tokens"])
def test_padded_is_one_by_one(choices, masked, monkeypatch):
    model, parts = gpt(**choices), sequences(LENGTHS)
    truth = one_by_one(model, parts)
    T = max(LENGTHS)
    rows = torch.stack([F.pad(part, (0, T - len(part)), value=9) for part in parts])
    real = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).flatten()
    if masked:
        monkeypatch.setattr(minillm.gpt, "attention", padded_attention(LENGTHS, causal=True))
    assert_same(truth, run(model, rows.flatten(), Packing.from_lengths([T] * len(parts)), keep=real))


def test_a_neighbour_changes_nothing():
    model, parts = gpt(), sequences(LENGTHS)
    other = [sequences([4], seed=9)[0], *parts[1:]]
    first, second = model(*packed(parts)), model(*packed(other))
    torch.testing.assert_close(second[4:], first[5:], rtol=0, atol=1e-12)
    assert not torch.allclose(second[0], first[0])


# ---- causality -----------------------------------------------------------------------------------


@every_choice
def test_no_token_sees_a_later_one(choices):
    model, (tokens,) = gpt(**choices), sequences([8])
    before = model(*packed([tokens]))
    for changed in range(1, 8):
        other = tokens.clone()
        other[changed] = (other[changed] + 1) % VOCAB
        after = model(*packed([other]))
        torch.testing.assert_close(after[:changed], before[:changed], rtol=0, atol=1e-12)
        assert (after[changed:] - before[changed:]).abs().amax(dim=1).min() > 1e-6  # and every later one sees it


# ---- what each choice means ----------------------------------------------------------------------


def test_shared_key_heads_are_repeated_ones():
    grouped, full = gpt(num_kv_heads=2), gpt()
    full.load_state_dict(grouped.state_dict() | {k: v for k, v in full.state_dict().items() if "qkv" in k})
    for few, many in zip(grouped.blocks, full.blocks, strict=True):
        q, k, v = few.attn.qkv.weight.data.unflatten(0, (-1, 4)).split((4, 2, 2))  # heads of 4 rows
        many.attn.qkv.weight.data = torch.cat((q, k[[0, 0, 1, 1]], v[[0, 0, 1, 1]])).flatten(0, 1)
    batch = packed(sequences(LENGTHS))
    torch.testing.assert_close(full(*batch), grouped(*batch), rtol=0, atol=1e-12)


def test_tied_embeddings_are_one_parameter():
    tied, untied = gpt(), gpt(tie_embeddings=False)
    assert tied.output.weight is tied.tokens.weight
    assert "output.weight" not in dict(tied.named_parameters())
    untied.load_state_dict(tied.state_dict())
    tokens, packing = packed(sequences(LENGTHS))
    for model in (tied, untied):
        model.loss(batch_of(tokens, packing, tokens)).sum().backward()
    both = untied.tokens.weight.grad + untied.output.weight.grad
    torch.testing.assert_close(tied.tokens.weight.grad, both, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_biases_are_everywhere_or_nowhere(bias, norm, mlp):
    named = dict(GPT(gpt_config(bias=bias, norm=norm, mlp=mlp)).named_parameters())
    products = {name.removesuffix(".weight") for name in named if name.endswith("weight") and "norm" not in name}
    products -= {"tokens"}
    assert {f"{name}.bias" in named for name in products} == {bias}
    assert ("final_norm.bias" in named) == (bias and norm == "layernorm")
    assert "output.bias" not in named


@every_choice
def test_every_parameter_learns(choices):
    model = gpt(**choices)
    found = run(model, *packed(sequences(LENGTHS)))
    assert {name for name, _ in model.named_parameters()} <= found.keys()
    assert all(value.abs().max() > 0 for value in found.values())


def test_rope_turns_pairs_as_complex_numbers():
    torch.manual_seed(0)
    positions, x = torch.arange(6), torch.randn(6, 3, 8, dtype=torch.float64)
    turned = rotate(x, rope(positions, 8, 10_000.0, torch.float64))
    speeds = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * positions[:, None] * speeds)[:, None]
    torch.testing.assert_close(turned, torch.cat((pairs.real, pairs.imag), dim=-1), rtol=0, atol=1e-12)


def test_rope_knows_only_distances():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64)
    turn = partial(rope, head_dim=8, theta=10_000.0, dtype=torch.float64)

    def score(m, n):
        return (rotate(q, turn(torch.tensor([m]))) * rotate(k, turn(torch.tensor([n])))).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), rtol=0, atol=1e-12)
    assert (score(7, 3) - score(3, 7)).abs() > 1e-3


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_order_matters(positions):
    model, (tokens,) = gpt(positions=positions), [torch.tensor([1, 2, 3])]
    first, second = model(*packed([tokens]))[-1], model(*packed([tokens[[1, 0, 2]]]))[-1]
    assert (first - second).abs().max() > 1e-3


# ---- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_only_in_training(kind):
    model, batch = gpt(**{kind: 0.5}), packed(sequences(LENGTHS))
    plain = gpt()(*batch)
    assert torch.equal(model(*batch), plain)
    model.train()
    torch.manual_seed(1)
    first, second = model(*batch), model(*batch)
    torch.manual_seed(1)
    assert torch.equal(model(*batch), first)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, plain)


def test_no_dropout_without_being_asked():
    model, batch = gpt(), packed(sequences(LENGTHS))
    assert torch.equal(model.train()(*batch), model.eval()(*batch))


# ---- losses, precision, sizes --------------------------------------------------------------------


def test_loss_is_minus_log_probability():
    model = gpt()
    tokens, packing = packed(sequences(LENGTHS))
    targets = tokens.roll(-1)
    targets[2] = -100
    hidden, batch = model(tokens, packing), batch_of(tokens, packing, targets)
    for temperature in (1.0, 0.5):
        logprobs = (model.logits(hidden) / temperature).log_softmax(-1)
        truth = -logprobs.gather(1, tokens.roll(-1)[:, None])[:, 0]
        truth[2] = 0
        loss = model.loss(batch, temperature=temperature)
        torch.testing.assert_close(loss, truth, rtol=0, atol=1e-12)
        weights = torch.linspace(-1, 2, len(tokens), dtype=torch.float64)
        for each in (0.25, weights):
            total = model.loss(batch, each, temperature)
            torch.testing.assert_close(total, (each * truth).sum(), rtol=0, atol=1e-12)


def test_compute_dtype_is_of_activations_only():
    model = gpt().float()
    model.compute_dtype = torch.bfloat16
    tokens, packing = packed(sequences(LENGTHS))
    hidden = model(tokens, packing)
    assert hidden.dtype == torch.bfloat16
    loss = model.loss(batch_of(tokens, packing, tokens))
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    model.compute_dtype = None
    truth = model(tokens, packing)
    assert (hidden - truth).norm() < 0.05 * truth.norm()


def test_a_sequence_may_fill_the_model_but_no_more():
    model = gpt()
    assert model(*packed(sequences([16, 3]))).shape == (19, 16)
    with pytest.raises(ValueError, match="17 tokens but max_seq_len=16"):
        model(*packed(sequences([3, 17])))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0 must be positive"),
        ({"max_seq_len": -1}, "max_seq_len=-1 must be positive"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"width": 18}, "width=18 is no multiple of num_heads=4"),
        ({"num_kv_heads": 3}, "num_heads=4 is no multiple of num_kv_heads=3"),
        ({"num_kv_heads": -4}, "num_kv_heads=-4"),
        ({"mlp_width": -4}, "mlp_width=-4"),
        ({"width": 12}, "even head_dim, not 3"),
        ({"positions": "alibi"}, "positions='alibi'"),
        ({"norm": "batchnorm"}, "norm='batchnorm'"),
        ({"mlp": "quick_gelu"}, "mlp='quick_gelu'"),
        ({"head_dim": -4}, "head_dim=-4"),
        ({"head_dim": 5}, "even head_dim, not 5"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"attention_dropout": 1.0}, "attention_dropout=1.0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"dropout": float("nan")}, "dropout=nan"),
    ],
)
def test_impossible_configs_are_named(choices, message):
    with pytest.raises(ValueError, match=message):
        gpt_config(**choices)


def test_what_is_left_open_follows_from_the_rest():
    assert gpt_config() == gpt_config(num_kv_heads=4, head_dim=4, mlp_width=64)
    assert gpt_config(width=18, head_dim=4).head_dim == 4  # no multiple of the number of heads, and need not be


# ---- initialisation ------------------------------------------------------------------------------


def test_initialisation_is_the_table_of_reset_parameters():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, max_seq_len=300, width=256, positions="learned", bias=True))
    for name, p in model.state_dict().items():
        if name.endswith("bias") or name.endswith(("attn.out.weight", "mlp.down.weight")):
            assert p.abs().max() == 0, name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            std = 0.02 if name in ("tokens.weight", "positions.weight", "output.weight") else 256**-0.5
            assert abs(float(p.std()) / std - 1) < 0.03, name
            assert abs(float(p.mean())) < 0.05 * std, name


def test_initialisation_follows_the_seed():
    def make(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in GPT(gpt_config()).parameters()])

    assert torch.equal(make(3), make(3))
    assert not torch.equal(make(3), make(4))


def test_compilers_see_pytorchs_own():
    compiled = torch.compile(lambda x: dropout(x, 0.5, training=True), backend="aot_eager", fullgraph=True)
    assert set(compiled(torch.ones(1000)).tolist()) == {0.0, 2.0}

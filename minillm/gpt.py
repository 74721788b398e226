"""GPT: a decoder that predicts the next token.

Letters: B sequences, N tokens (packed), C width, H query heads, G key/value heads, D head dim, V vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from kernels import Branches, Packing, attention
from minillm import layers
from minillm.batching import Batch
from minillm.inference import KVCache
from minillm.layers import Attend, Attention, Linear, Rotation, dropout, taken
from minillm.objective import losses_of_tokens


@dataclass(frozen=True)
class GPTConfig:
    """How the models that people know differ from the defaults:

    GPT-2          positions="learned", bias=True
    Llama, SmolLM2 norm="rmsnorm", mlp="swiglu", num_kv_heads; rope_scaling from Llama 3.1 on; Mistral the same
    Qwen2          the same with qkv_bias=True
    Qwen3          the same with qk_norm=True and its own head_dim
    """

    vocab_size: int
    max_seq_len: int
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 0  # fewer than query heads make the KV cache smaller; 0: as many
    head_dim: int = 0  # 0: the width shared out among the heads
    mlp_width: int = 0  # 0: four times the width
    positions: str = "rope"  # "rope" turns queries and keys, "learned" adds a vector to the input
    rope_theta: float = 10_000.0  # pair i of D/2 turns by theta^(−2i/D) radians a token
    rope_scaling: layers.RopeScaling | None = None  # turns more slowly for longer contexts (Llama 3.1)
    norm: str = "layernorm"  # "layernorm" (GPT-2) or "rmsnorm" (Llama)
    norm_eps: float = 1e-5
    mlp: str = "gelu"  # "gelu" (GPT-2's tanh form), "gelu-erf" (exact, faster on CPUs), "relu" or "swiglu" (Llama)
    bias: bool = False  # biases in linear layers and layer norms
    qkv_bias: bool = False  # biases of queries, keys and values even where nothing else has any
    out_bias: bool = False  # biases of what attention writes, likewise
    qk_norm: bool = False  # RMSNorm of every query and key before it is turned
    tie_embeddings: bool = True  # the output matrix is the embedding matrix
    dropout: float = 0.0  # on the embeddings and on what each layer adds
    attention_dropout: float = 0.0  # on the probabilities of attention

    def __post_init__(self):
        check_gpt(self)
        # What was left at 0 follows from the other fields: two configs are equal if their models are.
        for name, default in (
            ("num_kv_heads", self.num_heads),
            ("head_dim", self.width // self.num_heads),
            ("mlp_width", 4 * self.width),
        ):
            object.__setattr__(self, name, getattr(self, name) or default)
        for name in ("qkv_bias", "out_bias"):
            object.__setattr__(self, name, getattr(self, name) or self.bias)
        layers.check_multiple(self, "num_heads", "num_kv_heads")
        layers.require(
            self.positions != "rope" or self.head_dim % 2 == 0, f"RoPE needs an even head_dim, not {self.head_dim}"
        )
        layers.require(
            not self.rope_scaling or (self.head_dim > 2 and self.rope_theta > 1),
            f"rope_scaling needs head_dim={self.head_dim} above 2 and rope_theta={self.rope_theta} above 1",
        )


class Block(nn.Module):
    """Pre-norm: each layer reads a normalised copy and adds to the residual stream, which stays untouched."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        qk_norm_eps = config.norm_eps if config.qk_norm else None
        self.attn_norm = make_norm(config)
        self.attn = Attention(config.width, *heads, config.qkv_bias, config.out_bias, qk_norm_eps)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend, at: Tensor | None = None) -> Tensor:
        """(N, C) → (N, C), or of the tokens `at` (M,) alone (M, C)."""
        mixed = self.attn(self.attn_norm(x), rotation, attend, at)
        x = taken(x, at) + dropout(mixed, self.dropout, self.training)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class GPT(nn.Module):
    pretrained = ("",)  # how the names of the parameters begin that come with a checkpoint: all of them

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None  # of the activations; None: as the parameters
        self.recompute = False  # activations within blocks, instead of keeping them for the backward pass
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_seq_len, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = make_norm(config)
        self.output = Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.tokens.weight
        self.reset_parameters()

    @cached_property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """All initialisation, from torch's global generator.

        embeddings, output          N(0, 0.02²)
        products into the layers    N(0, 1/C)
        products onto the stream    0: at the start every block is the identity
        biases                      0
        norms                       1
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.zeros_(block.attn.out.weight)
            nn.init.zeros_(block.mlp.down.weight)
        nn.init.normal_(self.output.weight, std=0.02)

    def forward(
        self, tokens: Tensor, packing: Packing | Branches, cache: KVCache | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Hidden states (N, C) of packed tokens (N,) int64; `logits` or `loss` turn them into predictions.

        Where only those `at` (M,) int64 are asked for, (M, C): what is behind the last attention is computed for them
        alone. With a cache, the tokens continue the cached sequences and are added to them.
        Raises ValueError when a sequence outgrows `max_seq_len`.
        """
        config = self.config
        extension = cache.extend(packing) if cache else None
        longest = (extension or packing).max_len
        if longest > config.max_seq_len:  # not `require`: torch.compile knows no length to put into a sentence
            raise ValueError(f"a sequence has {longest} tokens but max_seq_len={config.max_seq_len}")
        positions = (extension or packing).positions
        x = self.tokens(tokens)
        if config.positions == "learned":
            x = x + self.positions(positions)
        x = dropout(x.to(self.compute_dtype or x.dtype), config.dropout, self.training)
        rotation = None
        if config.positions == "rope":
            rotation = layers.rope(positions, config.head_dim, config.rope_theta, x.dtype, config.rope_scaling)
        blocks = layers.recomputed(self.blocks) if self.recompute else self.blocks
        for layer, (block, asked) in enumerate(zip(blocks, layers.asked_of(len(blocks), at), strict=True)):
            x = block(x, rotation, extension.attend(layer) if extension else self.attend(packing), asked)
        return self.final_norm(x)

    def attend(self, packing: Packing | Branches) -> Attend:
        """The attention of one layer over whole sequences or branches; in training each draws another dropout."""
        p = self.config.attention_dropout if self.training else 0.0
        seed = int(torch.randint(2**31, ())) if p > 0 else 0
        if isinstance(packing, Branches):
            return partial(attend_branches, packing, dropout_p=p, dropout_seed=seed)
        return partial(attention, causal=True, packing=packing, dropout_p=p, dropout_seed=seed)

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, C) → (N, V)."""
        return self.output(hidden)

    def loss(
        self,
        batch: Batch,
        weights: Tensor | float | None = None,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """−log p(target), see `objective.Model`: (N,) float32, or Σ weight · loss with weights for tokens (N,)."""
        hidden = self(batch.tokens, batch.packing, at=batch.asked)
        return losses_of_tokens(hidden, self.output.weight, batch, weights, temperature, label_smoothing)


def attend_branches(branches: Branches, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_seed: int) -> Tensor:
    """Causal attention of a row's q (N,H,D), k and v (N,G,D) → (N,H,D): of the stems to themselves, of a branch to its
    stem, too."""
    count = branches.stems.num_tokens
    attend = partial(attention, causal=True, dropout_p=dropout_p, dropout_seed=dropout_seed)
    of_stems = attend(q[:count], k[:count], v[:count], packing=branches.stems)
    k, v = branches.look_up(k), branches.look_up(v)
    return torch.cat([of_stems, attend(q[count:], k, v, packing=branches.own, k_packing=branches.keys)])


def make_norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return layers.RMSNorm(config.width, eps=config.norm_eps)
    return layers.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)


def make_mlp(config: GPTConfig) -> nn.Module:
    if config.mlp == "swiglu":
        return layers.SwiGLU(config.width, config.mlp_width, config.bias)
    return layers.MLP(config.width, config.mlp_width, config.bias, config.mlp)


def check_gpt(config: GPTConfig) -> None:
    """ValueError, with the field named, for a model that cannot be."""
    layers.check_positive(config, "vocab_size", "max_seq_len", "num_layers", "width", "num_heads")
    layers.check_positive(config, "rope_theta", "norm_eps")
    for name in ("num_kv_heads", "head_dim", "mlp_width"):
        layers.require(getattr(config, name) >= 0, f"{name}={getattr(config, name)} must not be negative")
    if not config.head_dim:
        layers.check_multiple(config, "width", "num_heads")
    for name, choices in {
        "positions": ("rope", "learned"),
        "norm": ("layernorm", "rmsnorm"),
        "mlp": (*layers.ACTIVATIONS, "swiglu"),
    }.items():
        layers.check_choice(config, name, choices)
    layers.check_share(config, "dropout", "attention_dropout")

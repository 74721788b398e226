"""What supervised training costs: floating-point operations, beside what the machine can do, and memory.

Operations are those that have to be done: products of matrices, and attention between tokens that see each other. What
is computed twice to save memory counts once, and norms, activations and the optimiser not at all, so that the share of
the machine's rate is not more than it is.

Letters: n tokens of a document, C width, M hidden width of an MLP.
"""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import CHUNK_BYTES_CPU
from minillm.batching import Corpus
from minillm.gpt import GPT
from minillm.heads import ENDS, MaskedLM, SequenceClassifier, TokenClassifier, pooling_of
from minillm.layers import Linear, SwiGLU
from minillm.lora import Adapted
from minillm.modernbert import Block as ModernBERTBlock
from minillm.modernbert import ModernBERT
from minillm.optim import Optimizers, state_bytes

READ, LEARNED = 2, 6  # operations a weight takes for a token that is read or drawn, and for one that is learned from
LEAST_SECONDS = 10.0  # of steps; a share of what took less says more about its beginning
RATE_SECONDS = 0.2  # for which the machine's rate is measured
MUCH_MEMORY = 0.5  # share of what is free, from which on a person should hear of it
GIB = 2**30

# ---- operations ------------------------------------------------------------------------------------


def operations(model: nn.Module, lengths: Mapping[int, int], targets: float) -> float:
    """Of the forward and backward passes over so many documents of each length, with so many targets in all.

    A weight is a product for each token forward, one for its own gradient, and one for that of what it reads, where
    something before it learns: both are left out of what --freeze and --lora hold fast.
    """
    total, flows = 0.0, False  # whether anything so far learns, so that gradients go back to here
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            total += applications(model, name, lengths, targets) * for_each_row(module, flows)
        flows |= any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if name.endswith("attn.out"):
            forward = 2 * READ * module.in_features  # queries · keys, and their shares of the values
            total += forward * (3 if flows else 1) * seen(model, name, lengths)
    return total


def for_each_row(layer: Linear, flows: bool) -> int:
    """Operations of a linear layer for a row that it is applied to."""
    learns, backward = layer.weight.requires_grad, READ * flows
    total = layer.weight.numel() * (READ + READ * learns + backward)
    if isinstance(layer, Adapted):  # the gradient of what B reads is A's
        total += layer.lora_a.numel() * (LEARNED - READ + backward) + layer.lora_b.numel() * LEARNED
    return total


def applications(model: nn.Module, name: str, lengths: Mapping[int, int], targets: float) -> float:
    """How many rows a linear layer of this name is applied to."""
    if "blocks." in name:
        is_last = f"blocks.{len(encoder_of(model).blocks) - 1}." in name
        is_behind = is_last and not name.endswith("attn.qkv")  # the last attention
        return asked(model, lengths, targets) if is_behind else sum(n * count for n, count in lengths.items())
    if name == "output":
        return targets
    if name == "encoder.output":  # of a GPT that has another head
        return 0
    of_tokens = isinstance(model, MaskedLM | TokenClassifier) and name != "sequence_classifier"
    return asked(model, lengths, targets) if of_tokens else sum(lengths.values())


def asked(model: nn.Module, lengths: Mapping[int, int], targets: float) -> float:
    """Of how many tokens the last hidden state is computed."""
    if isinstance(model, GPT | MaskedLM):
        return targets
    if isinstance(model, SequenceClassifier) and pooling_of(model.config) in ENDS:
        return sum(lengths.values())
    return sum(n * count for n, count in lengths.items())


def seen(model: nn.Module, name: str, lengths: Mapping[int, int]) -> float:
    """Pairs of a token and one that it sees, in the attention of this name."""
    encoder = encoder_of(model)
    if isinstance(encoder, GPT):
        return sum(count * n * (n + 1) / 2 for n, count in lengths.items())
    w = max(lengths, default=0)  # a token sees those less than this away
    if isinstance(encoder, ModernBERT) and not model.get_submodule(name.removesuffix(".attn.out")).is_global:
        w = encoder.config.window
    return sum(count * (n * n if n < w else n * (2 * w - 1) - w * (w - 1)) for n, count in lengths.items())


# ---- the machine -----------------------------------------------------------------------------------


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of square matrices, the fastest of those for which there is time."""
    n = 8192 if device.type == "cuda" else 512
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=generator).to(dtype) for _ in range(2))  # zeros would run faster
    end, fastest = time.perf_counter() + RATE_SECONDS, float("inf")
    seconds_of(a, b)  # the first one sets the library up
    while fastest == float("inf") or time.perf_counter() < end:
        fastest = min(fastest, seconds_of(a, b))
    return READ * n**3 / fastest


def seconds_of(a: Tensor, b: Tensor) -> float:
    start = time.perf_counter()
    a @ b
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start


def work_done(model: nn.Module, lengths: Mapping[int, int], targets: float, seconds: float) -> dict[str, float]:
    """What steps that took so many seconds computed: `operations`, and where that says something, `matrix_rate`, what
    this machine can do in a second, and `matrix_share`, the share of it that was done."""
    weight = next(model.parameters())
    done = {"operations": operations(model, lengths, targets)}
    if not lengths or seconds < LEAST_SECONDS:
        return done if lengths else {}
    rate = matrix_rate(weight.device, model.compute_dtype or weight.dtype)
    return {**done, "matrix_rate": rate, "matrix_share": done["operations"] / seconds / rate}


# ---- memory ----------------------------------------------------------------------------------------


def memory_lines(session: Any, args: Any, corpus: Corpus) -> list[str]:
    """For a person, where training will take much of the memory that is free."""
    model = session.model
    needed = memory(model, session.optimizers, args, corpus, session.ranks)
    free = free_memory(next(model.parameters()).device)
    if free is None or needed < MUCH_MEMORY * free:
        return []
    hint = "; --micro-tokens N, --checkpointing and --lora N need less" if needed > free else ""
    return [f"memory     about {needed / GIB:.1f} GiB to train, of {free / GIB:.1f} that are free{hint}"]


def memory(model: nn.Module, optimizers: Optimizers, args: Any, corpus: Corpus, ranks: int = 1) -> float:
    """Bytes that training needs in each process at its peak beside the weights: gradients, the optimisers' state, and
    what the backward pass needs of the largest batch that is computed at once."""
    of_weights = sum(map(size, filter(learns, model.parameters()))) + state_bytes(optimizers)
    if args.shard:  # of which each has a part; but a block is whole while it computes, and what is in no block always
        blocks = [sum(map(size, block.parameters())) for block in encoder_of(model).blocks]
        together = sum(map(size, model.parameters())) - sum(blocks) + max(blocks)
        of_weights = of_weights / ranks + 2 * together  # with its gradient
    if model.compute_dtype:  # in which products have copies of them
        of_weights += sum(model.compute_dtype.itemsize * p.numel() for p in model.parameters() if p.ndim == 2)
    tokens = corpus.most_tokens(args.batch_tokens, args.micro_tokens, ranks)
    logits = CHUNK_BYTES_CPU if isinstance(model, GPT | MaskedLM) else 0
    return of_weights + tokens * activations(model, args.checkpointing) + logits


def size(parameter: Tensor) -> int:
    """In bytes."""
    return parameter.numel() * parameter.element_size()


def learns(parameter: Tensor) -> bool:
    return parameter.requires_grad


def encoder_of(model: nn.Module) -> nn.Module:
    """What has the blocks: a GPT is its own."""
    return model if isinstance(model, GPT) else model.encoder


def activations(model: nn.Module, recomputes: bool) -> float:
    """Bytes that the backward pass needs of each token, at most: in every block what its norms, products, its attention
    and its activation have read, which in the last one is less of tokens that nobody asks for; of recomputed blocks
    what they read, and one of them whole."""
    weight = next(model.parameters())
    itemsize = (model.compute_dtype or weight.dtype).itemsize
    encoder = encoder_of(model)
    is_turned = encoder.config.positions == "rope" if isinstance(encoder, GPT) else isinstance(encoder, ModernBERT)
    of_blocks = [sum(kept(block, is_turned)) for block in encoder.blocks]
    if recomputes:
        return itemsize * (len(of_blocks) * encoder.config.width + max(of_blocks))
    return itemsize * sum(of_blocks)


def kept(block: nn.Module, is_turned: bool) -> Iterator[int]:
    """Numbers that the backward pass of a block needs of each token."""
    C, M = block.attn.out.out_features, block.mlp.down.in_features
    yield 4 * C  # what the norms have read, and what they gave to the products
    yield block.attn.qkv.out_features + block.attn.out.in_features  # what attention has read, and what it gave
    yield block.attn.out.in_features * (1 + is_turned)  # queries and keys as they were turned, norms of the softmax
    yield 4 * M if isinstance(block.mlp, SwiGLU) else 2 * M  # around the activation
    yield 2 * C if has_dropout(block) else 0


def has_dropout(block: nn.Module) -> bool:
    return not isinstance(block, ModernBERTBlock) and block.dropout > 0


def free_memory(device: torch.device) -> float | None:
    """Bytes for this process, whose likes on the machine get as much; None where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = free_memory_of_host()
    return free and free / int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # which torchrun sets


def free_memory_of_host() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, IndexError, ValueError):
        has_pages = hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if has_pages else None

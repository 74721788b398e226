"""The performance-critical core: attention and cross-entropy, forward and backward. Knows nothing of models.

reference.py               the definitions in plain PyTorch: truth, fallback and baseline at once
arguments.py               options and layouts that the CPU and the GPU side share
packing.py                 sequences of different lengths in one row of tokens, and such as begin alike
backend.py                 which implementation runs, and the reason in words
operators.py               how a function becomes an operator of PyTorch

attention.py               one attention for training, prefill and decoding
    cpu/attention.py           SDPA where that is fast, short sequences, steps of generation
    cpu/blocks.py              blocks of queries for all else
    cpu/dropout.py             what dropout multiplies by
    gpu/attention.py           formula, forward, backward in Triton
    gpu/attention_walk.py      which tiles those walk over
    gpu/descriptors.py         the forward once more, with tiles that the copy engine of newer cards moves
    gpu/decode.py              a step of generation: few queries, the keys in shares
    gpu/attention_launch.py    launches and operators
    gpu/launch_table.py        tiles, warps and pipelines by architecture
    philox.py                  dropout as a function of the place, the same on a CPU and on a GPU

cross_entropy.py           loss, log-probability, log-sum-exp and entropy of every token
    cpu/cross_entropy.py       in PyTorch, in place
    gpu/cross_entropy.py       in Triton: forward, backward, launches

linear_cross_entropy.py    the same from hidden states and the output matrix, logits never stored whole
"""

from kernels.attention import attention, leave_untraced
from kernels.backend import IMPLS, Choice, choose, set_default
from kernels.cross_entropy import TokenStats, cross_entropy
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.packing import Branches, Packing

# transformers (used by our tests only) asks any importable package called `kernels` for its version.
__version__ = "0.0.0"

__all__ = [
    "IMPLS",
    "Branches",
    "Choice",
    "Packing",
    "TokenStats",
    "attention",
    "choose",
    "cross_entropy",
    "leave_untraced",
    "linear_cross_entropy",
    "set_default",
]

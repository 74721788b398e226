"""The performance-critical core: attention and cross-entropy, forward and backward. Knows nothing of models.

reference.py               the definitions in plain PyTorch: truth, fallback and baseline at once
packing.py                 sequences of different lengths in one row of tokens
backend.py                 which implementation runs, and the reason in words

attention.py               one attention for training, prefill and decoding
    attention_torch.py         SDPA where that is fast
    attention_blocks.py        blocks of queries where it is not, or cannot do it
    attention_short.py         short sequences of half precision, padded
    decoding.py                one query a sequence over a cache, without overhead
    attention_triton.py        on a GPU: launch tables and operators
    attention_kernels.py       on a GPU: formula, forward, backward
    dropout.py                 what dropout multiplies by
    philox.py                  the same as a function of the place, on a CPU and on a GPU

cross_entropy.py           loss, log-probability, log-sum-exp and entropy of every token
    cross_entropy_torch.py     in PyTorch, in place
    cross_entropy_triton.py    on a GPU: forward, backward, launches

linear_cross_entropy.py    the same from hidden states and the output matrix, logits never stored whole
    linear_cross_entropy_chunks.py  the passes over chunks of rows

inspect.py                 the machine code of every kernel, without a GPU
"""

from kernels.attention import attention
from kernels.backend import IMPLS, Choice, choose, set_default
from kernels.cross_entropy import TokenStats, cross_entropy
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.packing import Packing

# transformers (used by our tests only) asks any importable package called `kernels` for its version.
__version__ = "0.0.0"

__all__ = [
    "IMPLS",
    "Choice",
    "Packing",
    "TokenStats",
    "attention",
    "choose",
    "cross_entropy",
    "linear_cross_entropy",
    "set_default",
]

"""Test-wide set-up. Without a GPU the Triton kernels run in Triton's interpreter."""

import os

import torch

# Read when `@triton.jit` runs, so it must be set before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(min(2, torch.get_num_threads()))

"""Set-up of the kernel tests: the interpreter of the oldest supported Triton needs help with a new NumPy."""

import os
from importlib.util import find_spec

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    import triton

    from tests.kernels.interpreter import accept_new_numpy

    if triton.__version__.startswith("3.6"):
        accept_new_numpy()

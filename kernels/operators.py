"""How a function becomes a PyTorch operator: one node to autograd and to torch.compile, which look no further.

A kernel registers plain functions of its own here, once, when it is imported; nothing of this file runs in a step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import torch
from torch._ops import OpOverload

_LIBRARY = torch.library.Library("minillm", "FRAGMENT")
# What torch.compile may rely on: the functions mean the same under it, and get their tensors laid out as without it.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
_TYPES = {bool: "bool", int: "SymInt", float: "float", int | None: "SymInt?", float | None: "float?"}


def operator(
    schema: str,
    function: Callable,
    *,
    fake: Callable,
    setup: Callable | None = None,
    gradient: Callable[..., tuple] | None = None,
) -> OpOverload:
    """The operator torch.ops.minillm.<name>, which runs `function`.

    schema      "name(Tensor x, float y) -> Tensor", the types of its arguments in PyTorch's words
    fake        (*arguments) → empty results, from which torch.compile learns their shapes and dtypes
    setup       (ctx, inputs, output): keeps for `gradient` what that needs
    gradient    (ctx, *gradients of the results) → a gradient or None for each argument. Without it the
                operator is itself a gradient, and whoever wants the second derivative is told that there is none.
    """
    name = schema.partition("(")[0]
    gradient = gradient or _refusal(name.removesuffix("_backward"))
    _LIBRARY.define(schema, tags=_TAGS)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"minillm::{name}", fake, lib=_LIBRARY)
    torch.library.register_autograd(f"minillm::{name}", gradient, setup_context=setup, lib=_LIBRARY)
    return getattr(torch.ops.minillm, name).default


def schema_of(options: type[NamedTuple]) -> str:
    """The fields of `options` as a part of a schema."""
    return ", ".join(f"{_TYPES[of]} {name}" for name, of in get_type_hints(options).items())


def constant(function: Callable) -> Callable:
    """torch.compile calls it once and believes the result: torch.compiler.assume_constant_result, but that imports
    all of torch._dynamo, which takes a second."""
    function._dynamo_marked_constant = True
    return function


def _refusal(name: str) -> Callable:
    def refuse(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(f"{name} has no second derivative; use impl='eager' for that")

    return refuse

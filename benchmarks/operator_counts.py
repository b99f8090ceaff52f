"""What every operator of a call reads, writes and computes, counted as torch dispatches it."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from variants.definition import BACKWARD_FACTOR

OVERWRITING = frozenset({"copy_", "fill_", "zero_"})
"""Operators that do not read what they write to."""

ALLOCATING = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"})
"""Operators that write nothing."""

UNDECLARED_VIEWS = frozenset({"detach", "alias", "_unsafe_view"})
"""Operators that are views whatever their schema says of the result."""


@dataclass(slots=True)
class Count:
    """Sums over the calls of one operator."""

    calls: int = 0
    flops: int = 0
    bytes: int = 0


class Counting(TorchDispatchMode):
    """Counts operators while it is entered: calls, FLOPs of products and attention, bytes read and written.

    Views move nothing and are left out. What a kernel holds inside itself is not seen.
    """

    def __init__(self) -> None:
        """Nothing counted."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.dispatched = 0
        self.counts: dict[str, Count] = defaultdict(Count)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and add it up."""
        self.dispatched += 1
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not is_view(func):
            count = self.counts[f"{func.namespace}::{name}"]
            count.calls += 1
            reads = () if name in ALLOCATING else args[1:] if name in OVERWRITING else args
            read = tensors((reads, kwargs))
            written = [] if name in ALLOCATING else tensors(out)
            count.bytes += sum(map(size_of, (*read, *written)))
            count.flops += flops_of(func, args, kwargs or {}, out)
        return out


def is_view(func: Any) -> bool:
    """Whether the result is another look at an argument's memory: nothing is read or written."""
    aliases = [result.alias_info for result in func._schema.returns]  # no other way to a schema
    return func.overloadpacket.__name__ in UNDECLARED_VIEWS or any(
        alias is not None and not alias.is_write for alias in aliases
    )


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in tensors(part)]


def size_of(tensor: Tensor) -> int:
    """Bytes that a pass over the tensor touches: an expanded axis is read once."""
    extents = (size if stride else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return math.prod(extents) * tensor.element_size() if tensor.numel() else 0


def flops_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """FLOPs of products, by torch's formulas, and of fused attention, whose causal half torch would count twice."""
    name = func.overloadpacket.__name__
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    if "scaled_dot_product" in name and isinstance(named.get("query"), Tensor):
        q, k, v = named["query"], named["key"], named["value"]
        pairs = visible_pairs(q.shape[2], k.shape[2], causal=bool(named.get("is_causal")))
        forward = 2 * q.shape[0] * q.shape[1] * pairs * (q.shape[3] + v.shape[3])
        return int(BACKWARD_FACTOR * forward) if name.endswith("backward") else forward
    if func.namespace == "mkldnn" and name == "_linear_pointwise":  # oneDNN's, of which torch has no formula
        return 2 * int(args[0].numel()) * int(args[1].shape[0])
    formula = flop_registry.get(func.overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0


def visible_pairs(tokens: int, kv_tokens: int, *, causal: bool) -> int:
    """Pairs of one head under torch's causal mask, which starts at the upper left."""
    if not causal:
        return tokens * kv_tokens
    full = min(tokens, kv_tokens)
    return full * (full + 1) // 2 + (tokens - full) * kv_tokens

"""What ran in a call, in a few words, from what the profiler saw of it."""

import re
from collections.abc import Sequence
from typing import Final

LONGEST: Final = 60
PRODUCTS: Final = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")


def kernel_on_cpu(operators: Sequence[str]) -> str:
    """The attention kernel that ran, or the operators that did the products."""
    if found := _fused(operators):
        return found
    return ", ".join(name.removeprefix("aten::") for name in operators if name.rstrip("_") in PRODUCTS) or "elementwise"


def kernel_on_card(operators: Sequence[str], kernels: Sequence[str], ran: str = "") -> str:
    """The operator of fused attention, the kernel that took longest, and what the variant says of its choice."""
    parts = [_fused(operators), short_name(kernels[0]) if kernels else "", ran]
    return ": ".join(part for part in parts if part) or kernel_on_cpu(operators)


def _fused(operators: Sequence[str]) -> str:
    fused = [name for name in operators if "attention" in name and not name.endswith("dot_product_attention")]
    if fused:
        return ", ".join(dict.fromkeys(name.removeprefix("aten::") for name in fused))
    return "compiled" if any(name.startswith("Torch-Compiled Region") for name in operators) else ""


def short_name(kernel: str) -> str:
    """The name of a kernel on a card without its template's arguments, parameters and namespaces."""
    name, before = kernel, ""
    while name != before:  # from the innermost out
        before, name = name, re.sub(r"<[^<>]*>|\([^()]*\)", "", name)
    return name.strip().removeprefix("void ").rpartition("::")[2].strip()[:LONGEST]

"""Query heads by the key-value head that they share, and parts of their attention merged into some of their rows."""

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor


def by_group(x: Float[Tensor, "batch heads *axes"], kv_heads: int) -> Float[Tensor, "kv_rows group *axes"]:
    """Batch and key-value heads as one axis, before the heads of a group; a view of what is contiguous.

    The last axis is made dense: the fused kernels read it as it lies.
    """
    grouped = x.reshape(x.shape[0] * kv_heads, x.shape[1] // kv_heads, *x.shape[2:])
    return grouped if grouped.stride(-1) == 1 else grouped.contiguous()


def taken(x: Tensor, index: Integer[Tensor, "*places"]) -> Tensor:
    """`x[index]`, as rows copied whole: a few times faster on a CPU."""
    rows: Tensor = x.index_select(0, index.flatten())
    return rows.view(*index.shape, *x.shape[1:])


def merge_rows(
    out: Float[Tensor, "*heads tokens dim"],
    lse: Float[Tensor, "*heads tokens"],
    rows: Int64[Tensor, " rows"],
    part: Float[Tensor, "*heads rows dim"],
    line: Float[Tensor, "*heads rows"],
) -> None:
    """Merge attention to other keys, by its finite log-sum-exp `line`, into rows, none twice, of `out` and `lse`."""
    before = lse.index_select(-1, rows)
    # Not logaddexp: its last few elements are rounded otherwise, so that a row would depend on the rows beside it.
    top = torch.maximum(before, line)
    old, new = torch.exp(before - top), torch.exp(line - top)
    total = old + new
    merged = out.index_select(-2, rows).mul_((old / total).unsqueeze(-1))
    out.index_copy_(-2, rows, merged.add_(part * (new / total).unsqueeze(-1)))
    lse.index_copy_(-1, rows, total.log_().add_(top))

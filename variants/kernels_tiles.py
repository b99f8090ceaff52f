"""Device code that all Triton kernels here share: tiles of rows, products, rounding, and the online softmax.

Tiles begin at 64-bit offsets, since a batch of long sequences has more than 2³¹ elements; within a
tile 32 bits suffice. Kernels have one grid axis, since the others end at 65535.
"""

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter ran what was decorated here: it is told once, when the module is imported."""


@triton.jit
def plane(base, batch, head, stride_batch, stride_head):
    """The first row of one head of one batch item."""
    return base + tl.cast(batch, tl.int64) * stride_batch + tl.cast(head, tl.int64) * stride_head


@triton.jit
def load_rows(base, first, rows, limit, columns, stride_row, stride_column, WIDTH: tl.constexpr, BOUNDED: tl.constexpr):
    """Rows first + rows of a matrix of `limit` rows and WIDTH columns; zero beyond either."""
    pointers = (
        base + tl.cast(first, tl.int64) * stride_row + (rows[:, None] * stride_row + columns[None, :] * stride_column)
    )
    if BOUNDED:
        inside = (first + rows >= 0) & (first + rows < limit)
        return tl.load(pointers, mask=inside[:, None] & (columns < WIDTH)[None, :], other=0.0)
    elif columns.shape[0] == WIDTH:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(columns < WIDTH)[None, :], other=0.0)


@triton.jit
def store_rows(
    base, first, rows, start, limit, columns, stride_row, stride_column, values, WIDTH: tl.constexpr, DOT: tl.constexpr
):
    """Store rows first + rows, those from `start` up to `limit`, in the type that `base` points to."""
    pointers = (
        base + tl.cast(first, tl.int64) * stride_row + (rows[:, None] * stride_row + columns[None, :] * stride_column)
    )
    inside = (first + rows >= start) & (first + rows < limit)
    tl.store(pointers, narrowed(values, base.dtype.element_ty, DOT), mask=inside[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def narrowed(x, dtype: tl.constexpr, DOT: tl.constexpr):
    """float32 rounded to the nearest of a dtype."""
    if DOT == "emulated" and dtype == tl.bfloat16:
        # Triton's interpreter cuts the digits off, which doubles the error: here they are rounded first.
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def product(a, b, sums, DOT: tl.constexpr):
    """sums + a b, summed in float32."""
    if DOT == "emulated":
        # Triton's interpreter takes the bits of bfloat16 for whole numbers.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    else:
        return tl.dot(a, b, sums, input_precision=DOT)


@triton.jit
def online(sums, top, total, scores, scale, v, MASKED: tl.constexpr, DOT: tl.constexpr):
    """One tile of keys in a softmax to base 2 whose largest score so far is `top`; hidden scores are −∞."""
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    if MASKED:
        # A row that has seen no key keeps −∞, which must not meet itself in a difference.
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    else:
        shift = new_top
    weights = tl.exp2(scores * scale - shift[:, None])
    fade = tl.exp2(top - shift)
    total = total * fade + tl.sum(weights, 1)
    sums = product(narrowed(weights, v.dtype, DOT), v, sums * fade[:, None], DOT)
    return sums, new_top, total


@triton.jit
def finish_rows(
    out, lse, first, rows, start, limit, columns, stride_row, stride_column, sums, top, total,
    WIDTH: tl.constexpr, KEEP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Divide by the totals and store; a row that saw no key is zero, and so is its log-sum-exp (to base 2)."""
    seen = total > 0
    sums = sums / tl.where(seen, total, 1.0)[:, None]
    store_rows(out, first, rows, start, limit, columns, stride_row, stride_column, sums, WIDTH, DOT)
    if KEEP:
        inside = (first + rows >= start) & (first + rows < limit)
        tl.store(lse + first + rows, tl.where(seen, top + tl.log2(tl.where(seen, total, 1.0)), 0.0), mask=inside)


@triton.jit
def row_products(
    out, grad, norms, sums, tokens, heads,
    out_batch, out_head, out_row, out_column, grad_batch, grad_head, grad_row, grad_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """Σ_d out · grad of each row; NORMALISED: minus that, over the row's normaliser."""
    tiles = tl.cdiv(tokens, ROWS)
    own = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * ROWS
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    o = plane(out, own // heads, own % heads, out_batch, out_head)
    g = plane(grad, own // heads, own % heads, grad_batch, grad_head)
    o = load_rows(o, first, rows, tokens, columns, out_row, out_column, WIDTH, True).to(tl.float32)
    g = load_rows(g, first, rows, tokens, columns, grad_row, grad_column, WIDTH, True).to(tl.float32)
    found = tl.sum(o * g, 1)
    place = tl.cast(own, tl.int64) * tokens + first + rows
    inside = first + rows < tokens
    if NORMALISED:
        found = -found / tl.load(norms + place, mask=inside, other=1.0)
    tl.store(sums + place, found, mask=inside)

"""Device code of local-window attention: only tiles of keys within reach are read, the inner ones without a mask.

A query at position p sees the keys from p − before to p + after; query i has position i + offset.
"""

import triton
import triton.language as tl

from variants.kernels_tiles import (
    INTERPRETED,
    finish_rows,
    load_rows,
    narrowed,
    online,
    plane,
    product,
    row_products,
    store_rows,
)

__all__ = ["INTERPRETED", "forward", "key_gradients", "query_gradient", "row_products"]


@triton.jit
def seen_keys(first, stop, offset, kv_tokens, before, after, KEYS: tl.constexpr):
    """Of queries first … stop − 1: their keys' ends, and between them the ends of the tiles that all see whole."""
    low = tl.maximum(first + offset - before, 0)
    high = tl.maximum(tl.minimum(stop + offset + after, kv_tokens), low)
    inner_low = low + tl.cdiv(tl.maximum(stop - 1 + offset - before - low, 0), KEYS) * KEYS
    inner_low = tl.minimum(inner_low, low + tl.cdiv(high - low, KEYS) * KEYS)
    inner_high = low + tl.maximum(tl.minimum(first + offset + after + 1, kv_tokens) - low, 0) // KEYS * KEYS
    return low, inner_low, tl.maximum(inner_high, inner_low), high


@triton.jit
def hidden_scores(scores, positions, keys, kv_tokens, before, after):
    """Scores (queries × keys), −∞ where a key is out of reach."""
    distance = keys[None, :] - positions[:, None]
    return tl.where((distance >= -before) & (distance <= after) & (keys < kv_tokens)[None, :], scores, float("-inf"))


@triton.jit
def forward_stretch(
    sums, top, total, q, k, v, low, high, positions, kv_tokens, before, after, scale, columns,
    k_row, k_column, v_row, v_column,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The tiles of keys from `low` to `high`."""
    keys = tl.arange(0, KEYS)
    for start in range(low, high, KEYS):
        kt = load_rows(k, start, keys, kv_tokens, columns, k_row, k_column, WIDTH, MASKED)
        scores = product(q, tl.trans(kt), tl.zeros([ROWS, KEYS], tl.float32), DOT)
        if MASKED:
            scores = hidden_scores(scores, positions, start + keys, kv_tokens, before, after)
        vt = load_rows(v, start, keys, kv_tokens, columns, v_row, v_column, WIDTH, MASKED)
        sums, top, total = online(sums, top, total, scores, scale, vt, MASKED, DOT)
    return sums, top, total


@triton.jit
def forward(
    q, k, v, out, lse, tokens, kv_tokens, heads, group, offset, before, after, scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, out_batch, out_head, out_row, out_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    DOT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """One tile of queries; `scale` is that of the scores to base 2."""
    tiles = tl.cdiv(tokens, ROWS)
    own = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * ROWS
    batch, head = own // heads, own % heads
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    q = plane(q, batch, head, q_batch, q_head)
    k = plane(k, batch, head // group, k_batch, k_head)
    v = plane(v, batch, head // group, v_batch, v_head)
    qt = load_rows(q, first, rows, tokens, columns, q_row, q_column, WIDTH, True)
    positions = first + rows + offset
    stop = tl.minimum(first + ROWS, tokens)
    low, inner_low, inner_high, high = seen_keys(first, stop, offset, kv_tokens, before, after, KEYS)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums, top, total = forward_stretch(
        sums, top, total, qt, k, v, low, tl.minimum(inner_low, high), positions, kv_tokens, before, after, scale,
        columns, k_row, k_column, v_row, v_column, WIDTH, ROWS, KEYS, DOT, True,
    )  # fmt: skip
    sums, top, total = forward_stretch(
        sums, top, total, qt, k, v, inner_low, inner_high, positions, kv_tokens, before, after, scale,
        columns, k_row, k_column, v_row, v_column, WIDTH, ROWS, KEYS, DOT, False,
    )  # fmt: skip
    sums, top, total = forward_stretch(
        sums, top, total, qt, k, v, inner_high, high, positions, kv_tokens, before, after, scale,
        columns, k_row, k_column, v_row, v_column, WIDTH, ROWS, KEYS, DOT, True,
    )  # fmt: skip
    out = plane(out, batch, head, out_batch, out_head)
    lse = lse + tl.cast(own, tl.int64) * tokens
    finish_rows(
        out, lse, first, rows, 0, tokens, columns, out_row, out_column, sums, top, total, WIDTH, KEEP, DOT
    )  # fmt: skip


@triton.jit
def query_stretch(
    sums, q, grad, lse, delta, k, v, low, high, positions, kv_tokens, before, after, scale, columns,
    k_row, k_column, v_row, v_column,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile of queries from the keys `low` to `high`."""
    keys = tl.arange(0, KEYS)
    for start in range(low, high, KEYS):
        kt = load_rows(k, start, keys, kv_tokens, columns, k_row, k_column, WIDTH, MASKED)
        vt = load_rows(v, start, keys, kv_tokens, columns, v_row, v_column, WIDTH, MASKED)
        scores = product(q, tl.trans(kt), tl.zeros([ROWS, KEYS], tl.float32), DOT)
        if MASKED:
            scores = hidden_scores(scores, positions, start + keys, kv_tokens, before, after)
        weights = tl.exp2(scores * scale - lse[:, None])
        slopes = product(grad, tl.trans(vt), tl.zeros([ROWS, KEYS], tl.float32), DOT)
        inner = weights * (slopes - delta[:, None])
        sums = product(narrowed(inner, kt.dtype, DOT), kt, sums, DOT)
    return sums


@triton.jit
def query_gradient(
    q, k, v, grad, lse, delta, dq, tokens, kv_tokens, heads, group, offset, before, after, scale, sm_scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column, v_batch, v_head, v_row, v_column,
    g_batch, g_head, g_row, g_column, dq_batch, dq_head, dq_row, dq_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries."""
    tiles = tl.cdiv(tokens, ROWS)
    own = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * ROWS
    batch, head = own // heads, own % heads
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    q = plane(q, batch, head, q_batch, q_head)
    k = plane(k, batch, head // group, k_batch, k_head)
    v = plane(v, batch, head // group, v_batch, v_head)
    grad = plane(grad, batch, head, g_batch, g_head)
    qt = load_rows(q, first, rows, tokens, columns, q_row, q_column, WIDTH, True)
    gt = load_rows(grad, first, rows, tokens, columns, g_row, g_column, WIDTH, True)
    place = tl.cast(own, tl.int64) * tokens + first + rows
    lt = tl.load(lse + place, mask=first + rows < tokens, other=0.0)
    dt = tl.load(delta + place, mask=first + rows < tokens, other=0.0)
    positions = first + rows + offset
    stop = tl.minimum(first + ROWS, tokens)
    low, inner_low, inner_high, high = seen_keys(first, stop, offset, kv_tokens, before, after, KEYS)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    sums = query_stretch(
        sums, qt, gt, lt, dt, k, v, low, tl.minimum(inner_low, high), positions, kv_tokens, before, after, scale,
        columns, k_row, k_column, v_row, v_column, WIDTH, ROWS, KEYS, DOT, True,
    )  # fmt: skip
    sums = query_stretch(
        sums, qt, gt, lt, dt, k, v, inner_low, inner_high, positions, kv_tokens, before, after, scale,
        columns, k_row, k_column, v_row, v_column, WIDTH, ROWS, KEYS, DOT, False,
    )  # fmt: skip
    sums = query_stretch(
        sums, qt, gt, lt, dt, k, v, inner_high, high, positions, kv_tokens, before, after, scale,
        columns, k_row, k_column, v_row, v_column, WIDTH, ROWS, KEYS, DOT, True,
    )  # fmt: skip
    dq = plane(dq, batch, head, dq_batch, dq_head)
    store_rows(dq, first, rows, 0, tokens, columns, dq_row, dq_column, sums * sm_scale, WIDTH, DOT)


@triton.jit
def seeing_queries(first, stop, offset, tokens, before, after, ROWS: tl.constexpr):
    """Of keys first … stop − 1: their queries' ends, and between them the ends of the tiles that see all of them."""
    low = tl.maximum(first - after - offset, 0)
    high = tl.maximum(tl.minimum(stop + before - offset, tokens), low)
    inner_low = low + tl.cdiv(tl.maximum(stop - 1 - after - offset - low, 0), ROWS) * ROWS
    inner_low = tl.minimum(inner_low, low + tl.cdiv(high - low, ROWS) * ROWS)
    inner_high = low + tl.maximum(tl.minimum(first + before - offset + 1, tokens) - low, 0) // ROWS * ROWS
    return low, inner_low, tl.maximum(inner_high, inner_low), high


@triton.jit
def key_stretch(
    dk, dv, k, v, q, grad, lse, delta, low, high, keys, tokens, offset, before, after, scale, columns,
    q_row, q_column, g_row, g_column,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradients of one tile of keys from the queries `low` to `high` of one head; scores are keys × queries."""
    rows = tl.arange(0, ROWS)
    for start in range(low, high, ROWS):
        qt = load_rows(q, start, rows, tokens, columns, q_row, q_column, WIDTH, MASKED)
        gt = load_rows(grad, start, rows, tokens, columns, g_row, g_column, WIDTH, MASKED)
        inside = start + rows < tokens
        lt = tl.load(lse + start + rows, mask=inside, other=0.0)
        dt = tl.load(delta + start + rows, mask=inside, other=0.0)
        scores = product(k, tl.trans(qt), tl.zeros([KEYS, ROWS], tl.float32), DOT)
        if MASKED:
            distance = keys[:, None] - (start + rows + offset)[None, :]
            visible = (distance >= -before) & (distance <= after) & inside[None, :]
            scores = tl.where(visible, scores, float("-inf"))
        weights = tl.exp2(scores * scale - lt[None, :])
        dv = product(narrowed(weights, gt.dtype, DOT), gt, dv, DOT)
        slopes = product(v, tl.trans(gt), tl.zeros([KEYS, ROWS], tl.float32), DOT)
        inner = weights * (slopes - dt[None, :])
        dk = product(narrowed(inner, qt.dtype, DOT), qt, dk, DOT)
    return dk, dv


@triton.jit
def key_gradients(
    q, k, v, grad, lse, delta, dk, dv, tokens, kv_tokens, kv_heads, group, offset, before, after, scale, sm_scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column, v_batch, v_head, v_row, v_column,
    g_batch, g_head, g_row, g_column, dk_batch, dk_head, dk_row, dk_column, dv_batch, dv_head, dv_row, dv_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys, over all the query heads that share it."""
    tiles = tl.cdiv(kv_tokens, KEYS)
    own = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * KEYS
    batch, kv_head = own // kv_heads, own % kv_heads
    keys, columns = tl.arange(0, KEYS), tl.arange(0, BLOCK)
    k = plane(k, batch, kv_head, k_batch, k_head)
    v = plane(v, batch, kv_head, v_batch, v_head)
    kt = load_rows(k, first, keys, kv_tokens, columns, k_row, k_column, WIDTH, True)
    vt = load_rows(v, first, keys, kv_tokens, columns, v_row, v_column, WIDTH, True)
    stop = tl.minimum(first + KEYS, kv_tokens)
    low, inner_low, inner_high, high = seeing_queries(first, stop, offset, tokens, before, after, ROWS)
    dk_sums = tl.zeros([KEYS, BLOCK], tl.float32)
    dv_sums = tl.zeros([KEYS, BLOCK], tl.float32)
    for member in range(group):
        head = kv_head * group + member
        qh = plane(q, batch, head, q_batch, q_head)
        gh = plane(grad, batch, head, g_batch, g_head)
        lines = tl.cast(own * group + member, tl.int64) * tokens
        dk_sums, dv_sums = key_stretch(
            dk_sums, dv_sums, kt, vt, qh, gh, lse + lines, delta + lines, low, tl.minimum(inner_low, high),
            first + keys, tokens, offset, before, after, scale, columns, q_row, q_column, g_row, g_column,
            WIDTH, ROWS, KEYS, DOT, True,
        )  # fmt: skip
        dk_sums, dv_sums = key_stretch(
            dk_sums, dv_sums, kt, vt, qh, gh, lse + lines, delta + lines, inner_low, inner_high,
            first + keys, tokens, offset, before, after, scale, columns, q_row, q_column, g_row, g_column,
            WIDTH, ROWS, KEYS, DOT, False,
        )  # fmt: skip
        dk_sums, dv_sums = key_stretch(
            dk_sums, dv_sums, kt, vt, qh, gh, lse + lines, delta + lines, inner_high, high,
            first + keys, tokens, offset, before, after, scale, columns, q_row, q_column, g_row, g_column,
            WIDTH, ROWS, KEYS, DOT, True,
        )  # fmt: skip
    dk = plane(dk, batch, kv_head, dk_batch, dk_head)
    dv = plane(dv, batch, kv_head, dv_batch, dv_head)
    store_rows(dk, first, keys, 0, kv_tokens, columns, dk_row, dk_column, dk_sums * sm_scale, WIDTH, DOT)
    store_rows(dv, first, keys, 0, kv_tokens, columns, dv_row, dv_column, dv_sums, WIDTH, DOT)

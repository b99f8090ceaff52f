"""Device code of blockwise low-rank attention: near keys and far segments in one online softmax.

Query i has position i + offset, and its own block is floor(position / block). A tile of queries, or
of keys, lies in one block, so that what is near to it is one stretch. A far segment of n tokens with
the means k̄ and v̄ counts as one key whose logit is q·k̄/√d + ln n.
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

__all__ = [
    "INTERPRETED",
    "forward",
    "key_gradients",
    "query_gradient",
    "row_products",
    "segment_gradients",
    "segment_means",
]


@triton.jit
def segment_means(
    x, means, heads, kv_tokens, segments, segment, x_batch, x_head, x_row, x_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The means of ROWS segments of one head, into (batch, heads, segments, WIDTH)."""
    tiles = tl.cdiv(segments, ROWS)
    own = tl.program_id(0) // tiles
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    x = plane(x, own // heads, own % heads, x_batch, x_head)
    pointers = x + rows.to(tl.int64)[:, None] * segment * x_row + columns[None, :] * x_column
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for token in range(segment):
        inside = (rows * segment + token < kv_tokens)[:, None] & (columns < WIDTH)[None, :]
        sums += tl.load(pointers + tl.cast(token, tl.int64) * x_row, mask=inside, other=0.0).to(tl.float32)
    sums = sums / token_counts(rows, segment, kv_tokens)[:, None]
    means = means + tl.cast(own, tl.int64) * segments * WIDTH
    store_rows(means, 0, rows, 0, segments, columns, WIDTH, 1, sums, WIDTH, DOT)


@triton.jit
def token_counts(segments, segment, kv_tokens):
    """Tokens of each segment, of which the last may be shorter; at least 1 beyond it."""
    return tl.maximum(tl.minimum(kv_tokens - segments * segment, segment), 1).to(tl.float32)


@triton.jit
def own_block(tile, first_block, block, ROWS: tl.constexpr):
    """Block, first position and end of a tile."""
    per_block = tl.cdiv(block, ROWS)
    own = first_block + tile // per_block
    first = own * block + tile % per_block * ROWS
    return own, first, tl.minimum(first + ROWS, (own + 1) * block)


@triton.jit
def near_keys(own, first, stop, block, kv_tokens, KEYS: tl.constexpr, CAUSAL: tl.constexpr):
    """The near keys' ends, and before the second the end of the tiles that every query sees whole."""
    low = tl.maximum((own - 1) * block, 0)
    if CAUSAL:
        high = tl.maximum(tl.minimum(stop, kv_tokens), low)
        whole = tl.maximum(tl.minimum(first + 1, kv_tokens) - low, 0)
    else:
        high = tl.maximum(tl.minimum((own + 2) * block, kv_tokens), low)
        whole = high - low
    return low, low + whole // KEYS * KEYS, high


@triton.jit
def far_segments(own, rank, segments, CAUSAL: tl.constexpr):
    """The end of the far segments on the left, and the beginning of those on the right."""
    left = tl.minimum(tl.maximum(own - 1, 0) * rank, segments)
    if CAUSAL:
        right = segments
    else:
        right = tl.minimum(tl.maximum((own + 2) * rank, 0), segments)
    return left, right


@triton.jit
def near_scores(q, kt, positions, keys, high, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
                CAUSAL: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Scores of near keys, −∞ where hidden."""
    scores = product(q, tl.trans(kt), tl.zeros([ROWS, KEYS], tl.float32), DOT)
    if MASKED:
        visible = (keys < high)[None, :]
        if CAUSAL:
            visible = visible & (keys[None, :] <= positions[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def far_scores(q, kt, keys, high, segment, kv_tokens, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
               MASKED: tl.constexpr):  # fmt: skip
    """Scores of segments to base 2, with the logarithms of their counts; −∞ from `high` on."""
    scores = product(q, tl.trans(kt), tl.zeros([ROWS, KEYS], tl.float32), DOT) * scale
    scores += tl.log2(token_counts(keys, segment, kv_tokens))[None, :]
    if MASKED:
        scores = tl.where((keys < high)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def near_stretch(
    sums, top, total, q, k, v, low, high, limit, positions, scale, columns, k_row, k_column, v_row, v_column,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The near keys from `low` to `high`."""
    keys = tl.arange(0, KEYS)
    for start in range(low, high, KEYS):
        kt = load_rows(k, start, keys, limit, columns, k_row, k_column, WIDTH, MASKED)
        scores = near_scores(q, kt, positions, start + keys, limit, ROWS, KEYS, DOT, CAUSAL, MASKED)
        vt = load_rows(v, start, keys, limit, columns, v_row, v_column, WIDTH, MASKED)
        sums, top, total = online(sums, top, total, scores, scale, vt, MASKED, DOT)
    return sums, top, total


@triton.jit
def far_stretch(
    sums, top, total, q, mk, mv, low, high, segment, kv_tokens, scale, columns,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The segments from `low` to `high`."""
    keys = tl.arange(0, KEYS)
    for start in range(low, high, KEYS):
        kt = load_rows(mk, start, keys, high, columns, WIDTH, 1, WIDTH, MASKED)
        scores = far_scores(q, kt, start + keys, high, segment, kv_tokens, scale, ROWS, KEYS, DOT, MASKED)
        vt = load_rows(mv, start, keys, high, columns, WIDTH, 1, WIDTH, MASKED)
        sums, top, total = online(sums, top, total, scores, 1.0, vt, MASKED, DOT)
    return sums, top, total


@triton.jit
def forward(
    q, k, v, mk, mv, out, lse, tokens, kv_tokens, segments, heads, group, offset, first_block, blocks, block, rank,
    segment, scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, out_batch, out_head, out_row, out_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    DOT: tl.constexpr, CAUSAL: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """One tile of queries: near keys, then far segments; `scale` is that of the scores to base 2."""
    tiles = blocks * tl.cdiv(block, ROWS)
    head_index = tl.program_id(0) // tiles
    batch, head = head_index // heads, head_index % heads
    own, first, stop = own_block(tl.program_id(0) % tiles, first_block, block, ROWS)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row = first - offset
    limit = tl.minimum(stop - offset, tokens)
    means = tl.cast(batch * (heads // group) + head // group, tl.int64) * segments * WIDTH
    q = plane(q, batch, head, q_batch, q_head)
    k = plane(k, batch, head // group, k_batch, k_head)
    v = plane(v, batch, head // group, v_batch, v_head)
    qt = load_rows(q, row, rows, limit, columns, q_row, q_column, WIDTH, True)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    low, whole, high = near_keys(own, first, limit + offset, block, kv_tokens, KEYS, CAUSAL)
    sums, top, total = near_stretch(
        sums, top, total, qt, k, v, low, whole, high, first + rows, scale, columns, k_row, k_column, v_row, v_column,
        WIDTH, ROWS, KEYS, DOT, CAUSAL, False,
    )  # fmt: skip
    sums, top, total = near_stretch(
        sums, top, total, qt, k, v, whole, high, high, first + rows, scale, columns, k_row, k_column, v_row, v_column,
        WIDTH, ROWS, KEYS, DOT, CAUSAL, True,
    )  # fmt: skip
    left, right = far_segments(own, rank, segments, CAUSAL)
    whole = left // KEYS * KEYS
    sums, top, total = far_stretch(
        sums, top, total, qt, mk + means, mv + means, 0, whole, segment, kv_tokens, scale, columns,
        WIDTH, ROWS, KEYS, DOT, False,
    )  # fmt: skip
    sums, top, total = far_stretch(
        sums, top, total, qt, mk + means, mv + means, whole, left, segment, kv_tokens, scale, columns,
        WIDTH, ROWS, KEYS, DOT, True,
    )  # fmt: skip
    if not CAUSAL:
        sums, top, total = far_stretch(
            sums, top, total, qt, mk + means, mv + means, right, segments, segment, kv_tokens, scale, columns,
            WIDTH, ROWS, KEYS, DOT, True,
        )  # fmt: skip
    out = plane(out, batch, head, out_batch, out_head)
    lse = lse + tl.cast(head_index, tl.int64) * tokens
    finish_rows(out, lse, row, rows, 0, limit, columns, out_row, out_column, sums, top, total, WIDTH, KEEP, DOT)


@triton.jit
def query_step(
    sums, scores, scale, lse, delta, grad, kt, vt, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr
):
    """What one tile of keys adds to the gradient of the queries."""
    weights = tl.exp2(scores * scale - lse[:, None])
    slopes = product(grad, tl.trans(vt), tl.zeros([ROWS, KEYS], tl.float32), DOT)
    return product(narrowed(weights * (slopes - delta[:, None]), kt.dtype, DOT), kt, sums, DOT)


@triton.jit
def near_query_stretch(
    sums, q, grad, lse, delta, k, v, low, high, limit, positions, scale, columns, k_row, k_column, v_row, v_column,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries from its near keys."""
    keys = tl.arange(0, KEYS)
    for start in range(low, high, KEYS):
        kt = load_rows(k, start, keys, limit, columns, k_row, k_column, WIDTH, MASKED)
        vt = load_rows(v, start, keys, limit, columns, v_row, v_column, WIDTH, MASKED)
        scores = near_scores(q, kt, positions, start + keys, limit, ROWS, KEYS, DOT, CAUSAL, MASKED)
        sums = query_step(sums, scores, scale, lse, delta, grad, kt, vt, ROWS, KEYS, DOT)
    return sums


@triton.jit
def far_query_stretch(
    sums, q, grad, lse, delta, mk, mv, low, high, segment, kv_tokens, scale, columns,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries from its far segments."""
    keys = tl.arange(0, KEYS)
    for start in range(low, high, KEYS):
        kt = load_rows(mk, start, keys, high, columns, WIDTH, 1, WIDTH, MASKED)
        vt = load_rows(mv, start, keys, high, columns, WIDTH, 1, WIDTH, MASKED)
        scores = far_scores(q, kt, start + keys, high, segment, kv_tokens, scale, ROWS, KEYS, DOT, MASKED)
        sums = query_step(sums, scores, 1.0, lse, delta, grad, kt, vt, ROWS, KEYS, DOT)
    return sums


@triton.jit
def query_gradient(
    q, k, v, mk, mv, grad, lse, delta, dq, tokens, kv_tokens, segments, heads, group, offset, first_block, blocks,
    block, rank, segment, scale, sm_scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column, v_batch, v_head, v_row, v_column,
    g_batch, g_head, g_row, g_column, dq_batch, dq_head, dq_row, dq_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    DOT: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries, along the way of the forward kernel."""
    tiles = blocks * tl.cdiv(block, ROWS)
    head_index = tl.program_id(0) // tiles
    batch, head = head_index // heads, head_index % heads
    own, first, stop = own_block(tl.program_id(0) % tiles, first_block, block, ROWS)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row = first - offset
    limit = tl.minimum(stop - offset, tokens)
    means = tl.cast(batch * (heads // group) + head // group, tl.int64) * segments * WIDTH
    q = plane(q, batch, head, q_batch, q_head)
    k = plane(k, batch, head // group, k_batch, k_head)
    v = plane(v, batch, head // group, v_batch, v_head)
    grad = plane(grad, batch, head, g_batch, g_head)
    qt = load_rows(q, row, rows, limit, columns, q_row, q_column, WIDTH, True)
    gt = load_rows(grad, row, rows, limit, columns, g_row, g_column, WIDTH, True)
    inside = (row + rows >= 0) & (row + rows < limit)
    lines = tl.cast(head_index, tl.int64) * tokens
    lt = tl.load(lse + lines + row + rows, mask=inside, other=0.0)
    dt = tl.load(delta + lines + row + rows, mask=inside, other=0.0)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    low, whole, high = near_keys(own, first, limit + offset, block, kv_tokens, KEYS, CAUSAL)
    sums = near_query_stretch(
        sums, qt, gt, lt, dt, k, v, low, whole, high, first + rows, scale, columns,
        k_row, k_column, v_row, v_column, WIDTH, ROWS, KEYS, DOT, CAUSAL, False,
    )  # fmt: skip
    sums = near_query_stretch(
        sums, qt, gt, lt, dt, k, v, whole, high, high, first + rows, scale, columns,
        k_row, k_column, v_row, v_column, WIDTH, ROWS, KEYS, DOT, CAUSAL, True,
    )  # fmt: skip
    left, right = far_segments(own, rank, segments, CAUSAL)
    whole = left // KEYS * KEYS
    sums = far_query_stretch(
        sums, qt, gt, lt, dt, mk + means, mv + means, 0, whole, segment, kv_tokens, scale, columns,
        WIDTH, ROWS, KEYS, DOT, False,
    )  # fmt: skip
    sums = far_query_stretch(
        sums, qt, gt, lt, dt, mk + means, mv + means, whole, left, segment, kv_tokens, scale, columns,
        WIDTH, ROWS, KEYS, DOT, True,
    )  # fmt: skip
    if not CAUSAL:
        sums = far_query_stretch(
            sums, qt, gt, lt, dt, mk + means, mv + means, right, segments, segment, kv_tokens, scale, columns,
            WIDTH, ROWS, KEYS, DOT, True,
        )  # fmt: skip
    dq = plane(dq, batch, head, dq_batch, dq_head)
    store_rows(dq, row, rows, 0, limit, columns, dq_row, dq_column, sums * sm_scale, WIDTH, DOT)


@triton.jit
def key_step(dk, dv, kt, vt, qt, gt, lt, dt, scores, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr):
    """What one tile of queries adds to the gradients of keys and values; scores are keys × queries."""
    weights = tl.exp2(scores * scale - lt[None, :])
    dv = product(narrowed(weights, gt.dtype, DOT), gt, dv, DOT)
    slopes = product(vt, tl.trans(gt), tl.zeros([KEYS, ROWS], tl.float32), DOT)
    dk = product(narrowed(weights * (slopes - dt[None, :]), qt.dtype, DOT), qt, dk, DOT)
    return dk, dv


@triton.jit
def segment_stretch(
    dk, dv, kt, vt, q, grad, lse, delta, low, high, offset, left_end, right_start, counts, scale, columns,
    q_row, q_column, g_row, g_column,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of segments from the queries `low` to `high` of one head."""
    rows = tl.arange(0, ROWS)
    for start in range(low, high, ROWS):
        qt = load_rows(q, start, rows, high, columns, q_row, q_column, WIDTH, MASKED)
        gt = load_rows(grad, start, rows, high, columns, g_row, g_column, WIDTH, MASKED)
        inside = start + rows < high
        lt = tl.load(lse + start + rows, mask=inside, other=0.0)
        dt = tl.load(delta + start + rows, mask=inside, other=0.0)
        scores = product(kt, tl.trans(qt), tl.zeros([KEYS, ROWS], tl.float32), DOT) * scale + counts[:, None]
        if MASKED:
            positions = (start + rows + offset)[None, :]
            far = positions >= right_start[:, None]
            if not CAUSAL:
                far = far | (positions < left_end[:, None])
            scores = tl.where(far & inside[None, :], scores, float("-inf"))
        dk, dv = key_step(dk, dv, kt, vt, qt, gt, lt, dt, scores, 1.0, ROWS, KEYS, DOT)
    return dk, dv


@triton.jit
def segment_gradients(
    q, mk, mv, grad, lse, delta, dmk, dmv, tokens, kv_tokens, segments, kv_heads, all_heads, group, offset,
    block, rank, segment, splits, share, scale, sm_scale,
    q_batch, q_head, q_row, q_column, g_batch, g_head, g_row, g_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    DOT: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of means from `share` of the queries, into (splits, batch · kv_heads, segments, WIDTH)."""
    tiles = tl.cdiv(segments, KEYS)
    first = tl.program_id(0) % tiles * KEYS
    split = tl.program_id(0) // tiles % splits
    own = tl.program_id(0) // tiles // splits
    batch, kv_head = own // kv_heads, own % kv_heads
    keys, columns = tl.arange(0, KEYS), tl.arange(0, BLOCK)
    means = tl.cast(own, tl.int64) * segments * WIDTH
    kt = load_rows(mk + means, first, keys, segments, columns, WIDTH, 1, WIDTH, True)
    vt = load_rows(mv + means, first, keys, segments, columns, WIDTH, 1, WIDTH, True)
    counts = tl.log2(token_counts(first + keys, segment, kv_tokens))
    home = (first + keys) // rank
    last_home = (tl.minimum(first + KEYS, segments) - 1) // rank
    begin = split * share
    end = tl.minimum(begin + share, tokens)
    # On the left lie the queries before `left`, those before `all_left` far from every segment of the tile.
    left = tl.maximum(tl.minimum((last_home - 1) * block - offset, end), begin)
    all_left = tl.maximum(tl.minimum((first // rank - 1) * block - offset, end), begin)
    right = tl.maximum((first // rank + 2) * block - offset, begin)
    all_right = tl.maximum((last_home + 2) * block - offset, begin)
    if not CAUSAL:
        right = tl.maximum(right, left)
        all_right = tl.maximum(all_right, left)
    dk = tl.zeros([KEYS, BLOCK], tl.float32)
    dv = tl.zeros([KEYS, BLOCK], tl.float32)
    for member in range(group):
        head = kv_head * group + member
        qh = plane(q, batch, head, q_batch, q_head)
        gh = plane(grad, batch, head, g_batch, g_head)
        lines = tl.cast(own * group + member, tl.int64) * tokens
        if not CAUSAL:
            whole = begin + (all_left - begin) // ROWS * ROWS
            dk, dv = segment_stretch(
                dk, dv, kt, vt, qh, gh, lse + lines, delta + lines, begin, whole, offset, (home - 1) * block,
                (home + 2) * block, counts, scale, columns, q_row, q_column, g_row, g_column,
                WIDTH, ROWS, KEYS, DOT, CAUSAL, False,
            )  # fmt: skip
            dk, dv = segment_stretch(
                dk, dv, kt, vt, qh, gh, lse + lines, delta + lines, whole, left, offset, (home - 1) * block,
                (home + 2) * block, counts, scale, columns, q_row, q_column, g_row, g_column,
                WIDTH, ROWS, KEYS, DOT, CAUSAL, True,
            )  # fmt: skip
        near_end = tl.minimum(right + tl.cdiv(tl.maximum(all_right - right, 0), ROWS) * ROWS, end)
        whole = near_end + tl.maximum(end - near_end, 0) // ROWS * ROWS
        dk, dv = segment_stretch(
            dk, dv, kt, vt, qh, gh, lse + lines, delta + lines, right, near_end, offset, (home - 1) * block,
            (home + 2) * block, counts, scale, columns, q_row, q_column, g_row, g_column,
            WIDTH, ROWS, KEYS, DOT, CAUSAL, True,
        )  # fmt: skip
        dk, dv = segment_stretch(
            dk, dv, kt, vt, qh, gh, lse + lines, delta + lines, near_end, whole, offset, (home - 1) * block,
            (home + 2) * block, counts, scale, columns, q_row, q_column, g_row, g_column,
            WIDTH, ROWS, KEYS, DOT, CAUSAL, False,
        )  # fmt: skip
        dk, dv = segment_stretch(
            dk, dv, kt, vt, qh, gh, lse + lines, delta + lines, whole, end, offset, (home - 1) * block,
            (home + 2) * block, counts, scale, columns, q_row, q_column, g_row, g_column,
            WIDTH, ROWS, KEYS, DOT, CAUSAL, True,
        )  # fmt: skip
    place = (tl.cast(split, tl.int64) * all_heads + own) * segments * WIDTH
    store_rows(dmk + place, first, keys, 0, segments, columns, WIDTH, 1, dk * sm_scale, WIDTH, DOT)
    store_rows(dmv + place, first, keys, 0, segments, columns, WIDTH, 1, dv, WIDTH, DOT)


@triton.jit
def near_key_stretch(
    dk, dv, kt, vt, q, grad, lse, delta, low, high, limit, offset, keys, scale, columns,
    q_row, q_column, g_row, g_column,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys from the near queries `low` to `high` of one head."""
    rows = tl.arange(0, ROWS)
    for start in range(low, high, ROWS):
        qt = load_rows(q, start, rows, limit, columns, q_row, q_column, WIDTH, MASKED)
        gt = load_rows(grad, start, rows, limit, columns, g_row, g_column, WIDTH, MASKED)
        inside = start + rows < limit
        lt = tl.load(lse + start + rows, mask=inside, other=0.0)
        dt = tl.load(delta + start + rows, mask=inside, other=0.0)
        scores = product(kt, tl.trans(qt), tl.zeros([KEYS, ROWS], tl.float32), DOT)
        if MASKED:
            visible = inside[None, :]
            if CAUSAL:
                visible = visible & (keys[:, None] <= (start + rows + offset)[None, :])
            scores = tl.where(visible, scores, float("-inf"))
        dk, dv = key_step(dk, dv, kt, vt, qt, gt, lt, dt, scores, scale, ROWS, KEYS, DOT)
    return dk, dv


@triton.jit
def key_gradients(
    q, k, v, grad, lse, delta, dmk, dmv, dk, dv, tokens, kv_tokens, segments, kv_heads, group, offset,
    blocks, block, segment, scale, sm_scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column, v_batch, v_head, v_row, v_column,
    g_batch, g_head, g_row, g_column, dk_batch, dk_head, dk_row, dk_column, dv_batch, dv_head, dv_row, dv_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    DOT: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys: from its near queries, and its share of its segment's gradient."""
    tiles = blocks * tl.cdiv(block, KEYS)
    head_index = tl.program_id(0) // tiles
    batch, kv_head = head_index // kv_heads, head_index % kv_heads
    own, first, stop = own_block(tl.program_id(0) % tiles, 0, block, KEYS)
    keys, columns = tl.arange(0, KEYS), tl.arange(0, BLOCK)
    limit = tl.minimum(stop, kv_tokens)
    k = plane(k, batch, kv_head, k_batch, k_head)
    v = plane(v, batch, kv_head, v_batch, v_head)
    kt = load_rows(k, first, keys, limit, columns, k_row, k_column, WIDTH, True)
    vt = load_rows(v, first, keys, limit, columns, v_row, v_column, WIDTH, True)
    if CAUSAL:
        low = tl.maximum(first - offset, 0)
        hidden = tl.maximum(limit - 1 - offset - low, 0)
    else:
        low = tl.maximum((own - 1) * block - offset, 0)
        hidden = 0
    high = tl.maximum(tl.minimum((own + 2) * block - offset, tokens), low)
    inner_low = tl.minimum(low + tl.cdiv(hidden, ROWS) * ROWS, high)
    inner_high = inner_low + (high - inner_low) // ROWS * ROWS
    dk_sums = tl.zeros([KEYS, BLOCK], tl.float32)
    dv_sums = tl.zeros([KEYS, BLOCK], tl.float32)
    for member in range(group):
        head = kv_head * group + member
        qh = plane(q, batch, head, q_batch, q_head)
        gh = plane(grad, batch, head, g_batch, g_head)
        lines = tl.cast(head_index * group + member, tl.int64) * tokens
        dk_sums, dv_sums = near_key_stretch(
            dk_sums, dv_sums, kt, vt, qh, gh, lse + lines, delta + lines, low, inner_low, high, offset, first + keys,
            scale, columns, q_row, q_column, g_row, g_column, WIDTH, ROWS, KEYS, DOT, CAUSAL, True,
        )  # fmt: skip
        dk_sums, dv_sums = near_key_stretch(
            dk_sums, dv_sums, kt, vt, qh, gh, lse + lines, delta + lines, inner_low, inner_high, high, offset,
            first + keys, scale, columns, q_row, q_column, g_row, g_column, WIDTH, ROWS, KEYS, DOT, CAUSAL, False,
        )  # fmt: skip
        dk_sums, dv_sums = near_key_stretch(
            dk_sums, dv_sums, kt, vt, qh, gh, lse + lines, delta + lines, inner_high, high, high, offset, first + keys,
            scale, columns, q_row, q_column, g_row, g_column, WIDTH, ROWS, KEYS, DOT, CAUSAL, True,
        )  # fmt: skip
    home = (first + keys) // segment
    shares = tl.cast(head_index, tl.int64) * segments * WIDTH + home.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    inside = (first + keys < limit)[:, None] & (columns < WIDTH)[None, :]
    counts = token_counts(home, segment, kv_tokens)[:, None]
    dk_sums = dk_sums * sm_scale + tl.load(dmk + shares, mask=inside, other=0.0) / counts
    dv_sums = dv_sums + tl.load(dmv + shares, mask=inside, other=0.0) / counts
    dk = plane(dk, batch, kv_head, dk_batch, dk_head)
    dv = plane(dv, batch, kv_head, dv_batch, dv_head)
    store_rows(dk, first, keys, 0, limit, columns, dk_row, dk_column, dk_sums, WIDTH, DOT)
    store_rows(dv, first, keys, 0, limit, columns, dv_row, dv_column, dv_sums, WIDTH, DOT)

"""Device code of linear attention by chunks: states between chunks in one kernel, products within chunks in others.

o_i = scale · Σ_{j≤i} 2^{rate (i−j)} φ(q_i)·φ(k_j) v_j over Σ_{j≤i} φ(q_i)·φ(k_j) where NORMALISED, with
φ = elu + 1 where FEATURES, else the identity. Chunks are cut along the keys; query i has position
i + offset. Before chunk c the state is S_c = Σ_j 2^{rate (cC−j)} φ(k_j) v_jᵀ; for the gradients of the keys a
state T_c runs back from the end. Powers are of whole distances within a chunk: none can overflow.
Factors of products are bfloat16 where HALF, else float32 (tf32 for float16: its range would not hold the sums).
"""

import triton
import triton.language as tl

from variants.kernels_tiles import INTERPRETED, load_rows, narrowed, plane, product, row_products, store_rows

__all__ = ["INTERPRETED", "chunk_states", "key_gradients", "outputs", "query_gradient", "row_products"]


@triton.jit
def factor(x, HALF: tl.constexpr, DOT: tl.constexpr):
    """A factor of a product, rounded to nearest: for tf32 the card itself would cut the digits off."""
    if HALF:
        return narrowed(x, tl.bfloat16, DOT)
    elif DOT == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0xFFF + ((bits >> 13) & 1)) & -8192
        return bits.to(tl.float32, bitcast=True)
    else:
        return x


@triton.jit
def feature_rows(
    base, first, rows, limit, columns, stride_row, stride_column, WIDTH: tl.constexpr, FEATURES: tl.constexpr
):
    """φ of rows in float32; zero beyond the matrix, where φ itself would be one."""
    x = load_rows(base, first, rows, limit, columns, stride_row, stride_column, WIDTH, True).to(tl.float32)
    if FEATURES:
        inside = (first + rows >= 0) & (first + rows < limit)
        inside = inside[:, None] & (columns < WIDTH)[None, :]
        x = tl.where(inside, tl.where(x > 0, x + 1.0, tl.exp(tl.minimum(x, 0.0))), 0.0)
    return x


@triton.jit
def slope_rows(
    base, norms, first, rows, limit, columns, stride_row, stride_column, WIDTH: tl.constexpr, NORMALISED: tl.constexpr
):
    """The gradient of the numerator: that of the output, over the row's normaliser."""
    x = load_rows(base, first, rows, limit, columns, stride_row, stride_column, WIDTH, True).to(tl.float32)
    if NORMALISED:
        inside = (first + rows >= 0) & (first + rows < limit)
        x = x / tl.load(norms + first + rows, mask=inside, other=1.0)[:, None]
    return x


@triton.jit
def state_tile(states, slot, rows, columns, WIDTH: tl.constexpr):
    """A tile of one state in float32."""
    pointers = states + tl.cast(slot, tl.int64) * (WIDTH * WIDTH) + rows[:, None] * WIDTH + columns[None, :]
    return tl.load(pointers, mask=(rows < WIDTH)[:, None] & (columns < WIDTH)[None, :], other=0.0).to(tl.float32)


@triton.jit
def faded(weights, distance, rate, DECAY: tl.constexpr):
    """Weights within a chunk, by how far the key lies before the query; 0 where it lies after."""
    if DECAY:
        weights = weights * tl.exp2(rate * tl.maximum(distance, 0).to(tl.float32))
    return tl.where(distance >= 0, weights, 0.0)


@triton.jit
def chunk_states(
    x, y, norms, below, states, totals, rates, tokens, chunks, heads, own_heads, shift, splits, share,
    x_batch, x_head, x_row, x_column, y_batch, y_head, y_row, y_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    REVERSE: tl.constexpr, TOTAL: tl.constexpr, DECAY: tl.constexpr, NORMALISED: tl.constexpr,
    FEATURES: tl.constexpr, HALF: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile of the states Σ φ(x) yᵀ before each chunk (REVERSE: after it), or TOTAL: of the sum of each split."""
    wide = BLOCK // TILE
    to = tl.program_id(0) % wide
    across = tl.program_id(0) // wide % wide
    split = tl.program_id(0) // (wide * wide) % splits
    own = tl.program_id(0) // (wide * wide) // splits
    batch, head = own // heads, own % heads
    steps, columns, values = tl.arange(0, CHUNK), across * TILE + tl.arange(0, TILE), to * TILE + tl.arange(0, TILE)
    x = plane(x, batch, head // (heads // own_heads), x_batch, x_head)
    y = plane(y, batch, head // (heads // own_heads), y_batch, y_head)
    lines = tl.cast(own, tl.int64) * tokens
    if TOTAL:
        slots = splits
    else:
        slots = chunks
    state_base = states + tl.cast(own, tl.int64) * slots * (WIDTH * WIDTH)
    total_base = totals + tl.cast(own, tl.int64) * slots * WIDTH
    inside = (columns < WIDTH)[:, None] & (values < WIDTH)[None, :]
    places = columns[:, None] * WIDTH + values[None, :]
    state = tl.zeros([TILE, TILE], tl.float32)
    total = tl.zeros([TILE], tl.float32)
    kept, gain = 1.0, tl.full([CHUNK], 1.0, tl.float32)
    if DECAY:
        rate = tl.load(rates + head)
        kept = tl.exp2(rate * CHUNK)
        if REVERSE:
            gain = tl.exp2(rate * steps.to(tl.float32))
        else:
            gain = tl.exp2(rate * (CHUNK - steps).to(tl.float32))
    begin = split * share
    for step in range(begin, tl.minimum(begin + share, chunks)):
        if REVERSE:
            chunk = chunks - 1 - step
        else:
            chunk = step
        if not TOTAL:
            place = tl.cast(chunk, tl.int64)
            stored = narrowed(state, states.dtype.element_ty, DOT)
            tl.store(state_base + place * (WIDTH * WIDTH) + places, stored, mask=inside)
            if NORMALISED:
                tl.store(total_base + place * WIDTH + columns, total, mask=(columns < WIDTH) & (to == 0))
        first = chunk * CHUNK - shift
        xt = feature_rows(x, first, steps, tokens, columns, x_row, x_column, WIDTH, FEATURES)
        if REVERSE:
            yt = slope_rows(y, norms + lines, first, steps, tokens, values, y_row, y_column, WIDTH, NORMALISED)
            if NORMALISED:
                seen = (first + steps >= 0) & (first + steps < tokens)
                low = tl.load(below + lines + first + steps, mask=seen, other=0.0)
                total += tl.sum(xt * low[:, None], 0)
        else:
            yt = load_rows(y, first, steps, tokens, values, y_row, y_column, WIDTH, True).to(tl.float32)
            if NORMALISED:
                total += tl.sum(factor(xt, HALF, DOT).to(tl.float32), 0)
        xt = tl.trans(factor(xt * gain[:, None], HALF, DOT))
        state = product(xt, factor(yt, HALF, DOT), state * kept, DOT)
    if TOTAL:
        stored = narrowed(state, states.dtype.element_ty, DOT)
        tl.store(state_base + tl.cast(split, tl.int64) * (WIDTH * WIDTH) + places, stored, mask=inside)
        if NORMALISED:
            tl.store(total_base + split * WIDTH + columns, total, mask=(columns < WIDTH) & (to == 0))


@triton.jit
def outputs(
    q, k, v, states, totals, out, norms, rates, tokens, kv_tokens, heads, group, state_heads, offset, slots,
    first_chunk, chunks, scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, out_batch, out_head, out_row, out_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    CAUSAL: tl.constexpr, DECAY: tl.constexpr, NORMALISED: tl.constexpr, FEATURES: tl.constexpr,
    HALF: tl.constexpr, DOT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """One chunk of queries against the state before it and, CAUSAL, the keys of the same chunk; TILE value columns."""
    wide = BLOCK // TILE
    to = tl.program_id(0) % wide
    chunk = first_chunk + tl.program_id(0) // wide % chunks
    own = tl.program_id(0) // wide // chunks
    batch, head = own // heads, own % heads
    steps, values = tl.arange(0, CHUNK), to * TILE + tl.arange(0, TILE)
    slot = 0
    if CAUSAL:
        slot = chunk
    state_head = batch * state_heads + head // (heads // state_heads)
    states = states + tl.cast(state_head, tl.int64) * slots * (WIDTH * WIDTH)
    totals = totals + (tl.cast(state_head, tl.int64) * slots + slot) * WIDTH
    q = plane(q, batch, head, q_batch, q_head)
    k = plane(k, batch, head // group, k_batch, k_head)
    v = plane(v, batch, head // group, v_batch, v_head)
    row = chunk * CHUNK - offset
    sums = tl.zeros([CHUNK, TILE], tl.float32)
    weights = tl.zeros([CHUNK, CHUNK], tl.float32)
    norm = tl.zeros([CHUNK], tl.float32)
    for part in range(wide):
        columns = part * TILE + tl.arange(0, TILE)
        qt = factor(feature_rows(q, row, steps, tokens, columns, q_row, q_column, WIDTH, FEATURES), HALF, DOT)
        sums = product(qt, factor(state_tile(states, slot, columns, values, WIDTH), HALF, DOT), sums, DOT)
        if NORMALISED:
            sizes = tl.load(totals + columns, mask=columns < WIDTH, other=0.0)
            norm += tl.sum(qt.to(tl.float32) * sizes[None, :], 1)
        if CAUSAL:
            kt = feature_rows(k, chunk * CHUNK, steps, kv_tokens, columns, k_row, k_column, WIDTH, FEATURES)
            weights = product(qt, tl.trans(factor(kt, HALF, DOT)), weights, DOT)
    rate = 0.0
    if DECAY:
        rate = tl.load(rates + head)
        sums = sums * tl.exp2(rate * steps.to(tl.float32))[:, None]
    if CAUSAL:
        weights = faded(weights, steps[:, None] - steps[None, :], rate, DECAY)
        norm += tl.sum(weights, 1)
        vt = load_rows(v, chunk * CHUNK, steps, kv_tokens, values, v_row, v_column, WIDTH, True).to(tl.float32)
        sums = product(factor(weights, HALF, DOT), factor(vt, HALF, DOT), sums, DOT)
    if NORMALISED:
        norm = tl.where(norm > 0, norm, 1.0)
        sums = sums / norm[:, None]
        if KEEP:
            inside = (row + steps >= 0) & (row + steps < tokens) & (to == 0)
            tl.store(norms + tl.cast(own, tl.int64) * tokens + row + steps, norm, mask=inside)
    out = plane(out, batch, head, out_batch, out_head)
    store_rows(out, row, steps, 0, tokens, values, out_row, out_column, sums * scale, WIDTH, DOT)


@triton.jit
def feature_slope(x, gradient, FEATURES: tl.constexpr):
    """The gradient before φ: times 1 above 0 and e^x below."""
    if FEATURES:
        return gradient * tl.exp(tl.minimum(x, 0.0))
    else:
        return gradient


@triton.jit
def query_gradient(
    q, k, v, grad, norms, below, states, totals, dq, rates, tokens, kv_tokens, heads, group, state_heads, offset, slots,
    first_chunk, chunks, scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column, v_batch, v_head, v_row, v_column,
    g_batch, g_head, g_row, g_column, dq_batch, dq_head, dq_row, dq_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    CAUSAL: tl.constexpr, DECAY: tl.constexpr, NORMALISED: tl.constexpr, FEATURES: tl.constexpr,
    HALF: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """TILE columns of dq of one chunk."""
    wide = BLOCK // TILE
    to = tl.program_id(0) % wide
    chunk = first_chunk + tl.program_id(0) // wide % chunks
    own = tl.program_id(0) // wide // chunks
    batch, head = own // heads, own % heads
    steps, columns = tl.arange(0, CHUNK), to * TILE + tl.arange(0, TILE)
    slot = 0
    if CAUSAL:
        slot = chunk
    state_head = batch * state_heads + head // (heads // state_heads)
    states = states + tl.cast(state_head, tl.int64) * slots * (WIDTH * WIDTH)
    totals = totals + (tl.cast(state_head, tl.int64) * slots + slot) * WIDTH
    q = plane(q, batch, head, q_batch, q_head)
    k = plane(k, batch, head // group, k_batch, k_head)
    v = plane(v, batch, head // group, v_batch, v_head)
    grad = plane(grad, batch, head, g_batch, g_head)
    lines = tl.cast(own, tl.int64) * tokens
    row = chunk * CHUNK - offset
    sums = tl.zeros([CHUNK, TILE], tl.float32)
    inner = tl.zeros([CHUNK, CHUNK], tl.float32)
    for part in range(wide):
        values = part * TILE + tl.arange(0, TILE)
        gt = slope_rows(grad, norms + lines, row, steps, tokens, values, g_row, g_column, WIDTH, NORMALISED)
        gt = factor(gt, HALF, DOT)
        sums = product(gt, tl.trans(factor(state_tile(states, slot, columns, values, WIDTH), HALF, DOT)), sums, DOT)
        if CAUSAL:
            vt = load_rows(v, chunk * CHUNK, steps, kv_tokens, values, v_row, v_column, WIDTH, True).to(tl.float32)
            inner = product(gt, tl.trans(factor(vt, HALF, DOT)), inner, DOT)
    rate = 0.0
    if DECAY:
        rate = tl.load(rates + head)
        sums = sums * tl.exp2(rate * steps.to(tl.float32))[:, None]
    if NORMALISED:
        inside = (row + steps >= 0) & (row + steps < tokens)
        low = tl.load(below + lines + row + steps, mask=inside, other=0.0)
        sums += low[:, None] * tl.load(totals + columns, mask=columns < WIDTH, other=0.0)[None, :]
        inner += low[:, None]
    if CAUSAL:
        inner = faded(inner, steps[:, None] - steps[None, :], rate, DECAY)
        kt = feature_rows(k, chunk * CHUNK, steps, kv_tokens, columns, k_row, k_column, WIDTH, FEATURES)
        sums = product(factor(inner, HALF, DOT), factor(kt, HALF, DOT), sums, DOT)
    x = load_rows(q, row, steps, tokens, columns, q_row, q_column, WIDTH, True).to(tl.float32)
    dq = plane(dq, batch, head, dq_batch, dq_head)
    sums = feature_slope(x, sums * scale, FEATURES)
    store_rows(dq, row, steps, 0, tokens, columns, dq_row, dq_column, sums, WIDTH, DOT)


@triton.jit
def key_gradients(
    q, k, v, grad, norms, below, states, totals, dk, dv, rates, tokens, kv_tokens, kv_heads, group, offset, slots,
    chunks, scale,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column, v_batch, v_head, v_row, v_column,
    g_batch, g_head, g_row, g_column, dk_batch, dk_head, dk_row, dk_column, dv_batch, dv_head, dv_row, dv_column,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    CAUSAL: tl.constexpr, DECAY: tl.constexpr, NORMALISED: tl.constexpr, FEATURES: tl.constexpr,
    HALF: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """TILE columns of dk and dv of one chunk, from the states that run back; products are keys × queries."""
    wide = BLOCK // TILE
    to = tl.program_id(0) % wide
    chunk = tl.program_id(0) // wide % chunks
    own = tl.program_id(0) // wide // chunks
    batch, kv_head = own // kv_heads, own % kv_heads
    steps, columns = tl.arange(0, CHUNK), to * TILE + tl.arange(0, TILE)
    slot = 0
    if CAUSAL:
        slot = chunk
    k = plane(k, batch, kv_head, k_batch, k_head)
    v = plane(v, batch, kv_head, v_batch, v_head)
    first, row = chunk * CHUNK, chunk * CHUNK - offset
    dk_sums = tl.zeros([CHUNK, TILE], tl.float32)
    dv_sums = tl.zeros([CHUNK, TILE], tl.float32)
    for member in range(group):
        head = kv_head * group + member
        qh = plane(q, batch, head, q_batch, q_head)
        gh = plane(grad, batch, head, g_batch, g_head)
        one = tl.cast(own * group + member, tl.int64)
        lines = one * tokens
        own_states = states + one * slots * (WIDTH * WIDTH)
        dk_part = tl.zeros([CHUNK, TILE], tl.float32)
        dv_part = tl.zeros([CHUNK, TILE], tl.float32)
        inner = tl.zeros([CHUNK, CHUNK], tl.float32)
        weights = tl.zeros([CHUNK, CHUNK], tl.float32)
        for part in range(wide):
            across = part * TILE + tl.arange(0, TILE)
            kt = factor(feature_rows(k, first, steps, kv_tokens, across, k_row, k_column, WIDTH, FEATURES), HALF, DOT)
            vt = load_rows(v, first, steps, kv_tokens, across, v_row, v_column, WIDTH, True).to(tl.float32)
            vt = factor(vt, HALF, DOT)
            down = factor(state_tile(own_states, slot, columns, across, WIDTH), HALF, DOT)
            dk_part = product(vt, tl.trans(down), dk_part, DOT)
            dv_part = product(kt, factor(state_tile(own_states, slot, across, columns, WIDTH), HALF, DOT), dv_part, DOT)
            if CAUSAL:
                gt = slope_rows(gh, norms + lines, row, steps, tokens, across, g_row, g_column, WIDTH, NORMALISED)
                inner = product(vt, tl.trans(factor(gt, HALF, DOT)), inner, DOT)
                qt = feature_rows(qh, row, steps, tokens, across, q_row, q_column, WIDTH, FEATURES)
                weights = product(kt, tl.trans(factor(qt, HALF, DOT)), weights, DOT)
        rate = 0.0
        if DECAY:
            rate = tl.load(rates + head)
            gain = tl.exp2(rate * (CHUNK - steps).to(tl.float32))[:, None]
            dk_part = dk_part * gain
            dv_part = dv_part * gain
        if NORMALISED:
            own_totals = totals + (one * slots + slot) * WIDTH
            dk_part += tl.load(own_totals + columns, mask=columns < WIDTH, other=0.0)[None, :]
        if CAUSAL:
            distance = steps[None, :] - steps[:, None]
            inside = (row + steps >= 0) & (row + steps < tokens)
            if NORMALISED:
                inner += tl.load(below + lines + row + steps, mask=inside, other=0.0)[None, :]
            inner = factor(faded(inner, distance, rate, DECAY), HALF, DOT)
            weights = factor(faded(weights, distance, rate, DECAY), HALF, DOT)
            qt = feature_rows(qh, row, steps, tokens, columns, q_row, q_column, WIDTH, FEATURES)
            dk_part = product(inner, factor(qt, HALF, DOT), dk_part, DOT)
            gt = slope_rows(gh, norms + lines, row, steps, tokens, columns, g_row, g_column, WIDTH, NORMALISED)
            dv_part = product(weights, factor(gt, HALF, DOT), dv_part, DOT)
        dk_sums += dk_part
        dv_sums += dv_part
    x = load_rows(k, first, steps, kv_tokens, columns, k_row, k_column, WIDTH, True).to(tl.float32)
    dk_sums = feature_slope(x, dk_sums * scale, FEATURES)
    dk = plane(dk, batch, kv_head, dk_batch, dk_head)
    dv = plane(dv, batch, kv_head, dv_batch, dv_head)
    store_rows(dk, first, steps, 0, kv_tokens, columns, dk_row, dk_column, dk_sums, WIDTH, DOT)
    store_rows(dv, first, steps, 0, kv_tokens, columns, dv_row, dv_column, dv_sums * scale, WIDTH, DOT)

"""Triton kernels: causal attention over short rows laid end to end, and its gradients.

Scores are in base 2. A program's queries, or keys, are of one row and one head; who writes a
gradient sums all of it, in one order. `short_rows.py` launches them.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _visible(query, key, length, window):
    """Which keys a query sees: none after it, none further back than the window, `[m, n]`."""
    back = query[:, None] - key[None, :]
    return (back >= 0) & (back < window) & (query[:, None] < length)


@triton.jit
def _rows(base, first, places, length, stride, WIDTH: tl.constexpr):
    """Tokens `places` of the row that begins at `first`, `[tokens, WIDTH]`; 0 beyond its end."""
    columns = tl.arange(0, WIDTH)
    at = base + (first + places)[:, None] * stride + columns[None, :]
    return tl.load(at, mask=(places < length)[:, None], other=0.0)


@triton.jit
def attend(
    q, k, v, y, total, ends, scale, window, tokens, q_row, k_row, v_row, y_row,
    q_head, k_head, v_head, y_head,
    SHARED: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):
    """y, and the base-2 logarithm of each query's sum; grid (query blocks, heads, rows)."""
    block, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(ends + tl.program_id(2)).to(tl.int64)
    length = (tl.load(ends + tl.program_id(2) + 1) - first).to(tl.int32)
    if block * M >= length:
        return
    k += (head // SHARED) * k_head
    v += (head // SHARED) * v_head
    query = block * M + tl.arange(0, M)
    own = _rows(q + head * q_head, first, query, length, q_row, WIDTH)
    most = tl.full((M,), -1.0e30, tl.float32)
    sums = tl.zeros((M,), tl.float32)
    result = tl.zeros((M, WIDTH), tl.float32)
    start = tl.maximum(0, block * M - window + 1) // N * N
    for place in range(start, tl.minimum(length, (block + 1) * M), N):
        key = place + tl.arange(0, N)
        scores = tl.dot(own, tl.trans(_rows(k, first, key, length, k_row, WIDTH)))
        scores = tl.where(_visible(query, key, length, window), scores * (scale * LOG2E), -1.0e30)
        larger = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(most - larger)
        sums = sums * shrink + tl.sum(shares, 1)
        values = _rows(v, first, key, length, v_row, WIDTH)
        result = tl.dot(shares.to(values.dtype), values, result * shrink[:, None])
        most = larger
    live = query < length
    place = y + head * y_head + (first + query)[:, None] * y_row + tl.arange(0, WIDTH)[None, :]
    tl.store(place, (result / sums[:, None]).to(y.dtype.element_ty), mask=live[:, None])
    tl.store(total + head * tokens + first + query, most + tl.log2(sums), mask=live)


@triton.jit
def _back(own, keys, values, upstream, sums, delta, seen, scale):
    """Of a block: the shares of queries in keys, and the gradient of the scores, `[m, n]`."""
    scores = tl.dot(own, tl.trans(keys)) * (scale * LOG2E)
    shares = tl.where(seen, tl.exp2(scores - sums[:, None]), 0.0)
    gradient = tl.dot(upstream, tl.trans(values))
    return shares, shares * (gradient - delta[:, None]) * scale


@triton.jit
def attend_back_queries(
    q, k, v, y, dy, total, dq, ends, scale, window, tokens, q_row, k_row, v_row, y_row, dy_row,
    q_head, k_head, v_head, y_head, dy_head,
    SHARED: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):
    """dq `[tokens, heads, WIDTH]`; grid (query blocks, heads, rows)."""
    block, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(ends + tl.program_id(2)).to(tl.int64)
    length = (tl.load(ends + tl.program_id(2) + 1) - first).to(tl.int32)
    if block * M >= length:
        return
    k += (head // SHARED) * k_head
    v += (head // SHARED) * v_head
    query = block * M + tl.arange(0, M)
    live = query < length
    own = _rows(q + head * q_head, first, query, length, q_row, WIDTH)
    upstream = _rows(dy + head * dy_head, first, query, length, dy_row, WIDTH)
    given = _rows(y + head * y_head, first, query, length, y_row, WIDTH)
    delta = tl.sum(given.to(tl.float32) * upstream.to(tl.float32), 1)
    sums = tl.load(total + head * tokens + first + query, mask=live, other=0.0)
    result = tl.zeros((M, WIDTH), tl.float32)
    start = tl.maximum(0, block * M - window + 1) // N * N
    for place in range(start, tl.minimum(length, (block + 1) * M), N):
        key = place + tl.arange(0, N)
        keys = _rows(k, first, key, length, k_row, WIDTH)
        values = _rows(v, first, key, length, v_row, WIDTH)
        seen = _visible(query, key, length, window)
        _, gradient = _back(own, keys, values, upstream, sums, delta, seen, scale)
        result = tl.dot(gradient.to(keys.dtype), keys, result)
    place = dq + (first + query)[:, None] * (tl.num_programs(1) * WIDTH) + head * WIDTH
    tl.store(place + tl.arange(0, WIDTH)[None, :], result.to(dq.dtype.element_ty),
             mask=live[:, None])


@triton.jit
def attend_back_keys(
    q, k, v, y, dy, total, dk, dv, ends, scale, window, tokens, q_row, k_row, v_row, y_row, dy_row,
    q_head, k_head, v_head, y_head, dy_head,
    SHARED: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):
    """dk and dv `[tokens, key heads, WIDTH]`; grid (key blocks, key heads, rows)."""
    block, shared = tl.program_id(0), tl.program_id(1)
    first = tl.load(ends + tl.program_id(2)).to(tl.int64)
    length = (tl.load(ends + tl.program_id(2) + 1) - first).to(tl.int32)
    if block * N >= length:
        return
    key = block * N + tl.arange(0, N)
    keys = _rows(k + shared * k_head, first, key, length, k_row, WIDTH)
    values = _rows(v + shared * v_head, first, key, length, v_row, WIDTH)
    of_keys = tl.zeros((N, WIDTH), tl.float32)
    of_values = tl.zeros((N, WIDTH), tl.float32)
    end = tl.minimum(length, (block + 1) * N + window - 1)
    for head in range(shared * SHARED, (shared + 1) * SHARED):
        for place in range(block * N // M * M, end, M):
            query = place + tl.arange(0, M)
            own = _rows(q + head * q_head, first, query, length, q_row, WIDTH)
            upstream = _rows(dy + head * dy_head, first, query, length, dy_row, WIDTH)
            given = _rows(y + head * y_head, first, query, length, y_row, WIDTH)
            delta = tl.sum(given.to(tl.float32) * upstream.to(tl.float32), 1)
            sums = tl.load(total + head * tokens + first + query, mask=query < length, other=0.0)
            seen = _visible(query, key, length, window)
            shares, gradient = _back(own, keys, values, upstream, sums, delta, seen, scale)
            of_values = tl.dot(tl.trans(shares.to(upstream.dtype)), upstream, of_values)
            of_keys = tl.dot(tl.trans(gradient.to(own.dtype)), own, of_keys)
    place = (first + key)[:, None] * (tl.num_programs(1) * WIDTH) + shared * WIDTH
    place += tl.arange(0, WIDTH)[None, :]
    live = (key < length)[:, None]
    tl.store(dk + place, of_keys.to(dk.dtype.element_ty), mask=live)
    tl.store(dv + place, of_values.to(dv.dtype.element_ty), mask=live)

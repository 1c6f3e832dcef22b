"""Triton kernels: LoRA's products over tokens laid end to end, losses, and the optimizer.

A tile is (slot, first token, tokens), or (0, first token, -tokens) of no slot: these must be
written too where nothing has been written before. Each product reads its large operand once, sums
in fp32 (but for `back`, whose blocks of columns are rounded to bf16 before they are added, and in
fp16, where they could overflow, are not) and draws the dropout mask in registers from the tokens'
keys (the bits of `trials.dropout`). Two neighbouring columns, which share one hash, travel as one
32-bit word: strides and counts of what is loaded so are in words. A slot's tokens and rows meet
nobody else's. Of a slot's ranks those are computed that it fills, rounded up to 16, 32 or all of a
chunk of `RANKS`; what lies beyond in s and ds means nothing, and is never read. Programs that read
the same tokens for the modules of a group are neighbours in the grid, so that one of them reads and
the others find.
`ragged.py` launches them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trials.cuda.dropout import kept, row_keys_of


@triton.jit
def _module(index, place):
    """Where a module's A begins in a row of the bank, and the key of its dropout."""
    start, key = tl.load(index + 2 * place), tl.load(index + 2 * place + 1)
    return tl.multiple_of(start, 8), key.to(tl.uint32)  # as the bank's r is


@triton.jit
def _number(bits, DTYPE: tl.constexpr):
    return bits.to(tl.uint16).to(DTYPE, bitcast=True)


@triton.jit
def _bits(number, DTYPE: tl.constexpr):
    return number.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.int32)


@triton.jit
def _tile(tiles, place, PARTS: tl.constexpr, ROWS: tl.constexpr):
    """Slot, first token and tokens of one of a tile's parts; -n: n tokens of no slot."""
    tile, before = place // PARTS, place % PARTS * ROWS
    slot = tl.load(tiles + 3 * tile).to(tl.int64)
    start = tl.load(tiles + 3 * tile + 1).to(tl.int64) + before
    count = tl.load(tiles + 3 * tile + 2)
    left = tl.maximum(tl.abs(count) - before, 0)
    return slot, start, tl.where(count < 0, -left, left)


@triton.jit(do_not_specialize=["first"])
def down(
    x, weights, s, index, first, tiles, ranks, scales, keys, thresholds, x_row, slot_words,
    s_module, pairs,
    MODULES: tl.constexpr, R: tl.constexpr, DROPS: tl.constexpr, DTYPE: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
):
    """s = scale * drop(x) a^T; grid (tiles * PARTS * modules, ranks / RANKS)."""
    which = tl.program_id(0) % MODULES
    slot, start, count = _tile(tiles, tl.program_id(0) // MODULES, PARTS, ROWS)
    filled = tl.load(ranks + slot) - tl.program_id(1) * RANKS
    if (count <= 0) | (filled <= 0):
        return
    begin, module = _module(index, first + which)
    a = weights + slot * slot_words + begin // 2 + tl.program_id(1) * RANKS * pairs
    s += which * s_module + tl.program_id(1) * RANKS
    row_keys, threshold = 0, 0
    if DROPS:
        live = tl.arange(0, ROWS) < count
        row_keys = row_keys_of(keys, start + tl.arange(0, ROWS), live, module)
        threshold = tl.load(thresholds + slot)
    scale = tl.load(scales + slot)
    if RANKS > 16 and filled <= 16:
        _down(x, a, s, start, count, row_keys, threshold, scale, x_row, pairs,
              R, DROPS, DTYPE, ROWS, 16, STEP)
    elif RANKS > 32 and filled <= 32:
        _down(x, a, s, start, count, row_keys, threshold, scale, x_row, pairs,
              R, DROPS, DTYPE, ROWS, 32, STEP)
    else:
        _down(x, a, s, start, count, row_keys, threshold, scale, x_row, pairs,
              R, DROPS, DTYPE, ROWS, RANKS, STEP)


@triton.jit
def _down(
    x, a, s, start, count, row_keys, threshold, scale, x_row, pairs,
    R: tl.constexpr, DROPS: tl.constexpr, DTYPE: tl.constexpr,
    ROWS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
):
    live = tl.arange(0, ROWS) < count
    rows, rank = start + tl.arange(0, ROWS), tl.arange(0, RANKS)
    some = rank < R
    total = tl.zeros((ROWS, RANKS), tl.float32)
    for column in range(0, pairs, STEP):
        pair = column + tl.arange(0, STEP)
        inside = pair < pairs
        words = tl.load(x + rows[:, None] * x_row + pair[None, :],
                        mask=live[:, None] & inside[None, :], other=0)
        even, odd = words & 0xFFFF, (words >> 16) & 0xFFFF
        if DROPS:
            keep_even, keep_odd = kept(row_keys, pair, threshold)
            even, odd = tl.where(keep_even, even, 0), tl.where(keep_odd, odd, 0)
        own = tl.load(a + rank[:, None] * pairs + pair[None, :],
                      mask=some[:, None] & inside[None, :], other=0)
        even_a, odd_a = own & 0xFFFF, (own >> 16) & 0xFFFF
        total = tl.dot(_number(even, DTYPE), tl.trans(_number(even_a, DTYPE)), total)
        total = tl.dot(_number(odd, DTYPE), tl.trans(_number(odd_a, DTYPE)), total)
    tl.store(s + rows[:, None] * R + rank[None, :], (total * scale).to(DTYPE),
             mask=live[:, None] & some[None, :])


@triton.jit
def up(
    y, s, b, bias, tiles, ranks, b_slot, columns,
    R: tl.constexpr, BIASED: tl.constexpr, DTYPE: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):
    """y = bias + s b^T; grid (tiles * PARTS, columns / STEP)."""
    slot, start, count = _tile(tiles, tl.program_id(0), PARTS, ROWS)
    if count == 0:
        return
    live = tl.arange(0, ROWS) < tl.abs(count)
    rows = start + tl.arange(0, ROWS)
    column = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = column < columns
    total = tl.zeros((ROWS, STEP), tl.float32)
    if BIASED:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    most = R
    if R > 16:
        most = tl.load(ranks + slot)
    for first in range(0, most, 16):
        rank = first + tl.arange(0, 16)
        some = (rank < R) & (count > 0)
        left = tl.load(s + rows[:, None] * R + rank[None, :],
                       mask=live[:, None] & some[None, :], other=0.0)
        right = tl.load(b + slot * b_slot + rank[:, None] * columns + column[None, :],
                        mask=some[:, None] & inside[None, :], other=0.0)
        total = tl.dot(left, right, total)
    tl.store(y + rows[:, None] * columns + column[None, :], total.to(DTYPE),
             mask=live[:, None] & inside[None, :])


@triton.jit
def back(
    dy, b, s, gb, partial, starts, ranks, scales, dy_row, b_slot, gb_slot, partial_stride, columns,
    R: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
):
    """gb += dy^T s, and of scale * dy b what these columns make: dy is read once for both.

    Grid (columns / STEP, ranks / RANKS, slots).
    """
    slot = tl.program_id(2).to(tl.int64)
    start, end = tl.load(starts + slot), tl.load(starts + slot + 1)
    filled = tl.load(ranks + slot) - tl.program_id(1) * RANKS
    if (start >= end) | (filled <= 0):
        return
    chunk = tl.program_id(1) * RANKS
    b += slot * b_slot + chunk * columns
    gb += slot * gb_slot + chunk * columns
    partial += tl.program_id(0).to(tl.int64) * partial_stride + chunk
    scale = tl.load(scales + slot)
    if RANKS > 16 and filled <= 16:
        _back(dy, b, s + chunk, gb, partial, start, end, scale, dy_row, columns,
              R, ROWS, 16, STEP)
    elif RANKS > 32 and filled <= 32:
        _back(dy, b, s + chunk, gb, partial, start, end, scale, dy_row, columns,
              R, ROWS, 32, STEP)
    else:
        _back(dy, b, s + chunk, gb, partial, start, end, scale, dy_row, columns,
              R, ROWS, RANKS, STEP)


@triton.jit
def _back(
    dy, b, s, gb, partial, start, end, scale, dy_row, columns,
    R: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
):
    column, rank = tl.program_id(0) * STEP + tl.arange(0, STEP), tl.arange(0, RANKS)
    inside, some = column < columns, rank < R
    own, there = rank[:, None] * columns + column[None, :], some[:, None] & inside[None, :]
    factors = tl.trans(tl.load(b + own, mask=there, other=0.0))
    total = tl.zeros((RANKS, STEP), tl.float32)
    for first in range(start, end, ROWS):
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)
        live = rows < end
        left = tl.load(dy + rows[:, None] * dy_row + column[None, :],
                       mask=live[:, None] & inside[None, :], other=0.0)
        place, known = rows[:, None] * R + rank[None, :], live[:, None] & some[None, :]
        right = tl.load(s + place, mask=known, other=0.0)
        total = tl.dot(tl.trans(right), left, total)
        made = tl.dot(left, factors) * scale
        tl.store(partial + place, made.to(partial.dtype.element_ty), mask=known)
    tl.store(gb + own, tl.load(gb + own, mask=there, other=0.0) + total, mask=there)


@triton.jit
def summed(partial, ds, partial_stride, count, NUMEL, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    """ds = the sum of what the blocks of columns made."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < NUMEL
    total = tl.zeros((SIZE,), tl.float32)
    for _ in range(count):
        total += tl.load(partial + place, mask=inside, other=0.0).to(tl.float32)
        partial += partial_stride
    tl.store(ds + place, total.to(DTYPE), mask=inside)


@triton.jit(do_not_specialize=["first"])
def back_input(
    dx, ds, weights, index, first, tiles, ranks, keys, thresholds, slot_words, s_module, pairs,
    MODULES: tl.constexpr, R: tl.constexpr, DROPS: tl.constexpr, DTYPE: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):
    """dx = mask * (ds a), of all modules; grid (tiles * PARTS, pairs / STEP)."""
    slot, start, count = _tile(tiles, tl.program_id(0), PARTS, ROWS)
    if count == 0:
        return
    live = tl.arange(0, ROWS) < tl.abs(count)
    rows = start + tl.arange(0, ROWS)
    pair = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = pair < pairs
    most = R
    if R > 16:
        most = tl.load(ranks + slot)
    total_even = tl.zeros((ROWS, STEP), tl.float32)
    total_odd = tl.zeros((ROWS, STEP), tl.float32)
    for which in tl.static_range(MODULES):
        begin, module = _module(index, first + which)
        a = weights + slot * slot_words + begin // 2
        even = tl.zeros((ROWS, STEP), tl.float32)
        odd = tl.zeros((ROWS, STEP), tl.float32)
        for start_rank in range(0, most, 16):
            rank = start_rank + tl.arange(0, 16)
            some = (rank < R) & (count > 0)
            left = tl.load(ds + which * s_module + rows[:, None] * R + rank[None, :],
                           mask=live[:, None] & some[None, :], other=0.0)
            own = tl.load(a + rank[:, None] * pairs + pair[None, :],
                          mask=some[:, None] & inside[None, :], other=0)
            even = tl.dot(left, _number(own & 0xFFFF, DTYPE), even)
            odd = tl.dot(left, _number((own >> 16) & 0xFFFF, DTYPE), odd)
        if DROPS:
            row_keys = row_keys_of(keys, rows, live, module)
            keep_even, keep_odd = kept(row_keys, pair, tl.load(thresholds + slot))
            even, odd = tl.where(keep_even, even, 0.0), tl.where(keep_odd, odd, 0.0)
        total_even += even
        total_odd += odd
    words = _bits(total_even, DTYPE) | (_bits(total_odd, DTYPE) << 16)
    tl.store(dx + rows[:, None] * pairs + pair[None, :], words,
             mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["first"])
def back_a(
    gradients, ds, x, index, first, starts, ranks, keys, thresholds, x_row, slot_numel, s_module,
    pairs,
    MODULES: tl.constexpr, R: tl.constexpr, DROPS: tl.constexpr, DTYPE: tl.constexpr,
    ROWS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
):
    """ga += ds^T drop(x); grid (pairs / STEP * modules, ranks / RANKS, slots)."""
    slot = tl.program_id(2).to(tl.int64)
    start, end = tl.load(starts + slot), tl.load(starts + slot + 1)
    filled = tl.load(ranks + slot) - tl.program_id(1) * RANKS
    if (start >= end) | (filled <= 0):
        return
    which = tl.program_id(0) % MODULES
    begin, module = _module(index, first + which)
    ds += which * s_module + tl.program_id(1) * RANKS
    gradients += slot * slot_numel + begin + tl.program_id(1) * RANKS * 2 * pairs
    threshold = 0
    if DROPS:
        threshold = tl.load(thresholds + slot)
    if RANKS > 16 and filled <= 16:
        _back_a(gradients, ds, x, start, end, keys, module, threshold, x_row, pairs,
                MODULES, R, DROPS, DTYPE, ROWS, 16, STEP)
    elif RANKS > 32 and filled <= 32:
        _back_a(gradients, ds, x, start, end, keys, module, threshold, x_row, pairs,
                MODULES, R, DROPS, DTYPE, ROWS, 32, STEP)
    else:
        _back_a(gradients, ds, x, start, end, keys, module, threshold, x_row, pairs,
                MODULES, R, DROPS, DTYPE, ROWS, RANKS, STEP)


@triton.jit
def _back_a(
    gradients, ds, x, start, end, keys, module, threshold, x_row, pairs,
    MODULES: tl.constexpr, R: tl.constexpr, DROPS: tl.constexpr, DTYPE: tl.constexpr,
    ROWS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
):
    pair, rank = tl.program_id(0) // MODULES * STEP + tl.arange(0, STEP), tl.arange(0, RANKS)
    inside, some = pair < pairs, rank < R
    total_even = tl.zeros((RANKS, STEP), tl.float32)
    total_odd = tl.zeros((RANKS, STEP), tl.float32)
    for row in range(start, end, ROWS):
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)
        live = rows < end
        words = tl.load(x + rows[:, None] * x_row + pair[None, :],
                        mask=live[:, None] & inside[None, :], other=0)
        even, odd = words & 0xFFFF, (words >> 16) & 0xFFFF
        if DROPS:
            row_keys = row_keys_of(keys, rows, live, module)
            keep_even, keep_odd = kept(row_keys, pair, threshold)
            even, odd = tl.where(keep_even, even, 0), tl.where(keep_odd, odd, 0)
        left = tl.trans(tl.load(ds + rows[:, None] * R + rank[None, :],
                                mask=live[:, None] & some[None, :], other=0.0))
        total_even = tl.dot(left, _number(even, DTYPE), total_even)
        total_odd = tl.dot(left, _number(odd, DTYPE), total_odd)
    place = gradients + rank[:, None] * (2 * pairs) + 2 * pair[None, :]
    there = some[:, None] & inside[None, :]
    tl.store(place, tl.load(place, mask=there, other=0.0) + total_even, mask=there)
    tl.store(place + 1, tl.load(place + 1, mask=there, other=0.0) + total_odd, mask=there)


@triton.jit
def losses(
    logits, targets, weights, found, row_stride,
    COLUMNS: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr, DTYPE: tl.constexpr,
):
    """Each row's cross entropy; weight * its gradient takes the logits' place.

    A multiprocessor works on one row at a time and comes back from the row's end, so that most of
    it is still in a cache.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    target = tl.load(targets + row)
    wanted = tl.load(logits + target).to(tl.float32)  # before anything is written
    place = tl.arange(0, LANES)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    most = tl.full((LANES,), -float("inf"), tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    for first in range(0, COLUMNS, LANES * EACH):
        column = first + place
        value = tl.load(logits + column, mask=column < COLUMNS, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(most, tl.max(value, 1))
        base = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(most - base) + tl.sum(tl.exp(value - base[:, None]), 1)
        most = larger
    largest = tl.max(most)
    normal = largest + tl.log(tl.sum(total * tl.exp(most - largest)))
    tl.store(found + row, normal - wanted)
    weight = tl.load(weights + row)
    last = (COLUMNS - 1) // (LANES * EACH) * (LANES * EACH)
    for done in range(0, COLUMNS, LANES * EACH):
        column = last - done + place
        inside = column < COLUMNS
        value = tl.load(logits + column, mask=inside, other=0.0).to(tl.float32)
        share = tl.exp(value - normal) - tl.where(column == target, 1.0, 0.0)
        tl.store(logits + column, (share * weight).to(DTYPE), mask=inside)


@triton.jit
def _block(blocks, block):
    """Where a block of `bank.blocks` begins, its numbers and its first rank.

    The bank's r is a multiple of 8, and so are these; said so, eight numbers are read at once.
    """
    start, count = tl.load(blocks + 3 * block), tl.load(blocks + 3 * block + 1)
    return tl.multiple_of(start, 8), tl.multiple_of(count, 8), tl.load(blocks + 3 * block + 2)


@triton.jit
def squares(g, partial, blocks, ranks, due, NUMEL, SIZE: tl.constexpr):
    """Sums of squares of what `update` takes, and 0 of the rest; grid (blocks, rows)."""
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, count, first_rank = _block(blocks, block)
    total = 0.0
    if (tl.load(due + row) > 0) & (first_rank < tl.load(ranks + row)):
        place = tl.arange(0, SIZE)
        value = tl.load(g + row * NUMEL + start + place, mask=place < count, other=0.0)
        total = tl.sum(value * value)
    tl.store(partial + row * tl.num_programs(0) + block, total)


@triton.jit
def update(
    p, g, m, v, compute, blocks, ranks, coefficients, epsilon, NUMEL,
    COUNT: tl.constexpr, SIZE: tl.constexpr, DTYPE: tl.constexpr,
):
    """One step of the due rows by `optim.COEFFICIENTS`; their gradients become 0.

    Grid (blocks, rows). A block beyond a row's rank stays as it is: parameters of 0, and gradients
    that nothing reads (0, or not finite where an fp16 gradient was not).
    """
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    own = coefficients + row * COUNT
    start, count, first_rank = _block(blocks, block)
    if (tl.load(own) == 0) | (first_rank >= tl.load(ranks + row)):
        return
    place = tl.arange(0, SIZE)
    inside = place < count
    clip = tl.load(own + 1)
    place += row * NUMEL + start
    # A row to be left alone has clip 0: nothing that is not finite may meet a coefficient.
    gradient = tl.where(clip == 0, 0.0, tl.load(g + place, mask=inside, other=0.0) * clip)
    first = tl.load(m + place, mask=inside, other=0.0)
    first += (gradient - first) * tl.load(own + 3)
    second = tl.load(v + place, mask=inside, other=0.0) * tl.load(own + 4)
    second += gradient * gradient * tl.load(own + 5)
    tl.store(m + place, first, mask=inside)
    tl.store(v + place, second, mask=inside)
    new = tl.load(p + place, mask=inside, other=0.0) * tl.load(own + 2)
    new += first / (tl.sqrt_rn(second) / tl.load(own + 6) + epsilon) * tl.load(own + 7)
    new += gradient * tl.load(own + 8)
    tl.store(p + place, new, mask=inside)
    tl.store(compute + place, new.to(DTYPE), mask=inside)
    # These zeros follow from no load: without a barrier, one warp's could come before another's
    # load of the same gradient, since each access has a layout of its own.
    tl.debug_barrier()
    tl.store(g + place, tl.zeros((SIZE,), tl.float32), mask=inside)

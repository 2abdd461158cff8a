# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""y[row] += scale[g] * (x[row] @ A[g].T) @ B[g].T, what runs on the device. Knows one tile; never the step or torch.

    x [rows, in], y [rows, out]     float32, bfloat16 or float16; unit stride along the last axis
    pairs                           int64, four of them a slot: struct Pair of cpu/kernels.h; `table` words a table
    tiles                           as in `tiles`: rows by place, then each tile's slot, first and last place + 1
    bridge                          float32 [tables, SPLITS, places, width]: shrink writes a plane for each part of
                                    `in`, expand adds them in order
    columns                         int32, where each table's columns of y begin, multiples of 16, and the last's end

Sums are float32 and in a fixed order, so results repeat bit by bit. Ranks are the slot's own: loops end and loads are
masked there. A tile without a slot, and a slot without a pair, return before touching y.

Nothing that changes from step to step is specialised on: a step must not wait for a compilation.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["places", "count"])
def shrink(
    x,
    x_row,
    pairs,
    table,
    tiles,
    places,
    count,
    bridge,
    width,
    inputs,
    M: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """bridge[table, split, place] = x[row of place, part of in] @ A.T; a program per tile, part and table."""
    tile, split = tl.program_id(0), tl.program_id(1)
    pairs += tl.program_id(2) * table
    bridge += tl.program_id(2) * SPLITS * places * width
    slot = tl.load(tiles + places + tile)
    if slot < 0:
        return
    first, last = tl.load(tiles + places + count + tile), tl.load(tiles + places + 2 * count + tile)
    a, _, rank, dtype, _ = _pair(pairs, slot)
    part = tl.cdiv(tl.cdiv(inputs, K), SPLITS) * K
    start, end = split * part, tl.minimum(inputs, (split + 1) * part)
    place = first + tl.arange(0, M)
    live = place < last
    row = tl.load(tiles + place, mask=live, other=0).to(tl.int64)
    at = row * x_row
    for r0 in range(0, rank, R):
        r = r0 + tl.arange(0, R)
        if dtype == 0:
            sums = _shrink(x, at, live, a, r, rank, inputs, start, end, tl.float32, M, R, K, PRECISION, NATIVE)
        elif dtype == 1:
            sums = _shrink(x, at, live, a, r, rank, inputs, start, end, tl.bfloat16, M, R, K, PRECISION, NATIVE)
        else:
            sums = _shrink(x, at, live, a, r, rank, inputs, start, end, tl.float16, M, R, K, PRECISION, NATIVE)
        out = bridge + (split * places + place)[:, None] * width + r[None, :]
        tl.store(out, sums, mask=live[:, None] & (r < rank)[None, :])


@triton.jit
def _shrink(
    x,
    row,
    live,
    a,
    r,
    rank,
    inputs,
    start,
    end,
    ELEMENT: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """[M, R] for one tile of ranks."""
    weights = a.to(tl.pointer_type(ELEMENT))
    inside = r < rank
    if M == 1:
        sums = tl.zeros((R, K), tl.float32)
        for k0 in range(start, end, K):
            k = k0 + tl.arange(0, K)
            xs = tl.load(x + row + k, mask=live & (k < end), other=0.0).to(tl.float32)
            at = weights + r[:, None] * inputs + k[None, :]
            sums += xs[None, :] * tl.load(at, mask=inside[:, None] & (k < end)[None, :], other=0.0).to(tl.float32)
        return tl.sum(sums, 1)[None, :]
    else:
        sums = tl.zeros((M, R), tl.float32)
        for k0 in range(start, end, K):
            k = k0 + tl.arange(0, K)
            xs = tl.load(x + row[:, None] + k[None, :], mask=live[:, None] & (k < end)[None, :], other=0.0)
            at = weights + r[None, :] * inputs + k[:, None]
            tile = tl.load(at, mask=inside[None, :] & (k < end)[:, None], other=0.0)
            sums = _dot(xs, tile, sums, PRECISION, NATIVE)
        return sums


@triton.jit(do_not_specialize=["places", "count"])
def expand(
    y,
    y_row,
    pairs,
    table,
    tiles,
    places,
    count,
    bridge,
    width,
    outputs,
    columns,
    JOINT: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """y[row of place, n] += scale * (bridge[0, place] + bridge[1, place] + …) @ B.T; a program per tile and outputs.

    JOINT: and per table, whose outputs are its columns of y; `outputs` are the widest one's.
    """
    tile = tl.program_id(0)
    slot = tl.load(tiles + places + tile)
    if JOINT:
        begin = tl.load(columns + tl.program_id(2))
        outputs = tl.load(columns + tl.program_id(2) + 1) - begin
        y += tl.multiple_of(begin, 16)
        pairs += tl.program_id(2) * table
        bridge += tl.program_id(2) * SPLITS * places * width
    if (slot < 0) | (tl.program_id(1) * N >= outputs):
        return
    first, last = tl.load(tiles + places + count + tile), tl.load(tiles + places + 2 * count + tile)
    _, b, rank, dtype, scale = _pair(pairs, slot)
    if rank == 0:
        return
    place = first + tl.arange(0, M)
    live = place < last
    row = tl.load(tiles + place, mask=live, other=0).to(tl.int64)
    n = tl.program_id(1) * N + tl.arange(0, N)
    if dtype == 0:
        sums = _expand(
            y, bridge, places, width, place, live, b, rank, n, outputs, tl.float32, M, R, N, SPLITS, PRECISION, NATIVE
        )
    elif dtype == 1:
        sums = _expand(
            y, bridge, places, width, place, live, b, rank, n, outputs, tl.bfloat16, M, R, N, SPLITS, PRECISION, NATIVE
        )
    else:
        sums = _expand(
            y, bridge, places, width, place, live, b, rank, n, outputs, tl.float16, M, R, N, SPLITS, PRECISION, NATIVE
        )
    at = y + row[:, None] * y_row + n[None, :]
    mask = live[:, None] & (n < outputs)[None, :]
    total = tl.load(at, mask=mask, other=0.0).to(tl.float32) + scale * sums
    tl.store(at, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _expand(
    y,
    bridge,
    places,
    width,
    place,
    live,
    b,
    rank,
    n,
    outputs,
    ELEMENT: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """[M, N] over all ranks. Where y and B share a 16-bit dtype the shrunk row is rounded to it, as PEFT's is."""
    weights = b.to(tl.pointer_type(ELEMENT))
    inside = n < outputs
    if M == 1:
        partial = tl.zeros((N, R), tl.float32)
        for r0 in range(0, rank, R):
            r = r0 + tl.arange(0, R)
            shrunk = _planes(bridge, places, width, place, live, r, rank, M, R, SPLITS)
            at = weights + n[:, None] * rank + r[None, :]
            tile = tl.load(at, mask=inside[:, None] & (r < rank)[None, :], other=0.0)
            partial += tile.to(tl.float32) * shrunk
        return tl.sum(partial, 1)[None, :]
    else:
        sums = tl.zeros((M, N), tl.float32)
        for r0 in range(0, rank, R):
            r = r0 + tl.arange(0, R)
            shrunk = _planes(bridge, places, width, place, live, r, rank, M, R, SPLITS)
            at = weights + n[None, :] * rank + r[:, None]
            tile = tl.load(at, mask=inside[None, :] & (r < rank)[:, None], other=0.0)
            if y.dtype.element_ty == ELEMENT:
                shrunk = shrunk.to(ELEMENT)
            sums = _dot(shrunk, tile, sums, PRECISION, NATIVE)
        return sums


@triton.jit
def _planes(bridge, places, width, place, live, r, rank, M: tl.constexpr, R: tl.constexpr, SPLITS: tl.constexpr):
    shrunk = tl.zeros((M, R), tl.float32)
    for split in range(SPLITS):
        at = bridge + (split * places + place)[:, None] * width + r[None, :]
        shrunk += tl.load(at, mask=live[:, None] & (r < rank)[None, :], other=0.0)
    return shrunk


@triton.jit
def _dot(rows, weights, sums, PRECISION: tl.constexpr, NATIVE: tl.constexpr):
    """Of one 16-bit dtype in its own product; else both widened. TF32 holds every bfloat16 and float16 exactly."""
    if NATIVE and rows.dtype == weights.dtype:
        return tl.dot(rows, weights, sums, input_precision=PRECISION)
    else:
        return tl.dot(rows.to(tl.float32), weights.to(tl.float32), sums, input_precision=PRECISION)


@triton.jit
def _pair(pairs, slot):
    """Addresses of A and B, rank, dtype and scale."""
    at = pairs + slot.to(tl.int64) * 4
    words = at.to(tl.pointer_type(tl.int32))
    a, b = tl.load(at), tl.load(at + 1)
    rank, dtype = tl.load(words + 4), tl.load(words + 5)
    scale = tl.load(at.to(tl.pointer_type(tl.float32)) + 6)
    return tl.multiple_of(a, 16), tl.multiple_of(b, 16), rank, dtype, scale

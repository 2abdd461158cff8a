# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""out[t, h] = softmax(scale * q[t, h] . K) V, what runs on the device. Knows one tile; never the step or torch.

    q, out               [tokens, heads, dim], a unit stride along dim
    keys, values         [blocks, block_size, kv_heads, dim], any strides but a unit one along dim
    tables … tiles       as in `layout`

One pass over the keys with a running maximum and sum in float32; keys are taken N at a time from multiples of N on, so
that a row's result depends neither on what shares its tile or batch, nor on how its prompt was cut into chunks.

Nothing that changes from step to step is specialised on: a step must not wait for a compilation.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["width"], do_not_specialize_on_alignment=["tables", "starts", "contexts", "tiles"])
def attend(
    out,
    q,
    q_token,
    q_head,
    keys,
    k_block,
    k_token,
    k_head,
    values,
    v_block,
    v_token,
    v_head,
    tables,
    width,
    starts,
    contexts,
    tiles,
    heads,
    group,
    dim,
    value_dim,
    scale,
    window,
    softcap,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """A program takes T new tokens of one sequence and H heads that share a key head."""
    sequence, first = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    if sequence < 0:
        return
    parts = tl.cdiv(group, H)
    kv, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    start, context = tl.load(starts + sequence), tl.load(contexts + sequence)
    length = tl.load(starts + sequence + 1) - start
    t = first + tl.arange(0, T * H) // H
    h = part * H + tl.arange(0, T * H) % H
    live = (t < length) & (h < group)
    position = context - length + t
    d, v = tl.arange(0, D), tl.arange(0, V)
    row = (start + t).to(tl.int64)
    asked = q + (row * q_token + (kv * group + h) * q_head)[:, None] + d[None, :]
    queries = tl.load(asked, mask=live[:, None] & (d < dim)[None, :], other=0.0)

    end = tl.minimum(context, context - length + first + T)
    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, context - length + first - window + 1) // N * N
    best = tl.full((T * H,), float("-inf"), tl.float32)
    total = tl.zeros((T * H,), tl.float32)
    sums = tl.zeros((T * H, V), tl.float32)
    for n0 in range(begin, end, N):
        n = n0 + tl.arange(0, N)
        cached = n < end
        block = tl.load(tables + sequence * width + n // BLOCK, mask=cached, other=0).to(tl.int64)
        k_at = keys + (block * k_block + n % BLOCK * k_token + kv * k_head)[None, :] + d[:, None]
        key = tl.load(k_at, mask=cached[None, :] & (d < dim)[:, None], other=0.0)
        scores = _dot(queries, key, tl.zeros((T * H, N), tl.float32), PRECISION, NATIVE) * scale
        if CAPPED:
            scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
        seen = cached[None, :] & (n[None, :] <= position[:, None])
        if WINDOWED:
            seen = seen & (n[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - finite[:, None])
        kept = tl.exp(best - finite)
        total = total * kept + tl.sum(weights, 1)
        v_at = values + (block * v_block + n % BLOCK * v_token + kv * v_head)[:, None] + v[None, :]
        value = tl.load(v_at, mask=cached[:, None] & (v < value_dim)[None, :], other=0.0)
        sums = _dot(weights.to(value.dtype), value, sums * kept[:, None], PRECISION, NATIVE)
        best = higher
    result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    answers = out + ((row * heads + kv * group + h) * value_dim)[:, None] + v[None, :]
    tl.store(answers, result.to(out.dtype.element_ty), mask=live[:, None] & (v < value_dim)[None, :])


@triton.jit
def _dot(a, b, sums, PRECISION: tl.constexpr, NATIVE: tl.constexpr):
    if NATIVE:
        return tl.dot(a, b, sums, input_precision=PRECISION)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision=PRECISION)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def store(
    rows,
    row_token,
    row_head,
    cache,
    c_block,
    c_token,
    c_head,
    slots,
    heads,
    dim,
    BLOCK: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
):
    """Copy H heads of one token to its slot of the cache."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    h, d = tl.program_id(1) * H + tl.arange(0, H), tl.arange(0, D)
    mask = (h < heads)[:, None] & (d < dim)[None, :]
    row = tl.load(rows + token * row_token + h[:, None] * row_head + d[None, :], mask=mask)
    at = cache + slot // BLOCK * c_block + slot % BLOCK * c_token + h[:, None] * c_head + d[None, :]
    tl.store(at, row.to(cache.dtype.element_ty), mask=mask)

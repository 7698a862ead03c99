"""Triton kernels: the passes of a :class:`msvit.kernels.spec.Backend`.

Pointers are to contiguous ``[T, R, C]``; a pointer that is None switches its part off. Potentials,
statistics and parameters have the type REAL. ``folded`` is ``[4, C]`` (mean, 1/std, scale, shift),
``coefficients`` ``[3, C]`` (a, b, d), ``N`` a :class:`msvit.kernels.spec.NeuronSpec`,
``HIGH × WIDE`` the tile of rows and channels of a program, of which it takes ROUNDS.
"""

# Triton's language has no starred tuples and decides constants by nested ifs.
# ruff: noqa: RUF005, SIM102

import triton
import triton.language as tl


@triton.jit
def _charge(v, x, decay, N: tl.constexpr):
    if N.leaks:
        drive = x - v if N.decay_input else v
        if not N.divides:
            drive = drive * decay
        elif drive.dtype == tl.float32:
            drive = tl.div_rn(drive, tl.full(drive.shape, N.tau, drive.dtype))
        else:
            drive = drive / N.tau
        h = v + drive if N.decay_input else v - drive + x
    else:
        h = v + x
    return h


@triton.jit
def _after(h, N: tl.constexpr):
    # h - h: an infinite potential leaves NaN, as (1 - s) * h does.
    return tl.where(h >= N.threshold, h - h if N.hard_reset else h - N.threshold, h)


@triton.jit
def _surrogate(h, N: tl.constexpr):
    x = h - N.threshold
    if N.surrogate == "sigmoid":
        e = tl.exp(-tl.abs(x * N.alpha))
        slope = e * N.alpha / ((e + 1) * (e + 1))
    elif N.surrogate == "atan":
        x = x * (1.5707963267948966 * N.alpha)
        slope = (N.alpha / 2) / (x * x + 1)
    elif N.surrogate == "erf":
        x = x * N.alpha
        slope = tl.exp(-x * x) * (N.alpha * 0.5641895835477563)
    elif N.surrogate == "piecewise_quadratic":
        x = tl.abs(x)
        slope = tl.where(x > 1 / N.alpha, 0.0, N.alpha - x * (N.alpha * N.alpha))
    elif N.surrogate == "soft_sign":
        x = tl.abs(x) + 1 / N.alpha
        slope = (0.5 / N.alpha) / (x * x)
    else:
        tl.static_assert(N.surrogate == "rect")
        slope = tl.where(tl.abs(x) < 0.5 / N.alpha, x * 0 + N.alpha, x * 0)
    return slope


@triton.jit
def _back(h, grad_spike, grad_v, N: tl.constexpr):
    """Gradient of the charged potential h."""
    if not N.detach_reset:
        grad_spike += grad_v * (-h if N.hard_reset else -N.threshold)
    kept = tl.where(h >= N.threshold, 0.0, grad_v) if N.hard_reset else grad_v
    return grad_spike * _surrogate(h, N) + kept


@triton.jit
def _input_gain(g, decay, N: tl.constexpr):
    return g * decay if N.leaks and N.decay_input else g


@triton.jit
def _state_gain(g, decay, N: tl.constexpr):
    return g * (1 - decay) if N.leaks else g


@triton.jit
def _decay_slope(v, x, N: tl.constexpr):
    return x - v if N.decay_input else -v


@triton.jit
def _tile(round, rows, channels, ROUNDS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Row, channel, whether inside, and offset of a tile."""
    row = (tl.program_id(0) * ROUNDS + round) * HIGH + tl.arange(0, HIGH)[:, None]
    row = row.to(tl.int64)
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    return row, channel, (row < rows) & (channel < channels), row * channels + channel


@triton.jit
def _vector(table, index, channel, channels, REAL: tl.constexpr):
    return tl.load(table + index * channels + channel, channel < channels, other=0.0).to(REAL)


@triton.jit
def _store_sums(partial, sum, product, channels, WIDE: tl.constexpr):
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    at = partial + tl.program_id(0) * 2 * channels + channel
    tl.store(at, sum, channel < channels)
    tl.store(at + channels, product, channel < channels)


@triton.jit
def moments(
    y, pivots, partial, rows, channels,
    ROUNDS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    sum = tl.zeros([WIDE], REAL)
    squares = tl.zeros([WIDE], REAL)
    for round in range(ROUNDS):
        _, channel, inside, at = _tile(round, rows, channels, ROUNDS, HIGH, WIDE)
        pivot = tl.load(pivots + channel, channel < channels, other=0.0)
        d = tl.where(inside, tl.load(y + at, inside, other=0.0).to(REAL) - pivot, 0.0)
        sum += tl.sum(d, 0)
        squares += tl.sum(d * d, 0)
    _store_sums(partial, sum, squares, channels, WIDE)


@triton.jit
def gradient_sums(
    grad, y, mean, partial, rows, channels,
    ROUNDS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    sum = tl.zeros([WIDE], REAL)
    product = tl.zeros([WIDE], REAL)
    for round in range(ROUNDS):
        _, channel, inside, at = _tile(round, rows, channels, ROUNDS, HIGH, WIDE)
        g = tl.load(grad + at, inside, other=0.0).to(REAL)
        d = tl.load(y + at, inside, other=0.0).to(REAL)
        sum += tl.sum(g, 0)
        product += tl.sum(g * (d - _vector(mean, 0, channel, channels, REAL)), 0)
    _store_sums(partial, sum, product, channels, WIDE)


@triton.jit
def affine(
    u, a, v, b, d, out, rows, channels,
    ROUNDS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    _, channel, inside, at = _tile(0, rows, channels, ROUNDS, HIGH, WIDE)
    x = tl.load(u + at, inside, other=0.0).to(REAL) * _vector(a, 0, channel, channels, REAL)
    if v is not None:
        other = tl.load(v + at, inside, other=0.0).to(REAL)
        if b is not None:
            other = other * _vector(b, 0, channel, channels, REAL)
        x += other
    tl.store(out + at, x + _vector(d, 0, channel, channels, REAL), inside)


@triton.jit
def forward(
    y, y_step, folded, shortcut, shortcut_step, out, decay, rows, channels,
    T: tl.constexpr, N: tl.constexpr,
    ROUNDS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    _, channel, inside, at = _tile(0, rows, channels, ROUNDS, HIGH, WIDE)
    decay = tl.load(decay)
    v = tl.zeros([HIGH, WIDE], REAL)
    for t in tl.static_range(T):
        x = tl.load(y + t * y_step + at, inside, other=0.0).to(REAL)
        if folded is not None:
            scale = _vector(folded, 2, channel, channels, REAL)
            x = x * scale + _vector(folded, 3, channel, channels, REAL)
        h = _charge(v, x, decay, N)
        v = _after(h, N)
        fired = tl.where(h >= N.threshold, 1.0, 0.0).to(REAL)
        if shortcut is not None:
            fired += tl.load(shortcut + t * shortcut_step + at, inside, other=0.0).to(REAL)
        tl.store(out + t * rows.to(tl.int64) * channels + at, fired, inside)


@triton.jit
def backward(
    y, y_step, folded, grad, grad_step, coefficients, out, partial, decay_slots, decay,
    rows, channels, T: tl.constexpr, SHARED: tl.constexpr, N: tl.constexpr,
    ROUNDS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    decay = tl.load(decay)
    sum = tl.zeros([WIDE], REAL)
    product = tl.zeros([WIDE], REAL)
    decay_sum = tl.zeros([WIDE], REAL)
    for round in range(ROUNDS):
        _, channel, inside, at = _tile(round, rows, channels, ROUNDS, HIGH, WIDE)
        v = tl.zeros([HIGH, WIDE], REAL)
        fed, charged, leaks = (), (), ()
        for t in tl.static_range(T):
            x = tl.load(y + t * y_step + at, inside, other=0.0).to(REAL)
            fed = fed + (x,)
            if folded is not None:
                scale = _vector(folded, 2, channel, channels, REAL)
                x = x * scale + _vector(folded, 3, channel, channels, REAL)
            leaks = leaks + (_decay_slope(v, x, N),)
            h = _charge(v, x, decay, N)
            charged = charged + (h,)
            v = _after(h, N)
        v = tl.zeros([HIGH, WIDE], REAL)
        total = tl.zeros([HIGH, WIDE], REAL)
        for t in tl.static_range(T - 1, -1, -1):
            g = tl.load(grad + t * grad_step + at, inside, other=0.0).to(REAL)
            g = _back(charged[t], g, v, N)
            if decay_slots is not None:
                decay_sum += tl.sum(tl.where(inside, g * leaks[t], 0.0), 0)
            v = _state_gain(g, decay, N)
            g = _input_gain(g, decay, N)
            if partial is not None:
                d = fed[t] - _vector(folded, 0, channel, channels, REAL)
                sum += tl.sum(tl.where(inside, g, 0.0), 0)
                product += tl.sum(tl.where(inside, g * d, 0.0), 0)
            total += g
            if out is not None:
                if not SHARED or t == 0:
                    g = total if SHARED else g
                    if coefficients is not None:
                        b = _vector(coefficients, 1, channel, channels, REAL)
                        d = _vector(coefficients, 2, channel, channels, REAL)
                        g = _vector(coefficients, 0, channel, channels, REAL) * g + b * fed[t] + d
                    step = 0 if SHARED else t * rows.to(tl.int64) * channels
                    tl.store(out + step + at, g, inside)
    if partial is not None:
        _store_sums(partial, sum, product, channels, WIDE)
    if decay_slots is not None:
        slot = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(decay_slots + slot, tl.sum(decay_sum, 0))


@triton.jit
def max_pool(
    y, y_step, folded, shortcut, shortcut_step, out, raw, codes, decay,
    images, height, width, channels, T: tl.constexpr, FIRE: tl.constexpr, N: tl.constexpr,
    ROUNDS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    high, wide = (height + 1) // 2, (width + 1) // 2
    rows = images * high * wide
    row, channel, inside, at = _tile(0, rows, channels, ROUNDS, HIGH, WIDE)
    oh, ow, image = row // wide % high, row % wide, row // (high * wide)
    decay = tl.load(decay)
    v = tl.zeros([HIGH, WIDE], REAL)
    for t in tl.static_range(T):
        best = tl.full([HIGH, WIDE], float("-inf"), REAL)
        best_y = tl.zeros([HIGH, WIDE], REAL)
        code = tl.full([HIGH, WIDE], -1, tl.int32)
        for i in tl.static_range(9):
            h, w = 2 * oh - 1 + i // 3, 2 * ow - 1 + i % 3
            valid = inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            pixel = (image * height + h) * width + w
            fed = tl.load(y + t * y_step + pixel * channels + channel, valid, other=0.0).to(REAL)
            x = fed
            if folded is not None:
                scale = _vector(folded, 2, channel, channels, REAL)
                x = x * scale + _vector(folded, 3, channel, channels, REAL)
            # As in torch: the first of equal values, NaN above all.
            larger = valid & ((x > best) | (x != x) | (code < 0))
            best = tl.where(larger, x, best)
            best_y = tl.where(larger, fed, best_y)
            code = tl.where(larger, i, code)
        here = t * rows.to(tl.int64) * channels + at
        if t == 0 or y_step != 0:
            if raw is not None:
                tl.store(raw + here, best_y, inside)
                tl.store(codes + here, code.to(tl.uint8), inside)
        if FIRE:
            h = _charge(v, best, decay, N)
            v = _after(h, N)
            best = tl.where(h >= N.threshold, 1.0, 0.0).to(REAL)
        if shortcut is not None:
            best += tl.load(shortcut + t * shortcut_step + at, inside, other=0.0).to(REAL)
        tl.store(out + here, best, inside)


@triton.jit
def max_pool_backward(
    grad, codes, y, coefficients, out, images, height, width, channels,
    ROUNDS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    high, wide = (height + 1) // 2, (width + 1) // 2
    rows = images * height * width
    row, channel, inside, at = _tile(0, rows, channels, ROUNDS, HIGH, WIDE)
    h, w, image = row // width % height, row % width, row // (height * width)
    g = tl.zeros([HIGH, WIDE], REAL)
    for i in tl.static_range(4):
        oh, ow = h // 2 + i // 2, w // 2 + i % 2
        valid = inside & (oh <= (h + 1) // 2) & (ow <= (w + 1) // 2) & (oh < high) & (ow < wide)
        pooled = ((image * high + oh) * wide + ow) * channels + channel
        mine = tl.load(codes + pooled, valid, other=255) == (h - 2 * oh + 1) * 3 + w - 2 * ow + 1
        g += tl.load(grad + pooled, valid & mine, other=0.0).to(REAL)
    if coefficients is not None:
        b = _vector(coefficients, 1, channel, channels, REAL)
        d = _vector(coefficients, 2, channel, channels, REAL)
        x = tl.load(y + at, inside, other=0.0).to(REAL)
        g = _vector(coefficients, 0, channel, channels, REAL) * g + b * x + d
    tl.store(out + at, g, inside)


@triton.jit
def _head_tile(rows, heads, head, HIGH: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr):
    """Row ``[HIGH, 1]``, head ``[1, HEADS]``, whether inside; and channel and the same in 3-D."""
    row = (tl.program_id(0) * HIGH + tl.arange(0, HIGH))[:, None].to(tl.int64)
    h = tl.arange(0, HEADS)[None, :]
    inside = (row < rows) & (h < heads)
    c = tl.arange(0, HEAD)[None, None, :]
    return row, h, inside, h[:, :, None] * head + c, inside[:, :, None] & (c < head)


@triton.jit
def token_attention(
    joined, wide, out, mask, scores, keys, decay, rows, heads, head,
    T: tl.constexpr, PARTS: tl.constexpr, N: tl.constexpr,
    HIGH: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    row, h, inside, channel, there = _head_tile(rows, heads, head, HIGH, HEADS, HEAD)
    channels = heads * head
    decay = tl.load(decay)
    v = tl.zeros([HIGH, HEADS], REAL)
    for t in tl.static_range(T):
        at = t * rows.to(tl.int64) + row
        own = at[:, :, None] * PARTS * channels + channel
        votes = tl.zeros([HIGH, HEADS, HEAD], REAL)
        for p in tl.static_range(PARTS - 1):
            votes += tl.load(joined + own + p * channels, there, other=0.0).to(REAL)
        for p in tl.static_range(len(wide)):
            vote = tl.load(wide[p] + at[:, :, None] * channels + channel, there, other=0.0)
            votes += vote.to(REAL)
        score = tl.sum(votes, 2)
        charged = _charge(v, score, decay, N)
        v = _after(charged, N)
        fired = charged >= N.threshold
        key = tl.load(joined + own + (PARTS - 1) * channels, there, other=0.0)
        selected = tl.where(fired[:, :, None], key, 0.0)
        tl.store(out + at[:, :, None] * channels + channel, selected, there)
        tl.store(mask + at * heads + h, tl.where(fired, 1.0, 0.0), inside)
        if scores is not None:
            tl.store(scores + at * heads + h, score, inside)
            tl.store(keys + at[:, :, None] * channels + channel, key.to(tl.uint8), there)


@triton.jit
def token_attention_backward(
    grad, scores, keys, joined, wide, decay_slots, decay, rows, heads, head,
    T: tl.constexpr, PARTS: tl.constexpr, N: tl.constexpr,
    HIGH: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    row, h, inside, channel, there = _head_tile(rows, heads, head, HIGH, HEADS, HEAD)
    channels = heads * head
    decay = tl.load(decay)
    v = tl.zeros([HIGH, HEADS], REAL)
    charged, leaks = (), ()
    for t in tl.static_range(T):
        x = tl.load(scores + (t * rows.to(tl.int64) + row) * heads + h, inside, other=0.0)
        leaks = leaks + (_decay_slope(v, x, N),)
        c = _charge(v, x, decay, N)
        charged = charged + (c,)
        v = _after(c, N)
    v = tl.zeros([HIGH, HEADS], REAL)
    decay_sum = tl.zeros([HIGH], REAL)
    for t in tl.static_range(T - 1, -1, -1):
        at = (t * rows.to(tl.int64) + row)[:, :, None]
        own = at * PARTS * channels + channel
        g = tl.load(grad + at * channels + channel, there, other=0.0)
        key = tl.load(keys + at * channels + channel, there, other=0)
        fired = (charged[t] >= N.threshold)[:, :, None]
        tl.store(joined + own + (PARTS - 1) * channels, tl.where(fired, g, 0.0), there)
        vote = _back(charged[t], tl.sum(g.to(REAL) * key.to(REAL), 2), v, N)
        if decay_slots is not None:
            decay_sum += tl.sum(tl.where(inside, vote * leaks[t], 0.0), 1)
        v = _state_gain(vote, decay, N)
        spread = _input_gain(vote, decay, N)[:, :, None] + tl.zeros([HIGH, HEADS, HEAD], REAL)
        for p in tl.static_range(PARTS - 1):
            tl.store(joined + own + p * channels, spread, there)
        if wide is not None:
            tl.store(wide + at * channels + channel, spread, there)
    if decay_slots is not None:
        tl.store(decay_slots + tl.program_id(0), tl.sum(decay_sum, 0))

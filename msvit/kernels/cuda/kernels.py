"""Triton kernels: the passes of a :class:`msvit.kernels.spec.Backend`.

Pointers are to contiguous ``[T, R, C]``; a pointer that is None switches its part off. Potentials,
statistics and parameters have the type REAL. ``folded`` is ``[4, C]`` (mean, 1/std, scale, shift),
``coefficients`` ``[3, C]`` (a, b, d), ``decay`` a scalar where a PLIF has learned it, else None,
and ``N`` a :class:`msvit.kernels.spec.NeuronSpec`.

A program works on a *tile*, HIGH rows of WIDE channels; the programs of one *band* of rows, a
*block* of channels each, run side by side, so that they share what memory delivers. Where sums are
taken a band is ``rounds`` tiles high: they stay in registers, one per lane, and are reduced once.

T time steps run in registers, STEPS at a time. What is loaded for them is loaded before the first
store: no load can be moved up past a store, and a program that waits for one load at a time gets
a fraction of the bandwidth.
"""

# Triton's language has no starred tuples and decides constants by nested ifs.
# ruff: noqa: RUF005, SIM102

import triton
import triton.language as tl


@triton.jit
def _times_decay(x, decay, N: tl.constexpr):
    # As a constant it is exact in float64; a scalar argument would be float32.
    return x * decay if decay is not None else x * (1.0 / N.tau)


@triton.jit
def _charge(v, x, decay, N: tl.constexpr):
    if N.leaks:
        drive = x - v if N.decay_input else v
        if not N.divides:
            drive = _times_decay(drive, decay, N)
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


ON_GPU = tl.constexpr(isinstance(_after, triton.JITFunction))
# There exp2 and reciprocal are one instruction each in float32. Triton's own guard them against
# subnormal numbers, which no surrogate meets: a quarter of all instructions of ``backward``.


@triton.jit
def _exp2(x):
    if ON_GPU and x.dtype == tl.float32:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def _reciprocal(x):
    if ON_GPU and x.dtype == tl.float32:
        y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = 1 / x
    return y


@triton.jit
def _surrogate(h, N: tl.constexpr):
    x = h - N.threshold
    if N.surrogate == "sigmoid":
        e = _exp2(tl.abs(x) * (-1.4426950408889634 * N.alpha))
        r = _reciprocal(e + 1)
        slope = e * N.alpha * (r * r)
    elif N.surrogate == "atan":
        x = x * (1.5707963267948966 * N.alpha)
        slope = _reciprocal(x * x + 1) * (N.alpha / 2)
    elif N.surrogate == "erf":
        slope = _exp2(x * x * (-1.4426950408889634 * N.alpha * N.alpha))
        slope = slope * (N.alpha * 0.5641895835477563)
    elif N.surrogate == "piecewise_quadratic":
        x = tl.abs(x)
        slope = tl.where(x > 1 / N.alpha, 0.0, N.alpha - x * (N.alpha * N.alpha))
    elif N.surrogate == "soft_sign":
        x = tl.abs(x) + 1 / N.alpha
        slope = _reciprocal(x * x) * (0.5 / N.alpha)
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
    if N.leaks:
        if N.decay_input:
            g = _times_decay(g, decay, N)
    return g


@triton.jit
def _state_gain(g, decay, N: tl.constexpr):
    if N.leaks:
        g = g * (1 - decay) if decay is not None else g * (1 - 1.0 / N.tau)
    return g


@triton.jit
def _decay_slope(v, x, N: tl.constexpr):
    return x - v if N.decay_input else -v


@triton.jit
def _far(step, t):
    """``t`` steps on; sizes are 32 bits wide, distances may be more."""
    return tl.cast(step, tl.int64) * t


@triton.jit
def _place(channels, WIDE: tl.constexpr):
    """Band of rows and block of channels of this program."""
    blocks = tl.cdiv(channels, WIDE)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks


@triton.jit
def _tile(number, block, rows, channels, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Whether inside, start and offsets from there of the tile ``number`` rows of tiles down."""
    row, channel = tl.arange(0, HIGH)[:, None], tl.arange(0, WIDE)[None, :]
    inside = (number * HIGH + row < rows) & (block * WIDE + channel < channels)
    start = _far(channels, number * HIGH) + block * WIDE
    return inside, start, row * channels + channel


@triton.jit
def _vector(table, index, block, channels, WIDE: tl.constexpr, REAL: tl.constexpr):
    """Row ``index`` of a table, ``[1, WIDE]``."""
    channel = block * WIDE + tl.arange(0, WIDE)[None, :]
    return tl.load(table + index * channels + channel, channel < channels, other=0.0).to(REAL)


@triton.jit
def _store_sums(partial, sum, product, band, block, channels, WIDE: tl.constexpr):
    channel = block * WIDE + tl.arange(0, WIDE)
    at = partial + band * 2 * channels + channel
    tl.store(at, tl.sum(sum, 0), channel < channels)
    tl.store(at + channels, tl.sum(product, 0), channel < channels)


@triton.jit
def _pivot(y, rows, channels, channel, REAL: tl.constexpr):
    """The median of three rows of y, since one may be an outlier (a corner of an image)."""
    there, rows = channel < channels, tl.cast(rows, tl.int64)
    p = tl.load(y + rows // 4 * channels + channel, there, other=0.0).to(REAL)
    q = tl.load(y + rows // 2 * channels + channel, there, other=0.0).to(REAL)
    r = tl.load(y + rows * 3 // 4 * channels + channel, there, other=0.0).to(REAL)
    return tl.maximum(tl.minimum(p, q), tl.minimum(tl.maximum(p, q), r))


@triton.jit
def moments(
    y, partial, rows, channels, rounds,
    AT_ONCE: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums of y - pivot and of its square, a slot per band."""
    band, block = _place(channels, WIDE)
    pivot = _pivot(y, rows, channels, block * WIDE + tl.arange(0, WIDE)[None, :], REAL)
    sum = tl.zeros([HIGH, WIDE], REAL)
    squares = tl.zeros([HIGH, WIDE], REAL)
    for round in range(0, rounds, AT_ONCE):
        loaded, there = (), ()
        for i in tl.static_range(AT_ONCE):
            inside, start, at = _tile(band * rounds + round + i, block, rows, channels, HIGH, WIDE)
            loaded = loaded + (tl.load(y + start + at, inside, other=0.0),)
            there = there + (inside,)
        for i in tl.static_range(AT_ONCE):
            d = tl.where(there[i], loaded[i].to(REAL) - pivot, 0.0)
            sum += d
            squares += d * d
    _store_sums(partial, sum, squares, band, block, channels, WIDE)


@triton.jit
def gradient_sums(
    grad, y, mean, partial, rows, channels, rounds,
    AT_ONCE: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g · (y - mean), a slot per band."""
    band, block = _place(channels, WIDE)
    centre = _vector(mean, 0, block, channels, WIDE, REAL)
    sum = tl.zeros([HIGH, WIDE], REAL)
    product = tl.zeros([HIGH, WIDE], REAL)
    for round in range(0, rounds, AT_ONCE):
        grads, fed = (), ()
        for i in tl.static_range(AT_ONCE):
            inside, start, at = _tile(band * rounds + round + i, block, rows, channels, HIGH, WIDE)
            grads = grads + (tl.load(grad + start + at, inside, other=0.0),)
            fed = fed + (tl.load(y + start + at, inside, other=0.0),)
        for i in tl.static_range(AT_ONCE):
            g = grads[i].to(REAL)  # 0 outside
            sum += g
            product += g * (fed[i].to(REAL) - centre)
    _store_sums(partial, sum, product, band, block, channels, WIDE)


@triton.jit
def _over_slots(partial, slots, channels, channel, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Both rows of ``partial [slots, 2, C]`` added up over slots in float64, ``[WIDE]`` each."""
    first = tl.zeros([HIGH, WIDE], tl.float64)
    second = tl.zeros([HIGH, WIDE], tl.float64)
    for top in range(0, slots, HIGH):
        slot = top + tl.arange(0, HIGH)[:, None]
        there = (slot < slots) & (channel < channels)[None, :]
        at = partial + slot * 2 * channels + channel[None, :]
        first += tl.load(at, there, other=0.0).to(tl.float64)
        second += tl.load(at + channels, there, other=0.0).to(tl.float64)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def fold(
    y, rows, partial, slots, moments, count, weight, bias, offset,
    running_mean, running_var, batches, folded, channels,
    EPS: tl.constexpr, MOMENTUM: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """``folded`` from ``partial`` (of y), from ``moments [2, C]`` or from the running statistics.

    In the first two cases the running statistics move by MOMENTUM, or, where that is None, to the
    mean over ``batches``, this one included; else ``batches`` is incremented here.
    """
    channel = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    there = channel < channels
    added = tl.zeros([WIDE], tl.float64)
    if offset is not None:
        added = tl.load(offset + channel, there, other=0.0).to(tl.float64)
    old_mean = tl.load(running_mean + channel, there, other=0.0).to(tl.float64)
    old_var = tl.load(running_var + channel, there, other=1.0).to(tl.float64)
    if partial is not None:
        first, second = _over_slots(partial, slots, channels, channel, HIGH, WIDE)
        mean, square = first / tl.cast(rows, tl.float64), second / tl.cast(rows, tl.float64)
        variance = square - mean * mean
        variance = tl.where(variance < 0, 0.0, variance)  # NaN stays
        mean += _pivot(y, rows, channels, channel, REAL).to(tl.float64)
    elif moments is not None:
        mean = tl.load(moments + channel, there, other=0.0).to(tl.float64)
        variance = tl.load(moments + channels + channel, there, other=1.0).to(tl.float64)
    else:
        mean, variance = old_mean - added, old_var
    if count is not None:
        values = tl.cast(count, tl.float64)
        unbiased = variance * (values / (values - 1))
        if MOMENTUM is None:
            step = 1.0 / tl.load(batches).to(tl.float64)
            new_mean = old_mean + step * (mean + added - old_mean)
            new_var = old_var + step * (unbiased - old_var)
        else:
            new_mean = old_mean + MOMENTUM * (mean + added - old_mean)
            new_var = old_var + MOMENTUM * (unbiased - old_var)
            if tl.program_id(0) == 0:
                tl.store(batches, tl.load(batches) + 1)
        tl.debug_barrier()  # by now every thread that shares a channel has read them
        tl.store(running_mean + channel, new_mean, there)
        tl.store(running_var + channel, new_var, there)
    invstd = 1.0 / tl.sqrt(variance + EPS)
    scale = tl.load(weight + channel, there, other=0.0).to(tl.float64) * invstd
    shift = tl.load(bias + channel, there, other=0.0).to(tl.float64) - mean * scale
    tl.store(folded + channel, mean, there)
    tl.store(folded + channels + channel, invstd, there)
    tl.store(folded + 2 * channels + channel, scale, there)
    tl.store(folded + 3 * channels + channel, shift, there)


@triton.jit
def fold_gradients(
    own, own_slots, total, total_slots, folded, grads, coefficients, count, repeats, channels,
    HIGH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``grads [2, C]`` of weight and bias and ``coefficients``; ``total`` None: it is ``own``."""
    channel = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    there = channel < channels
    at = folded + channel
    mean = tl.load(at, there, other=0.0).to(tl.float64)
    invstd = tl.load(at + channels, there, other=0.0).to(tl.float64)
    scale = tl.load(at + 2 * channels, there, other=0.0).to(tl.float64)
    b = tl.zeros([WIDE], tl.float64)
    d = tl.zeros([WIDE], tl.float64)
    if own is not None:
        sum, product = _over_slots(own, own_slots, channels, channel, HIGH, WIDE)
        tl.store(grads + channel, product * invstd, there)
        tl.store(grads + channels + channel, sum, there)
        if count is not None:
            if total is not None:
                sum, product = _over_slots(total, total_slots, channels, channel, HIGH, WIDE)
            b = -scale * invstd * invstd * product / tl.cast(count, tl.float64)
            d = -scale * sum / tl.cast(count, tl.float64) - b * mean
    tl.store(coefficients + channel, scale / tl.cast(repeats, tl.float64), there)
    tl.store(coefficients + channels + channel, b, there)
    tl.store(coefficients + 2 * channels + channel, d, there)


@triton.jit
def fold_decay(partial, slots, decay, grad, WIDE: tl.constexpr):
    """Gradient of a PLIF's w from that of its decay, sigmoid(w), summed over slots."""
    sum = tl.zeros([WIDE], tl.float64)
    for first in range(0, slots, WIDE):
        slot = first + tl.arange(0, WIDE)
        sum += tl.load(partial + slot, slot < slots, other=0.0).to(tl.float64)
    gain = tl.load(decay).to(tl.float64)
    tl.store(grad, tl.sum(sum, 0) * (gain * (1.0 - gain)))


@triton.jit
def affine(
    u, a, v, b, d, out, rows, channels,
    HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    band, block = _place(channels, WIDE)
    inside, start, at = _tile(band, block, rows, channels, HIGH, WIDE)
    x = tl.load(u + start + at, inside, other=0.0).to(REAL)
    x = x * _vector(a, 0, block, channels, WIDE, REAL)
    if v is not None:
        other = tl.load(v + start + at, inside, other=0.0).to(REAL)
        if b is not None:
            other = other * _vector(b, 0, block, channels, WIDE, REAL)
        x += other
    tl.store(out + start + at, x + _vector(d, 0, block, channels, WIDE, REAL), inside)


@triton.jit
def _steps(
    x, step, at, first, inside,
    T: tl.constexpr, STEPS: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Tiles of STEPS time steps from ``first`` on, as a tuple; SHARED: all are one. 0 behind T."""
    loaded = ()
    for i in tl.static_range(STEPS):
        if SHARED and i > 0:
            loaded = loaded + (loaded[0],)
        else:
            there = inside if T % STEPS == 0 else inside & (first + i < T)
            loaded = loaded + (tl.load(x + _far(step, first + i) + at, there, other=0.0),)
    return loaded


@triton.jit
def forward(
    y, y_step, folded, shortcut, shortcut_step, out, out_step, decay, rows, channels,
    T: tl.constexpr, STEPS: tl.constexpr, SHARED: tl.constexpr, N: tl.constexpr,
    HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    band, block = _place(channels, WIDE)
    inside, start, at = _tile(band, block, rows, channels, HIGH, WIDE)
    if decay is not None:
        decay = tl.load(decay)
    if folded is not None:
        scale = _vector(folded, 2, block, channels, WIDE, REAL)
        shift = _vector(folded, 3, block, channels, WIDE, REAL)
    v = tl.zeros([HIGH, WIDE], REAL)
    for first in range(0, T, STEPS):
        fed = _steps(y + start, y_step, at, first, inside, T, STEPS, SHARED)
        if shortcut is not None:
            added = _steps(shortcut + start, shortcut_step, at, first, inside, T, STEPS, False)
        for i in tl.static_range(STEPS):
            x = fed[i].to(REAL)
            if folded is not None:
                x = x * scale + shift
            h = _charge(v, x, decay, N)
            v = _after(h, N)
            fired = tl.where(h >= N.threshold, 1.0, 0.0).to(REAL)
            if shortcut is not None:
                fired += added[i].to(REAL)
            there = inside if T % STEPS == 0 else inside & (first + i < T)
            tl.store(out + start + _far(out_step, first + i) + at, fired, there)


@triton.jit
def backward(
    y, y_step, folded, grad, grad_step, coefficients, out, out_step, borders, border_step,
    partial, decay_slots, decay, rows, channels, rounds,
    T: tl.constexpr, STEPS: tl.constexpr, SHARED: tl.constexpr, N: tl.constexpr,
    HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Where T is more than STEPS, ``borders`` keeps the potentials in front of each further chunk.

    ``[chunks - 1, R, C]``: the way back begins with the last chunk and recomputes each from there.
    """
    CHUNKS: tl.constexpr = (T + STEPS - 1) // STEPS
    band, block = _place(channels, WIDE)
    if decay is not None:
        decay = tl.load(decay)
    if folded is not None:
        mean = _vector(folded, 0, block, channels, WIDE, REAL)
        scale = _vector(folded, 2, block, channels, WIDE, REAL)
        shift = _vector(folded, 3, block, channels, WIDE, REAL)
    if coefficients is not None:
        a = _vector(coefficients, 0, block, channels, WIDE, REAL)
        b = _vector(coefficients, 1, block, channels, WIDE, REAL)
        d = _vector(coefficients, 2, block, channels, WIDE, REAL)
    sum = tl.zeros([HIGH, WIDE], REAL)
    product = tl.zeros([HIGH, WIDE], REAL)
    decay_sum = tl.zeros([HIGH, WIDE], REAL)
    for round in range(rounds):
        inside, start, at = _tile(band * rounds + round, block, rows, channels, HIGH, WIDE)
        if CHUNKS > 1:
            v = tl.zeros([HIGH, WIDE], REAL)
            for chunk in range(CHUNKS - 1):
                loaded = _steps(y + start, y_step, at, chunk * STEPS, inside, T, STEPS, SHARED)
                for i in tl.static_range(STEPS):
                    x = loaded[i].to(REAL)
                    if folded is not None:
                        x = x * scale + shift
                    v = _after(_charge(v, x, decay, N), N)
                tl.store(borders + start + _far(border_step, chunk) + at, v, inside)
            tl.debug_barrier()  # another thread may read what this one has written
        back = tl.zeros([HIGH, WIDE], REAL)
        total = tl.zeros([HIGH, WIDE], REAL)
        for behind in range(CHUNKS):
            chunk = CHUNKS - 1 - behind
            first = chunk * STEPS
            loaded = _steps(y + start, y_step, at, first, inside, T, STEPS, SHARED)
            grads = _steps(grad + start, grad_step, at, first, inside, T, STEPS, False)
            v = tl.zeros([HIGH, WIDE], REAL)
            if CHUNKS > 1:
                border = borders + start + _far(border_step, chunk - 1) + at
                v = tl.load(border, inside & (chunk > 0), other=0.0)
            charged, leaks = (), ()
            for i in tl.static_range(STEPS):
                x = loaded[i].to(REAL)
                if folded is not None:
                    x = x * scale + shift
                if decay_slots is not None:
                    leaks = leaks + (_decay_slope(v, x, N),)
                h = _charge(v, x, decay, N)
                charged = charged + (h,)
                v = _after(h, N)
            for i in tl.static_range(STEPS - 1, -1, -1):
                g = _back(charged[i], grads[i].to(REAL), back, N)
                if T % STEPS != 0:
                    g = tl.where(first + i < T, g, 0.0)
                if decay_slots is not None:
                    decay_sum += g * leaks[i]  # g is 0 outside, here and below
                back = _state_gain(g, decay, N)
                g = _input_gain(g, decay, N)
                if partial is not None:
                    sum += g
                    product += g * (loaded[i].to(REAL) - mean)
                if SHARED:
                    total += g
                elif out is not None:
                    if coefficients is not None:
                        g = a * g + b * loaded[i].to(REAL) + d
                    there = inside if T % STEPS == 0 else inside & (first + i < T)
                    tl.store(out + start + _far(out_step, first + i) + at, g, there)
        if SHARED:
            if out is not None:
                if coefficients is not None:
                    fed = tl.load(y + start + at, inside, other=0.0).to(REAL)
                    total = a * total + b * fed + d
                tl.store(out + start + at, total, inside)
    if partial is not None:
        _store_sums(partial, sum, product, band, block, channels, WIDE)
    if decay_slots is not None:
        tl.store(decay_slots + tl.program_id(0), tl.sum(tl.sum(decay_sum, 0), 0))


@triton.jit
def _largest(
    y, corner, h, w, height, width, channels, inside, scale, shift,
    HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The largest of 3×3 values from (h, w) on, normalised; its y, and a code of where it is."""
    best = tl.full([HIGH, WIDE], float("-inf"), REAL)
    best_y = tl.zeros([HIGH, WIDE], REAL)
    code = tl.full([HIGH, WIDE], -1, tl.int32)
    for i in tl.static_range(9):
        row, column = h + i // 3, w + i % 3
        valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at = corner + (i // 3 * width + i % 3) * channels
        fed = tl.load(y + at, valid, other=0.0).to(REAL)
        x = fed
        if scale is not None:
            x = x * scale + shift
        # As in torch: the first of equal values, NaN above all.
        larger = valid & ((x > best) | (x != x) | (code < 0))
        best = tl.where(larger, x, best)
        best_y = tl.where(larger, fed, best_y)
        code = tl.where(larger, i, code)
    return best, best_y, code


@triton.jit
def max_pool(
    y, y_step, folded, shortcut, shortcut_step, out, out_step, raw, codes, decay,
    images, height, width, channels,
    T: tl.constexpr, SHARED: tl.constexpr, FIRE: tl.constexpr, N: tl.constexpr,
    HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    high, wide = (height + 1) // 2, (width + 1) // 2
    rows = images * high * wide
    band, block = _place(channels, WIDE)
    inside, start, at = _tile(band, block, rows, channels, HIGH, WIDE)
    row = band * HIGH + tl.arange(0, HIGH)[:, None]
    h, w = row // wide % high * 2 - 1, row % wide * 2 - 1
    pixel = (row // (high * wide) * height + h) * width + w
    corner = _far(channels, pixel) + block * WIDE + tl.arange(0, WIDE)[None, :]
    scale, shift = None, None
    if folded is not None:
        scale = _vector(folded, 2, block, channels, WIDE, REAL)
        shift = _vector(folded, 3, block, channels, WIDE, REAL)
    if decay is not None:
        decay = tl.load(decay)
    if SHARED:
        shared, best_y, code = _largest(
            y, corner, h, w, height, width, channels, inside, scale, shift, HIGH, WIDE, REAL
        )
        if raw is not None:
            tl.store(raw + start + at, best_y, inside)
            tl.store(codes + start + at, code.to(tl.uint8), inside)
    v = tl.zeros([HIGH, WIDE], REAL)
    for t in range(T):
        here = start + _far(out_step, t)
        if SHARED:
            best = shared
        else:
            best, best_y, code = _largest(
                y + _far(y_step, t),
                corner, h, w, height, width, channels, inside, scale, shift, HIGH, WIDE, REAL,
            )  # fmt: skip
            if raw is not None:
                tl.store(raw + here + at, best_y, inside)
                tl.store(codes + here + at, code.to(tl.uint8), inside)
        if FIRE:
            charged = _charge(v, best, decay, N)
            v = _after(charged, N)
            best = tl.where(charged >= N.threshold, 1.0, 0.0).to(REAL)
        if shortcut is not None:
            other = shortcut + start + _far(shortcut_step, t) + at
            best += tl.load(other, inside, other=0.0).to(REAL)
        tl.store(out + here + at, best, inside)


@triton.jit
def max_pool_backward(
    grad, codes, y, coefficients, out, images, height, width, channels,
    HIGH: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    high, wide = (height + 1) // 2, (width + 1) // 2
    band, block = _place(channels, WIDE)
    inside, start, at = _tile(band, block, images * height * width, channels, HIGH, WIDE)
    row = band * HIGH + tl.arange(0, HIGH)[:, None]
    h, w, image = row // width % height, row % width, row // (height * width)
    channel = block * WIDE + tl.arange(0, WIDE)[None, :]
    corner = _far(channels, (image * high + h // 2) * wide + w // 2) + channel
    if coefficients is not None:
        fed = tl.load(y + start + at, inside, other=0.0)
    g = tl.zeros([HIGH, WIDE], REAL)
    for i in tl.static_range(4):
        oh, ow = h // 2 + i // 2, w // 2 + i % 2
        valid = inside & (oh <= (h + 1) // 2) & (ow <= (w + 1) // 2) & (oh < high) & (ow < wide)
        pooled = corner + (i // 2 * wide + i % 2) * channels
        mine = tl.load(codes + pooled, valid, other=255) == (h - 2 * oh + 1) * 3 + w - 2 * ow + 1
        g += tl.where(mine, tl.load(grad + pooled, valid, other=0.0).to(REAL), 0.0)
    if coefficients is not None:
        a = _vector(coefficients, 0, block, channels, WIDE, REAL)
        b = _vector(coefficients, 1, block, channels, WIDE, REAL)
        g = a * g + b * fed.to(REAL) + _vector(coefficients, 2, block, channels, WIDE, REAL)
    tl.store(out + start + at, g, inside)


@triton.jit
def _head_tile(
    rows, heads, HEAD: tl.constexpr,
    HIGH: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Row ``[HIGH, 1]``, head ``[1, HEADS]``, whether inside; and channel and the same in 3-D."""
    row = (tl.program_id(0) * HIGH + tl.arange(0, HIGH))[:, None]
    h = tl.arange(0, HEADS)[None, :]
    inside = (row < rows) & (h < heads)
    c = tl.arange(0, WIDE)[None, None, :]
    return row, h, inside, h[:, :, None] * HEAD + c, inside[:, :, None] & (c < HEAD)


@triton.jit
def token_attention(
    joined, wide, out, mask, scores, keys, decay, rows, heads,
    T: tl.constexpr, STEPS: tl.constexpr, PARTS: tl.constexpr, N: tl.constexpr, HEAD: tl.constexpr,
    HIGH: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    row, h, inside, channel, there = _head_tile(rows, heads, HEAD, HIGH, HEADS, WIDE)
    channels = heads * HEAD
    if decay is not None:
        decay = tl.load(decay)
    v = tl.zeros([HIGH, HEADS], REAL)
    for first in range(0, T, STEPS):
        fed, selected = (), ()
        for i in tl.static_range(STEPS):
            real = there if T % STEPS == 0 else there & (first + i < T)
            at = (_far(rows, first + i) + row)[:, :, None]
            own = joined + at * PARTS * channels + channel
            votes = tl.zeros([HIGH, HEADS, WIDE], REAL)
            for p in tl.static_range(PARTS - 1):
                votes += tl.load(own + p * channels, real, other=0.0).to(REAL)
            for p in tl.static_range(len(wide)):
                votes += tl.load(wide[p] + at * channels + channel, real, other=0.0).to(REAL)
            fed = fed + (tl.sum(votes, 2),)
            selected = selected + (tl.load(own + (PARTS - 1) * channels, real, other=0.0),)
        for i in tl.static_range(STEPS):
            real = there if T % STEPS == 0 else there & (first + i < T)
            head_real = inside if T % STEPS == 0 else inside & (first + i < T)
            at = _far(rows, first + i) + row
            score, key = fed[i], selected[i]
            charged = _charge(v, score, decay, N)
            v = _after(charged, N)
            fired = charged >= N.threshold
            here = at[:, :, None] * channels + channel
            tl.store(out + here, tl.where(fired[:, :, None], key, 0.0), real)
            tl.store(mask + at * heads + h, tl.where(fired, 1.0, 0.0), head_real)
            if scores is not None:
                tl.store(scores + at * heads + h, score, head_real)
                tl.store(keys + here, key.to(tl.uint8), real)


@triton.jit
def token_attention_backward(
    grad, scores, keys, joined, wide, borders, decay_slots, decay, rows, heads,
    T: tl.constexpr, STEPS: tl.constexpr, PARTS: tl.constexpr, N: tl.constexpr, HEAD: tl.constexpr,
    HIGH: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """``borders [chunks - 1, R, heads]``: as in :func:`backward`."""
    CHUNKS: tl.constexpr = (T + STEPS - 1) // STEPS
    row, h, inside, channel, there = _head_tile(rows, heads, HEAD, HIGH, HEADS, WIDE)
    channels = heads * HEAD
    if decay is not None:
        decay = tl.load(decay)
    if CHUNKS > 1:
        v = tl.zeros([HIGH, HEADS], REAL)
        for chunk in range(CHUNKS - 1):
            for i in tl.static_range(STEPS):
                at = (_far(rows, chunk * STEPS + i) + row) * heads + h
                v = _after(_charge(v, tl.load(scores + at, inside, other=0.0), decay, N), N)
            tl.store(borders + (_far(rows, chunk) + row) * heads + h, v, inside)
        tl.debug_barrier()  # another thread may read what this one has written
    back = tl.zeros([HIGH, HEADS], REAL)
    decay_sum = tl.zeros([HIGH, HEADS], REAL)
    for behind in range(CHUNKS):
        chunk = CHUNKS - 1 - behind
        first = chunk * STEPS
        fed, grads, selected = (), (), ()
        for i in tl.static_range(STEPS):
            real = there if T % STEPS == 0 else there & (first + i < T)
            head_real = inside if T % STEPS == 0 else inside & (first + i < T)
            at = _far(rows, first + i) + row
            here = at[:, :, None] * channels + channel
            fed = fed + (tl.load(scores + at * heads + h, head_real, other=0.0),)
            grads = grads + (tl.load(grad + here, real, other=0.0),)
            selected = selected + (tl.load(keys + here, real, other=0),)
        v = tl.zeros([HIGH, HEADS], REAL)
        if CHUNKS > 1:
            border = borders + (_far(rows, chunk - 1) + row) * heads + h
            v = tl.load(border, inside & (chunk > 0), other=0.0)
        charged, leaks = (), ()
        for i in tl.static_range(STEPS):
            if decay_slots is not None:
                leaks = leaks + (_decay_slope(v, fed[i], N),)
            c = _charge(v, fed[i], decay, N)
            charged = charged + (c,)
            v = _after(c, N)
        for i in tl.static_range(STEPS - 1, -1, -1):
            real = there if T % STEPS == 0 else there & (first + i < T)
            at = (_far(rows, first + i) + row)[:, :, None]
            own = joined + at * PARTS * channels + channel
            g, key = grads[i], selected[i]
            fired = (charged[i] >= N.threshold)[:, :, None]
            tl.store(own + (PARTS - 1) * channels, tl.where(fired, g, 0.0), real)
            vote = _back(charged[i], tl.sum(g.to(REAL) * key.to(REAL), 2), back, N)
            if T % STEPS != 0:
                vote = tl.where(first + i < T, vote, 0.0)
            if decay_slots is not None:
                decay_sum += vote * leaks[i]  # vote is 0 outside
            back = _state_gain(vote, decay, N)
            spread = _input_gain(vote, decay, N)[:, :, None] + tl.zeros([HIGH, HEADS, WIDE], REAL)
            for p in tl.static_range(PARTS - 1):
                tl.store(own + p * channels, spread, real)
            if wide is not None:
                tl.store(wide + at * channels + channel, spread, real)
    if decay_slots is not None:
        tl.store(decay_slots + tl.program_id(0), tl.sum(tl.sum(decay_sum, 0), 0))

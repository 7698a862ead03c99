// One time step of IF, LIF and PLIF neurons as spikingjelly computes it, and its gradient.
#pragma once
#include "vectors.h"

// Both mirrored by cpp.py.
enum Surrogate { SIGMOID, ATAN, ERF, PIECEWISE_QUADRATIC, SOFT_SIGN, RECT };
struct Neuron {
    int32_t leaky, decay_input, divide, soft_reset, detach_reset, surrogate;
    double tau, decay, threshold, reset, alpha;
};

namespace {

struct Dynamics {
    const bool leaky, decay_input, divide, soft, detach;
    const Surrogate shape;
    const R tau, decay, threshold, reset, alpha, inverse_alpha, slope;

    explicit Dynamics(const Neuron& n)
        : leaky(n.leaky), decay_input(n.decay_input), divide(n.divide), soft(n.soft_reset),
          detach(n.detach_reset), shape(Surrogate(n.surrogate)), tau(n.tau), decay(n.decay),
          threshold(n.threshold), reset(n.soft_reset ? 0 : n.reset), alpha(n.alpha),
          inverse_alpha(1 / n.alpha),
          slope(n.alpha * (shape == SIGMOID ? M_LOG2E : shape == ATAN ? M_PI_2 : std::sqrt(M_LOG2E))) {}

    INLINE V rest() const { return V{} + reset; }
    INLINE V charge(V v, V x) const {
        if (!leaky) return v + x;
        V leak = reset == 0 ? v : v - reset;
        if (decay_input) return v + (divide ? (x - leak) / tau : (x - leak) * decay);
        return v - (divide ? leak / tau : leak * decay) + x;
    }
    INLINE M fires(V h) const { return h >= threshold; }
    INLINE V after(V h, M fired) const {
        if (soft) return fired ? h - threshold : h;
        V reached = h - h;  // an infinite potential leaves NaN, as (1 - s) * h does
        return fired ? reset == 0 ? reached : reached + reset : h;
    }
    INLINE V surrogate(V h) const {
        if (shape == SIGMOID) {  // alpha s (1 - s) with s = 1 / (1 + e)
            V e = exp2_negative(absolute(h * slope - threshold * slope));
            return e / ((e * inverse_alpha + 2 * inverse_alpha) * e + inverse_alpha);
        }
        V x = h - threshold;
        if (shape == ATAN) { x *= slope; return (alpha / 2) / (x * x + R(1)); }
        if (shape == ERF) { x *= slope; return exp2_negative(x * x) * (alpha * R(M_2_SQRTPI / 2)); }
        x = absolute(x);
        if (shape == RECT) return x < inverse_alpha / 2 ? V{} + alpha : V{};
        if (shape == PIECEWISE_QUADRATIC) return x > inverse_alpha ? V{} : alpha - alpha * alpha * x;
        x += inverse_alpha;
        return inverse_alpha / 2 / (x * x);
    }
    // Gradient of the charged potential h from that of the spike and of the potential after reset;
    // slope is surrogate(h).
    INLINE V back(V h, V slope, V grad_spike, V grad_v) const {
        if (!detach) grad_spike += grad_v * (soft ? V{} - threshold : reset - h);
        V kept = soft ? grad_v : fires(h) ? V{} : grad_v;
        return grad_spike * slope + kept;
    }
    INLINE V decay_slope(V v, V x) const {  // d charge / d decay
        return decay_input ? x - (v - reset) : reset - v;
    }
    // What h gains from the input and from the potential before.
    R input_gain() const { return leaky && decay_input ? decay : R(1); }
    R state_gain() const { return leaky ? R(1) - decay : R(1); }
};

}  // namespace

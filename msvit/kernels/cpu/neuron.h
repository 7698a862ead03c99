// One time step of IF, LIF and PLIF neurons as spikingjelly computes it, and its gradient.
#pragma once
#include "vectors.h"

// The names, and the order of the fields, are Python's (build.py).
enum Surrogate { SURROGATES };
struct NeuronSpec { int32_t NEURON_FLAGS; double NEURON_NUMBERS; };

namespace {

struct Neuron {
    const bool leaks, decay_input, divides, hard, detach;
    const Surrogate shape;
    const R tau, decay, threshold, alpha, inverse_alpha, slope;

    explicit Neuron(const NeuronSpec& n)
        : leaks(n.leaks), decay_input(n.decay_input), divides(n.divides), hard(n.hard_reset),
          detach(n.detach_reset), shape(Surrogate(n.surrogate)), tau(n.tau), decay(n.decay),
          threshold(n.threshold), alpha(n.alpha), inverse_alpha(1 / n.alpha),
          slope(n.alpha * (shape == SIGMOID ? M_LOG2E : shape == ATAN ? M_PI_2 : std::sqrt(M_LOG2E))) {}

    INLINE V charge(V v, V x) const {
        if (!leaks) return v + x;
        if (decay_input) return v + (divides ? (x - v) / tau : (x - v) * decay);
        return v - (divides ? v / tau : v * decay) + x;
    }
    INLINE M fires(V h) const { return h >= threshold; }
    INLINE V after(V h, M fired) const {
        if (!hard) return fired ? h - threshold : h;
        return fired ? h - h : h;  // not 0: an infinite potential leaves NaN, as (1 - s) * h does
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
        if (!detach) grad_spike += grad_v * (hard ? V{} - h : V{} - threshold);
        V kept = !hard ? grad_v : fires(h) ? V{} : grad_v;
        return grad_spike * slope + kept;
    }
    INLINE V decay_slope(V v, V x) const {  // d charge / d decay
        return decay_input ? x - v : V{} - v;
    }
    // What h gains from the input and from the potential before.
    R input_gain() const { return leaks && decay_input ? decay : R(1); }
    R state_gain() const { return leaks ? R(1) - decay : R(1); }
};

}  // namespace

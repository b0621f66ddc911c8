// LSTM and GRU steps as ONNX defines them, with sigmoid and tanh, in float. The input's part of the gates,
// projected = W x + b of all steps, is a matrix product that was done before.
//
//   LSTM   i, o, f, c~ = projected + R h with peepholes P c on i, f (old cell) and o (new cell);
//          c = f c + i tanh(c~);  h = o tanh(c)
//   GRU    z, r, n = projected + R h;  h = (1 - z) tanh(n~ + r n) + z h         with linear_before_reset
//
// Rows (of a batch) that have ended keep their state and output zeros.
#pragma once

#include "elements.cuh"

// kFast: to 1e-6, a quarter of the instructions.
template <bool kFast = false>
__device__ inline float sigmoid(float x) {
    if constexpr (kFast) return __fdividef(1, 1 + power_of_two(-kLog2E * x));
    else return 1 / (1 + expf(-x));
}

template <bool kFast>
__device__ inline float hyperbolic_tangent(float x) {
    if constexpr (kFast) return 2 * sigmoid<true>(2 * x) - 1;
    else return tanhf(x);
}

struct Peepholes {
    float input, output, forget;

    __device__ Peepholes(const float *peepholes, int hidden, int unit) : input(0), output(0), forget(0) {
        if (!peepholes || unit >= hidden) return;
        input = peepholes[unit], output = peepholes[hidden + unit], forget = peepholes[2 * hidden + unit];
    }
};

// The new state from the sums of the gates i, o, f, c; changes the cell.
template <bool kFast = false>
__device__ inline float lstm_state(const float *gates, const Peepholes &peepholes, float &cell) {
    const float admit = sigmoid<kFast>(gates[0] + peepholes.input * cell);
    const float keep = sigmoid<kFast>(gates[2] + peepholes.forget * cell);
    cell = keep * cell + admit * hyperbolic_tangent<kFast>(gates[3]);
    return sigmoid<kFast>(gates[1] + peepholes.output * cell) * hyperbolic_tangent<kFast>(cell);
}

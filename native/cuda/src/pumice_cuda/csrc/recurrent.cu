// What follows the matrix product of one step of an LSTM or GRU (recurrent.cuh).
#include "recurrent.cuh"

// What follows the product of a step: product [batch][4 hidden] is R h. h and c are changed.
extern "C" __global__ void lstm_step(const float *projected, const float *product, const float *peepholes, const int *lengths,
                          int time, float *h, float *c, float *y, int batch, int hidden) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, row = i / hidden, unit = i % hidden;
    if (row >= batch) return;
    if (lengths && time >= lengths[row]) {
        y[i] = 0;
        return;
    }
    float gates[4];
#pragma unroll
    for (int gate = 0; gate < 4; gate++) {
        const int at = (row * 4 + gate) * hidden + unit;
        gates[gate] = projected[at] + product[at];
    }
    float cell = c[i];
    y[i] = h[i] = lstm_state(gates, Peepholes(peepholes, hidden, unit), cell);
    c[i] = cell;
}

// The same for a GRU with linear_before_reset: product [batch][3 hidden] is R h, to which `bias` is added for n.
extern "C" __global__ void gru_step(const float *projected, const float *product, const float *bias, const int *lengths, int time,
                         float *h, float *y, int batch, int hidden) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, row = i / hidden, unit = i % hidden;
    if (row >= batch) return;
    if (lengths && time >= lengths[row]) {
        y[i] = 0;
        return;
    }
    const float *entered = projected + row * 3 * hidden + unit, *own = product + row * 3 * hidden + unit;
    const float update = sigmoid(entered[0] + own[0]), reset = sigmoid(entered[hidden] + own[hidden]);
    const float recurrent = own[2 * hidden] + (bias ? bias[unit] : 0);
    const float candidate = tanhf(entered[2 * hidden] + reset * recurrent);
    y[i] = h[i] = (1 - update) * candidate + update * h[i];
}

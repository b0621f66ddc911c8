// architectures: sm_90a sm_100a
// An LSTM over all its steps in one launch (recurrent.cuh).
#include "clusters.cuh"
#include "recurrent.cuh"

// A cluster of eight blocks has kRows rows of the batch and all of R: a block the four gates of an eighth of the units,
// whose weights its threads keep in registers. A state goes to the shared memory of all eight, and the cluster waits.
//
// thread = 16 unit + 4 gate + quarter, and the k of a quarter are 16 v + 4 quarter + 0..3. kVectors * 16 >= hidden, at
// most 256. projected and y are `time` steps after each other.
constexpr int kBlocks = 8;

template <int kVectors, int kRows>
__global__ void __launch_bounds__(512, 1)
    lstm_cluster(const float *projected, const float *r, const float *peepholes, const int *lengths, float *h, float *c,
                 float *y, int time, int batch, int hidden, int64 y_step, int reverse) {
    constexpr int kDepth = kVectors * 16;
    __shared__ alignas(16) float states[2][kRows][kDepth];
    const int units = (hidden + kBlocks - 1) / kBlocks, block = blockIdx.x % kBlocks;
    const int lane = threadIdx.x % 32, gate = lane / 4 % 4, quarter = lane % 4, local = threadIdx.x / 16;
    const int unit = block * units + local, first = blockIdx.x / kBlocks * kRows;
    const bool works = local < units && unit < hidden;
    float weights[kVectors][4];
#pragma unroll
    for (int v = 0; v < kVectors; v++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int k = 16 * v + 4 * quarter + i;
            weights[v][i] = works && k < hidden ? r[int64(gate * hidden + unit) * hidden + k] : 0;
        }
    for (int i = threadIdx.x; i < kRows * kDepth; i += blockDim.x) {
        const int row = i / kDepth, k = i % kDepth;
        states[0][row][k] = first + row < batch && k < hidden ? h[(first + row) * hidden + k] : 0;
        states[1][row][k] = 0;
    }
    const Peepholes holes(peepholes, hidden, works ? unit : hidden);
    float cell[kRows], state[kRows], entering[kRows];
    int length[kRows];
#pragma unroll
    for (int row = 0; row < kRows; row++) {
        const bool there = works && first + row < batch;
        cell[row] = there ? c[(first + row) * hidden + unit] : 0;
        state[row] = there ? h[(first + row) * hidden + unit] : 0;
        length[row] = !there ? 0 : lengths ? lengths[first + row] : time;
    }
    const auto enter = [&](int step) {
        const int t = reverse ? time - 1 - step : step;
#pragma unroll
        for (int row = 0; row < kRows; row++)
            entering[row] = step < time && works && first + row < batch
                                ? projected[((int64(t) * batch + first + row) * 4 + gate) * hidden + unit]
                                : 0;
    };
    enter(0);
    cluster_sync();  // all have filled their states
    for (int step = 0; step < time; step++) {
        const int t = reverse ? time - 1 - step : step;
        float sums[kRows];
#pragma unroll
        for (int row = 0; row < kRows; row++) {
            float parts[4] = {};
#pragma unroll
            for (int v = 0; v < kVectors; v++) {
                const float4 before = *reinterpret_cast<const float4 *>(&states[step % 2][row][16 * v + 4 * quarter]);
                parts[0] = fmaf(weights[v][0], before.x, parts[0]);
                parts[1] = fmaf(weights[v][1], before.y, parts[1]);
                parts[2] = fmaf(weights[v][2], before.z, parts[2]);
                parts[3] = fmaf(weights[v][3], before.w, parts[3]);
            }
            sums[row] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
            sums[row] += __shfl_xor_sync(~0u, sums[row], 1);
            sums[row] += __shfl_xor_sync(~0u, sums[row], 2);
            sums[row] += entering[row];
        }
        enter(step + 1);
#pragma unroll
        for (int row = 0; row < kRows; row++) {
            float gates[4];
#pragma unroll
            for (int g = 0; g < 4; g++) gates[g] = __shfl_sync(~0u, sums[row], lane / 16 * 16 + 4 * g);
            const bool alive = t < length[row];
            if (alive) state[row] = lstm_state(gates, holes, cell[row]);
            if (works && lane % 16 < kBlocks)
                write_to_block(&states[(step + 1) % 2][row][unit], lane % 16, state[row]);
            if (works && first + row < batch && lane % 16 == 0)
                y[t * y_step + int64(first + row) * hidden + unit] = alive ? state[row] : 0;
        }
        cluster_sync();
    }
#pragma unroll
    for (int row = 0; row < kRows; row++)
        if (works && first + row < batch && lane % 16 == 0) {
            h[(first + row) * hidden + unit] = state[row];
            c[(first + row) * hidden + unit] = cell[row];
        }
}

// instances: lstm_cluster<4, 1>; lstm_cluster<8, 4>; lstm_cluster<16, 1>; lstm_cluster<16, 3>

// An LSTM over all its steps in one launch of blocks that run at once (recurrent.cuh): for more units than a cluster can
// keep, and where the state is quantized at every step.
//
// A block has the four gates of kUnits units, whose weights lie in its shared memory as (k, unit, gate). The state is
// (k, rows of the batch) in global memory, twice: one is read and the other written. The eight warps of a block divide k;
// a lane sums, for two rows of the batch, the gates of half of the units. When all blocks have written their part of the
// new state, the next step begins.
//
// kRounded multiplies R not by the state but by what DynamicQuantizeLinear leaves of it, the whole batch having one scale:
// with its part of the state a block writes the range of that part.
#include "levels.cuh"
#include "recurrent.cuh"
#include "teams.cuh"

constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = 32;

// Once all blocks have come here for the n-th time, `count` (0 in the beginning) is n times their number.
__device__ inline void meet(unsigned *count, unsigned wanted) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(count, 1);
        unsigned seen;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
        while (seen < wanted);
    }
    __syncthreads();
}

// A value as it comes back from levels.
struct Rounding {
    Divisor scale;
    float zero;

    __device__ explicit Rounding(const Dynamic &found) : scale(found.scale), zero(found.zero) {}

    __device__ float operator()(float value) const {
        return (fminf(fmaxf(rintf(scale.quotient(value)) + zero, 0), 255) - zero) * scale.scale;
    }
};

// Of ranges that other blocks have written, the same in every thread.
__device__ inline Dynamic dynamic_of(const float2 *ranges, int count) {
    float low = 0, high = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const float2 one = __ldcg(ranges + i);
        low = Least()(low, one.x), high = Greatest()(high, one.y);
    }
    return Dynamic(across<kThreads>(low, Least()), across<kThreads>(high, Greatest()));
}

template <int kUnits, bool kRounded>
struct Layer {
    static constexpr int kGates = 4 * kUnits, kHalf = kGates / 2;
    const float *weights;  // [hidden][kGates]
    float *parts;          // [kWarps][kGates][kRows]
    int hidden;

    // parts = the sums of each warp over its part of k, for 32 rows of the batch.
    __device__ void multiply(const float *states, int stride, const Rounding &rounding) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pair = lane % 16 * 2, half = lane / 16;
        const int each = (hidden + kWarps - 1) / kWarps, end = min(hidden, (warp + 1) * each);
        float sums[kHalf][2] = {};
#pragma unroll 8
        for (int k = warp * each; k < end; k++) {
            float2 state = __ldcg(reinterpret_cast<const float2 *>(states + k * stride + pair));
            if constexpr (kRounded) state.x = rounding(state.x), state.y = rounding(state.y);
#pragma unroll
            for (int n = 0; n < kHalf; n += 4) {
                const float4 w = *reinterpret_cast<const float4 *>(weights + k * kGates + half * kHalf + n);
                const float four[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sums[n + i][0] = fmaf(four[i], state.x, sums[n + i][0]);
                    sums[n + i][1] = fmaf(four[i], state.y, sums[n + i][1]);
                }
            }
        }
        float *own = parts + (warp * kGates + half * kHalf) * kRows + pair;
#pragma unroll
        for (int n = 0; n < kHalf; n++) *reinterpret_cast<float2 *>(own + n * kRows) = make_float2(sums[n][0], sums[n][1]);
    }

    __device__ float sum(int gate, int row) const {
        float total = 0;
#pragma unroll
        for (int warp = 0; warp < kWarps; warp++) total += parts[(warp * kGates + gate) * kRows + row];
        return total;
    }
};

// projected and y are `time` steps after each other; states is [2][hidden][stride] with a stride of whole 32 rows, and
// ranges [2][blocks].
template <int kUnits, bool kRounded>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_grid(const float *projected, const float *r, const float *peepholes, const int *lengths, float *h, float *c,
              float *y, float *states, float2 *ranges, unsigned *count, int time, int batch, int hidden, int64 y_step,
              int reverse) {
    extern __shared__ __align__(16) float shared[];
    typedef Layer<kUnits, kRounded> Own;
    const Own layer{shared, shared + hidden * Own::kGates, hidden};
    const int blocks = gridDim.x, first = blockIdx.x * kUnits, stride = (batch + kRows - 1) / kRows * kRows;
    const int local = threadIdx.x / kRows, unit = first + local, lane = threadIdx.x % kRows;
    const bool works = local < kUnits && unit < hidden;
    for (int i = threadIdx.x; i < hidden * Own::kGates; i += kThreads) {
        const int k = i % hidden, row = i / hidden, own = first + row / 4;
        shared[k * Own::kGates + row] = own < hidden ? r[int64(row % 4 * hidden + own) * hidden + k] : 0;
    }
    float low = 0, high = 0;  // of this thread's part of the state
    const auto write = [&](int which, int row, float state) {
        states[(int64(which) * hidden + unit) * stride + row] = state;
        if (kRounded && row < batch) low = Least()(low, state), high = Greatest()(high, state);
    };
    const auto hand_over = [&](int which, int step) {
        if constexpr (kRounded) {
            low = across<kThreads>(low, Least()), high = across<kThreads>(high, Greatest());
            if (threadIdx.x == 0) ranges[which * blocks + blockIdx.x] = make_float2(low, high);
            low = high = 0;
        }
        meet(count, (step + 1) * blocks);
    };
    const Peepholes holes(peepholes, hidden, works ? unit : hidden);
    for (int row = lane; works && row < stride; row += kRows) write(0, row, row < batch ? h[row * hidden + unit] : 0);
    hand_over(0, 0);
    for (int step = 0; step < time; step++) {
        const int t = reverse ? time - 1 - step : step, from = step % 2;
        const Rounding rounding(kRounded ? dynamic_of(ranges + from * blocks, blocks) : Dynamic(0, 255));
        for (int begin = 0; begin < stride; begin += kRows) {
            const int row = begin + lane;
            const int place = row * hidden + unit;
            const bool there = works && row < batch, alive = there && (!lengths || t < lengths[row]);
            float gates[4] = {}, state = there ? h[place] : 0, cell = there ? c[place] : 0;
#pragma unroll
            for (int gate = 0; gate < 4; gate++)
                if (there) gates[gate] = projected[((int64(t) * batch + row) * 4 + gate) * hidden + unit];
            layer.multiply(states + int64(from) * hidden * stride + begin, stride, rounding);
            __syncthreads();
            if (alive) {
#pragma unroll
                for (int gate = 0; gate < 4; gate++) gates[gate] += layer.sum(4 * local + gate, lane);
                h[place] = state = lstm_state(gates, holes, cell);
                c[place] = cell;
            }
            if (there) {
                y[t * y_step + place] = alive ? state : 0;
                write(1 - from, row, state);
            }
            __syncthreads();  // the parts have been read
        }
        if (step + 1 < time) hand_over(1 - from, step + 1);
    }
}

// instances: lstm_grid<4, false>; lstm_grid<8, false>; lstm_grid<4, true>; lstm_grid<8, true>

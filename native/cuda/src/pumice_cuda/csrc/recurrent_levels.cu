// architectures: sm_90a sm_100a
// An LSTM with R in 8 bits over all its steps in one launch (recurrent.cuh). At every step the state is quantized as
// DynamicQuantizeLinear does, with one scale for the whole batch, so one cluster has all of it: 64 rows at most.
//
// A warp has the four gates of eight units for 16 kTiles rows. Their weights stay in its registers as mma.sync reads them,
// and so do its cells, since each thread's sums are all the gates of its cells. The levels of the state lie in the shared
// memory of every block, the eight of a warp and a row side by side and the rows after each other: what a warp writes to
// another block is one piece. Twice a step the cluster waits: for the range of the state, and for its levels.
#include "clusters.cuh"
#include "levels.cuh"
#include "ranges.cuh"
#include "recurrent.cuh"

constexpr int kBlocks = 8, kUnits = 8;  // of the cluster; of a warp, two of a thread

__device__ inline void multiply_add(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// What the sums of a gate of one unit become real with.
struct Terms {
    int total;  // of the weights, which a level of zero is worth
    float scale;
};

// The weights of a warp, rows of r padded to 32 kSteps. What mma.sync takes for k = 4 t + 0..3 and for 16 more, of a lane
// with t, are here the eight of t: its sums go over all k, whatever their order.
template <int kSteps>
struct Weights {
    unsigned words[4][kSteps][2];

    __device__ Weights(const signed char *r, const float *scale, int first, int hidden, Terms (*terms)[kUnits]) {
        const int lane = threadIdx.x % 32, column = first + lane / 4;
#pragma unroll
        for (int gate = 0; gate < 4; gate++) {
            const uint2 *row = reinterpret_cast<const uint2 *>(r) + int64(gate * hidden + column) * 4 * kSteps;
            int total = 0;
#pragma unroll
            for (int step = 0; step < kSteps; step++) {
                const uint2 eight = column < hidden ? row[4 * step + lane % 4] : make_uint2(0, 0);
                words[gate][step][0] = eight.x, words[gate][step][1] = eight.y;
                total = __dp4a(int(eight.x), 0x01010101, __dp4a(int(eight.y), 0x01010101, total));
            }
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            if (lane % 4 == 0) terms[gate][lane / 4] = {total, column < hidden ? scale[gate * hidden + column] : 0};
        }
        __syncwarp();
    }
};

// Eight levels of a row, two of each of four lanes, in all four.
__device__ inline uint2 eight_of(unsigned two) {
    const unsigned next = __shfl_xor_sync(~0u, two, 1), four = threadIdx.x & 1 ? next | two << 16 : two | next << 16;
    const unsigned others = __shfl_xor_sync(~0u, four, 2);
    return threadIdx.x & 2 ? make_uint2(others, four) : make_uint2(four, others);
}

// Hidden units are 32 kSteps at most and rows 16 kParts kTiles. projected and y are `time` steps after each other.
template <int kSteps, int kParts, int kTiles>
__global__ void __launch_bounds__(32 * ((kSteps + 1) / 2) * kParts, 1)
    lstm_levels(const float *projected, const signed char *r, const float *scale, const float *peepholes,
                const int *lengths, float *h, float *c, float *y, int time, int batch, int hidden, int64 y_step,
                int reverse) {
    constexpr int kGroups = (kSteps + 1) / 2, kWarps = kGroups * kParts;
    constexpr int kPitch = 16 * kParts * kTiles + 4;  // four of the lanes that read together have banks of their own
    __shared__ uint2 levels[4 * kSteps][kPitch];
    __shared__ float2 ranges[kBlocks];
    __shared__ Terms terms[kWarps][4][kUnits];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, block = blockIdx.x;
    const int first = (block * kGroups + warp % kGroups) * kUnits, unit = first + lane % 4 * 2;
    const int top = warp / kGroups * kTiles * 16;
    const Weights<kSteps> weights(r, scale, first, hidden, terms[warp]);
    const Peepholes holes[2] = {{peepholes, hidden, unit}, {peepholes, hidden, unit + 1}};

    // A thread's cells are those of its sums: 0 and 1 in a row, 2 and 3 eight rows below.
    const auto row_of = [&](int tile, int i) { return top + 16 * tile + i / 2 * 8 + lane / 4; };
    const auto is_there = [&](int tile, int i) { return row_of(tile, i) < batch && unit + i % 2 < hidden; };
    const auto place_of = [&](int tile, int i) { return row_of(tile, i) * hidden + unit + i % 2; };
    float state[kTiles][4], cell[kTiles][4], entering[kTiles][4][4];
    int length[kTiles][2];
#pragma unroll
    for (int n = 0; n < 4 * kTiles; n++) {
        const int tile = n / 4, i = n % 4;
        const bool there = is_there(tile, i);
        state[tile][i] = there ? h[place_of(tile, i)] : 0;
        cell[tile][i] = there ? c[place_of(tile, i)] : 0;
        length[tile][i / 2] = row_of(tile, i) >= batch ? 0 : lengths ? lengths[row_of(tile, i)] : time;
    }
    const auto enter = [&](int t) {
#pragma unroll
        for (int n = 0; n < 16 * kTiles; n++) {
            const int tile = n / 16, i = n / 4 % 4, gate = n % 4;
            const int64 from = ((int64(t) * batch + row_of(tile, i)) * 4 + gate) * hidden + unit + i % 2;
            entering[tile][i][gate] = is_there(tile, i) ? projected[from] : 0;
        }
    };
    const auto quantize = [&]() {
        Range own, all;
#pragma unroll
        for (int n = 0; n < 4 * kTiles; n++) own.see(state[n / 4][n % 4]);
        own = own.whole<32 * kWarps>();
        if (threadIdx.x < kBlocks) write_to_block(ranges + block, threadIdx.x, make_float2(own.least, own.greatest));
        cluster_sync();
#pragma unroll
        for (int n = 0; n < kBlocks; n++) all.see(ranges[n].x, ranges[n].y);
        return Dynamic(all.least, all.greatest);
    };
    const auto hand_over = [&](const Dynamic &found) {
        const Divisor divisor(found.scale);
        const auto level = [&](float value) {
            return unsigned(fminf(fmaxf(rintf(divisor.quotient(value)) + found.zero, 0), 255));
        };
#pragma unroll
        for (int n = 0; n < 2 * kTiles; n++) {
            const float *two = state[n / 2] + n % 2 * 2;
            const uint2 eight = eight_of(level(two[0]) | level(two[1]) << 8);
            const int row = row_of(n / 2, n % 2 * 2);
            if (first >= hidden || row >= batch) continue;
            for (int other = lane % 4; other < kBlocks; other += 4)
                write_to_block(levels[first / kUnits] + row, other, eight);
        }
    };

    cluster_sync();  // all blocks are there to be written to
    for (int step = 0; step < time; step++) {
        const int t = reverse ? time - 1 - step : step;
        const Dynamic found = quantize();
        hand_over(found);
        cluster_arrive();
        enter(t);
        cluster_wait();
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) {
            int sums[4][4] = {};
#pragma unroll
            for (int k = 0; k < kSteps; k++) {
                const uint2 *rows = levels[4 * k + lane % 4] + row_of(tile, 0), upper = rows[0], lower = rows[8];
                const unsigned words[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
                for (int gate = 0; gate < 4; gate++) multiply_add(sums[gate], words, weights.words[gate][k]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float *gates = entering[tile][i];
#pragma unroll
                for (int gate = 0; gate < 4; gate++) {
                    const Terms own = terms[warp][gate][lane % 4 * 2 + i % 2];
                    gates[gate] += float(sums[gate][i] - found.zero * own.total) * (found.scale * own.scale);
                }
                const bool alive = t < length[tile][i / 2];
                if (alive) state[tile][i] = lstm_state<true>(gates, holes[i % 2], cell[tile][i]);
                if (is_there(tile, i)) y[t * y_step + place_of(tile, i)] = alive ? state[tile][i] : 0;
            }
        }
    }
#pragma unroll
    for (int n = 0; n < 4 * kTiles; n++) {
        const int tile = n / 4, i = n % 4;
        if (!is_there(tile, i)) continue;
        h[place_of(tile, i)] = state[tile][i];
        c[place_of(tile, i)] = cell[tile][i];
    }
}

// instances: lstm_levels<1, 1, 1>; lstm_levels<4, 2, 1>; lstm_levels<10, 1, 1>; lstm_levels<10, 2, 2>

// Four-bit weights (lowbit.cuh) times few rows of A: every weight is read once.
#include "lowbit.cuh"

// Eight values of A as they are in memory; zeros beyond its end.
template <typename T>
struct Eight {
    static constexpr int kLoads = sizeof(T) / 2;
    uint4 at[kLoads];

    __device__ Eight(const T *a, bool there) : at{} {
        if (there)
#pragma unroll
            for (int i = 0; i < kLoads; i++) at[i] = reinterpret_cast<const uint4 *>(a)[i];
    }

    template <int kSplit>
    __device__ Activations<kSplit> split() const {
        if constexpr (kSplit == 1) return {{{at[0].x, at[0].y, at[0].z, at[0].w}}};
        float values[8];
        load<8>(reinterpret_cast<const T *>(at), values);
        return ::split<kSplit>(values);
    }
};

// A thread's part of A in a step: the first eight rows are asked for at once, those that follow when they are needed.
template <typename T, int kSplit>
struct FromMemory {
    const T *a;  // of this thread, in the first eight rows
    int rows, depth, left;
    Eight<T> first[4];

    // `left`: of the depth, from this thread's first k on.
    __device__ FromMemory(const T *a, int rows, int depth, int left)
        : a(a), rows(rows), depth(depth), left(left), first{eight(0, 0), eight(0, 1), eight(0, 2), eight(0, 3)} {}

    __device__ Eight<T> eight(int column, int j) const {
        const bool there = column * 8 + threadIdx.x % 32 / 4 < rows && 32 * j < left;
        return Eight<T>(a + int64(column) * 8 * depth + 32 * j, there);
    }

    __device__ Activations<kSplit> operator()(int column, int j) const {
        return (column ? eight(column, j) : first[j]).template split<kSplit>();
    }
};

// A block has kTiles tiles, and each of its warps every kWarps-th step of all of them; then it adds up. depth must be a
// multiple of 8. A thread's codes come kAhead steps early into shared memory, where nobody else reads them. They are asked
// for while the kernel before this one is still running, which may have written A.
constexpr int kWarps = 8, kAhead = 4;

template <int kTiles>
struct Coming {
    const uint4 *from;  // this thread's codes of its warp's first step
    uint4 *to;
    int tile_stride, tiles;

    // `turn`: how many steps of the warp have gone before.
    __device__ void fetch(int turn, bool there) const {
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (there && n < tiles)
                    copy_16_bytes(at(turn, n, half), from + turn * kWarps * 64 + int64(n) * tile_stride + half * 32, true);
        commit_copies();
    }

    __device__ uint4 *at(int turn, int n, int half) const {
        return to + ((turn % kAhead * kTiles + n) * 2 + half) * (kWarps * 32);
    }
};

// Asks for the scales, offsets and tables of a step, so that steps do not wait for them one after the other.
template <typename Decoder, int kSpan, bool kOffset>
__device__ void prefetch_terms(const Weights &weights, const Decoder &decoder, int output, int step) {
    const int first = weights.group<kSpan>(step);
#pragma unroll
    for (int i = 0; i < (kSpan < 4 ? 4 / kSpan : 1); i++) {
        prefetch_line(weights.scale + int64(first + i) * weights.outputs + output);
        if constexpr (kOffset) prefetch_line(weights.offset + int64(first + i) * weights.outputs + output);
        decoder.prefetch(weights.table(output, first + i));
    }
}

template <typename T, typename Decoder, int kSplit, int kSpan, int kColumns, int kTiles, bool kOffset>
__global__ void __launch_bounds__(kWarps * 32, 2)
    few_rows(const T *a, const uint4 *codes, const uint4 *tables, const float *scale, const float *offset,
             const T *bias, T *y, int rows, int outputs, int padded, int depth, int steps, int group_steps,
             int table_output, int table_group) {
    extern __shared__ uint4 shared[];
    const Weights weights{codes, tables, scale, offset, table_output, table_group, padded, steps, group_steps};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x * kTiles;
    const int output = tile * kTile + lane / 4, tiles = padded / kTile - tile;
    const Coming<kTiles> coming{codes + (int64(tile) * steps + warp) * 64 + lane, shared + threadIdx.x, steps * 64, tiles};
#pragma unroll
    for (int turn = 0; turn < kAhead; turn++) coming.fetch(turn, warp + turn * kWarps < steps);
    const Decoder decoder(tables, reinterpret_cast<Word *>(shared + kAhead * kTiles * 2 * kWarps * 32));
    for (int step = warp; step < steps; step += group_steps >= steps ? steps : kWarps)  // once where all share a group
#pragma unroll
        for (int n = 0; n < kTiles; n++)
            if (n < tiles) prefetch_terms<Decoder, kSpan, kOffset>(weights, decoder, output + n * kTile, step);
    wait_for_kernel_before();
    let_next_kernel_start();
    const T *own = a + int64(lane / 4) * depth + 8 * (lane % 4);
    float sums[kTiles][kColumns][4] = {};
    for (int step = warp, turn = 0; step < steps; step += kWarps, turn++) {
        const int k = step * kStep, group = weights.group<kSpan>(step);
        const FromMemory<T, kSplit> activations(own + k, rows, depth, depth - k - 8 * (lane % 4));
        wait_for_copies<kAhead - 1>();
        Word current[kTiles][2][4];
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *reinterpret_cast<uint4 *>(current[n][half]) = *coming.at(turn, n, half);
        coming.fetch(turn + kAhead, step + kAhead * kWarps < steps);
#pragma unroll
        for (int n = 0; n < kTiles; n++)
            if (n < tiles)
                add_words<Decoder, kSplit, kSpan, 4, kColumns, kOffset>(weights, decoder, current[n], output + n * kTile,
                                                                        group, 0, activations, sums[n]);
    }
    wait_for_copies<0>();
    // [warp][row of A][output]
    constexpr int kOutputs = kTiles * kTile;
    float *parts = reinterpret_cast<float *>(shared);
    __syncthreads();  // codes and tables have been read
#pragma unroll
    for (int n = 0; n < kTiles; n++)
#pragma unroll
        for (int column = 0; column < kColumns; column++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = column * 8 + lane % 4 * 2 + i % 2, place = n * kTile + lane / 4 + i / 2 * 8;
                if (row < rows) parts[(warp * kColumns * 8 + row) * kOutputs + place] = sums[n][column][i];
            }
    __syncthreads();
    for (int i = threadIdx.x; i < kColumns * 8 * kOutputs; i += kWarps * 32) {
        const int row = i / kOutputs, place = tile * kTile + i % kOutputs;
        if (row >= rows || place >= outputs) continue;
        float sum = bias ? widen(bias[place]) : 0;
#pragma unroll
        for (int w = 0; w < kWarps; w++) sum += parts[w * kColumns * 8 * kOutputs + i];
        narrow(sum, y[int64(row) * outputs + place]);
    }
}

// instances: few_rows<bfloat16, Levels, 1, 4, 1, 2, true>; few_rows<float16, Levels, 2, 1, 1, 1, false>
// instances: few_rows<bfloat16, Pairs<1>, 1, 4, 1, 2, false>; few_rows<float, Pairs<2>, 2, 4, 1, 2, false>
// instances: few_rows<bfloat16, Tables<1>, 1, 4, 1, 2, false>; few_rows<bfloat16, Tables<1>, 1, 4, 2, 1, false>

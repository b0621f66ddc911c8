// since: sm_80
// Four-bit weights (lowbit.cuh) times up to 32 rows of A: every weight is read once. A block has kTiles tiles, and each of its
// warps every kWarps-th step of all of them; then it adds up. depth must be a multiple of 8. Codes of kAhead steps are asked
// for while the kernel before this one is still running, which may have written A. Nobody waits for anybody else: a thread's
// codes and its part of A come to itself.
#include "lowbit.cuh"

constexpr int kWarps = 8, kAhead = 4, kThreads = kWarps * 32;

template <int kTiles>
struct Codes {
    const uint4 *from;  // this thread's, of its warp's first step
    int tile_stride, tiles;
    uint4 at[kAhead][kTiles][2];

    // Of the warp's step after `turn` others; `slot` is turn % kAhead, known when this is compiled.
    __device__ void ask(int slot, int turn, bool there) {
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (there && n < tiles)
                    at[slot][n][half] = streamed(from + turn * kWarps * 64 + int64(n) * tile_stride + half * 32);
    }
};

// A thread's part of A in some steps of its warp, in shared memory: [slot][column][j][access][thread]. Rows beyond the
// last stay what they were, and give columns that nobody reads.
template <typename T, int kSplit, int kColumns>
struct FromShared {
    static constexpr int kLoads = sizeof(T) / 2, kAll = kColumns * kLoads;
    static constexpr int kSlots = kAll == 8 ? 1 : 2;  // what fits
    static constexpr int kBytes = kSlots * kColumns * 4 * kLoads * kThreads * 16;
    const T *a;  // of this thread, in the first eight rows and its warp's first step
    uint4 *to;
    int rows, depth, left;  // left: of the depth, from this thread's first k on

    __device__ uint4 *place(int slot, int column, int j) const {
        return to + ((slot * kColumns + column) * 4 + j) * kLoads * kThreads;
    }

    __device__ void ask(int slot, int turn) const {
        const int k = turn * kWarps * kStep;
#pragma unroll
        for (int column = 0; column < kColumns; column++) {
            const bool row = column * 8 + threadIdx.x % 32 / 4 < rows;
            const T *from = a + int64(column) * 8 * depth + k;
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int i = 0; i < kLoads; i++) {  // beyond the depth: zeros
                    const bool there = k + 32 * j < left;
                    if (row)
                        copy_16_bytes(place(slot, column, j) + i * kThreads,
                                      there ? from + 32 * j + i * (8 / kLoads) : a, there);
                }
        }
        commit_copies();
    }

    // What `add_words` takes from: a slot that has arrived.
    struct Arrived {
        const FromShared &from;
        int slot;

        __device__ Activations<kSplit> operator()(int column, int j) const {
            uint4 raw[kLoads];
#pragma unroll
            for (int i = 0; i < kLoads; i++) raw[i] = from.place(slot, column, j)[i * kThreads];
            if constexpr (kSplit == 1) return {{{raw[0].x, raw[0].y, raw[0].z, raw[0].w}}};
            float values[8];
            load<8>(reinterpret_cast<const T *>(raw), values);
            return split<kSplit>(values);
        }
    };
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
__global__ void __launch_bounds__(kThreads, 1)
    some_rows(const T *a, const uint4 *codes, const uint4 *tables, const float *scale, const float *offset,
             const T *bias, T *y, int rows, int outputs, int padded, int depth, int steps, int group_steps,
             int table_output, int table_group) {
    extern __shared__ uint4 shared[];
    const Weights weights{codes, tables, scale, offset, table_output, table_group, padded, steps, group_steps};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x * kTiles;
    const int output = tile * kTile + lane / 4, tiles = padded / kTile - tile;
    const typename Decoder::Asked asked = Decoder::ask(tables);
    Codes<kTiles> coming{codes + (int64(tile) * steps + warp) * 64 + lane, steps * 64, tiles};
#pragma unroll
    for (int turn = 0; turn < kAhead; turn++) coming.ask(turn, turn, warp + turn * kWarps < steps);
    const Decoder decoder(tables, asked, reinterpret_cast<Word *>(shared));
    for (int step = warp; step < steps; step += group_steps >= steps ? steps : kWarps)  // once where all share a group
#pragma unroll
        for (int n = 0; n < kTiles; n++)
            if (n < tiles) prefetch_terms<Decoder, kSpan, kOffset>(weights, decoder, output + n * kTile, step);
    wait_for_kernel_before();
    let_next_kernel_start();
    using Rows = FromShared<T, kSplit, kColumns>;
    const int first_k = warp * kStep + 8 * (lane % 4);
    const Rows activations{a + int64(lane / 4) * depth + first_k, shared + Decoder::kShared / 16 + threadIdx.x, rows, depth,
                           depth - first_k};
#pragma unroll
    for (int turn = 0; turn < Rows::kSlots; turn++) activations.ask(turn, turn);
    float sums[kTiles][kColumns][4] = {};
    for (int start = 0; warp + start * kWarps < steps; start += kAhead)
#pragma unroll
        for (int slot = 0; slot < kAhead; slot++) {
            const int turn = start + slot, step = warp + turn * kWarps;
            if (step >= steps) break;
            wait_for_copies<Rows::kSlots - 1>();
            const typename Rows::Arrived arrived{activations, slot % Rows::kSlots};
#pragma unroll
            for (int n = 0; n < kTiles; n++) {
                if (n >= tiles) break;
                const uint4 *mine = coming.at[slot][n];
                const Word words[2][4] = {{mine[0].x, mine[0].y, mine[0].z, mine[0].w},
                                          {mine[1].x, mine[1].y, mine[1].z, mine[1].w}};
                add_words<Decoder, kSplit, kSpan, 4, kColumns, kOffset>(
                    weights, decoder, words, output + n * kTile, weights.group<kSpan>(step), 0, arrived, sums[n]);
            }
            coming.ask(slot, turn + kAhead, step + kAhead * kWarps < steps);
            activations.ask(slot % Rows::kSlots, turn + Rows::kSlots);
        }
    wait_for_copies<0>();
    // [warp][row of A][output]
    constexpr int kOutputs = kTiles * kTile;
    float *parts = reinterpret_cast<float *>(shared);
    __syncthreads();  // tables and A have been read
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
    for (int i = threadIdx.x; i < kColumns * 8 * kOutputs; i += kThreads) {
        const int row = i / kOutputs, place = tile * kTile + i % kOutputs;
        if (row >= rows || place >= outputs) continue;
        float sum = bias ? widen(bias[place]) : 0;
#pragma unroll
        for (int w = 0; w < kWarps; w++) sum += parts[w * kColumns * 8 * kOutputs + i];
        narrow(sum, y[int64(row) * outputs + place]);
    }
}

// instances: some_rows<bfloat16, Pairs<1>, 1, 4, 4, 2, false>; some_rows<bfloat16, Levels, 1, 4, 4, 2, true>
// instances: some_rows<bfloat16, Tables<1>, 1, 4, 2, 2, false>; some_rows<float16, Levels, 2, 1, 2, 1, false>
// instances: some_rows<float, Pairs<2>, 2, 4, 4, 1, false>; some_rows<float, Tables<2>, 2, 2, 4, 1, true>

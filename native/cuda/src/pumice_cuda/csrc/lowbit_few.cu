// since: sm_80
// Four-bit weights (lowbit.cuh) times up to eight rows of A: latency is what there is to save, so everything that can be
// asked for is asked for at once. A block has kTiles tiles, and each of its warps every kParts-th step of one of them. The
// codes of kAhead steps of a warp are on their way into registers from the first instruction on, while the kernel before
// this one, which may have written A, is still running; A follows when it has ended: a single row into shared memory, for
// all warps, and several rows to the registers that want them.
#include "lowbit.cuh"

constexpr int kWarps = 8, kThreads = kWarps * 32, kPiece = 32;

// What the weights of a group have in common, for the two outputs of a lane.
template <bool kOffset>
struct Factors {
    float scale[2], offset[2];

    __device__ void ask(const Weights &weights, int output, int group) {
        const int64 at = int64(group) * weights.outputs + output;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            scale[half] = __ldg(weights.scale + at + 8 * half);
            offset[half] = kOffset ? __ldg(weights.offset + at + 8 * half) : 0;
        }
    }
};

// Products of eight rows with a tile's 16 outputs, in two sums that do not wait for each other, and sums over A alone.
template <bool kOffset>
struct Sums {
    float products[2][4] = {}, totals[4] = {};

    __device__ float of(int i, const Factors<kOffset> &factors) const {
        const float product = products[0][i] + products[1][i];
        return factors.scale[i / 2] * (kOffset ? fmaf(-factors.offset[i / 2], totals[i], product) : product);
    }

    // Of 32 k.
    template <typename Decoder, int kSplit>
    __device__ void add(const Decoder &decoder, const typename Decoder::Row (&rows)[2], const Word (&words)[2],
                        const Activations<kSplit> &a) {
        Word decoded[Decoder::kParts][2][4];
        decode_both(decoder, rows, words, decoded);
        add_word(decoded, a, products[0], products[1]);
        if constexpr (kOffset) add_up(a, totals);
    }
};

// --- where A is, a piece of 32 steps at a time: `step` counts in it, and `slot` the warp's steps of it --------------------

// In shared memory, for all warps; rows lie 64 bytes further apart than they are long, so that eight lanes that read 16
// bytes each want different banks.
template <typename T>
struct InShared {
    static constexpr int kDepth = kPiece * kStep, kWide = 16 / sizeof(T), kStride = kDepth + 64 / sizeof(T);
    const T *a;
    T *at;
    int rows, depth;

    // From a step on, up to another; zeros beyond the depth.
    __device__ void fetch(int first_step, int steps) const {
        const int k = first_step * kStep, end = steps * kStep;
        if (k) __syncthreads();  // the last piece has been read
        for (int row = 0; row < rows; row++)
#pragma unroll
            for (int i = threadIdx.x * kWide; i < kDepth; i += kThreads * kWide) {
                const bool there = k + i < depth;
                if (k + i < end) copy_16_bytes(at + row * kStride + i, there ? a + int64(row) * depth + k + i : a, there);
            }
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
    }

    __device__ void used(int, int) const {}

    // Eight values of word j for this lane; beyond the rows they make columns that nobody reads.
    template <int kSplit>
    __device__ Activations<kSplit> of(int, int step, int j) const {
        const T *from = at + min(int(threadIdx.x % 32 / 4), rows - 1) * kStride + step * kStep + j * 32 + threadIdx.x % 4 * 8;
        if constexpr (kSplit == 1) {
            const uint4 v = *reinterpret_cast<const uint4 *>(from);
            return {{{v.x, v.y, v.z, v.w}}};
        } else {
            float values[8];
#pragma unroll
            for (int i = 0; i < 8; i += kWide) load<kWide>(from + i, values + i);
            return split<kSplit>(values);
        }
    }
};

// In the registers of the threads that multiply by it: types of two bytes.
template <typename T, int kParts, int kSlots>
struct InRegisters {
    const T *a;
    int rows, depth, part;
    uint4 at[kSlots][4];

    __device__ void fetch(int first_step, int) {
#pragma unroll
        for (int slot = 0; slot < kSlots; slot++) ask(first_step, slot);
    }

    // The warp's step of that slot.
    __device__ void ask(int first_step, int slot) {
        const int k = (first_step + part + slot * kParts) * kStep + threadIdx.x % 4 * 8, row = threadIdx.x % 32 / 4;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            at[slot % kSlots][j] = make_uint4(0, 0, 0, 0);
            if (row < rows && k + j * 32 < depth)
                at[slot % kSlots][j] = *reinterpret_cast<const uint4 *>(a + int64(row) * depth + k + j * 32);
        }
    }

    __device__ void used(int first_step, int slot) {
        if (slot + kSlots < kPiece / kParts) ask(first_step, slot + kSlots);
    }

    template <int kSplit>
    __device__ Activations<kSplit> of(int slot, int, int j) const {
        const uint4 v = at[slot % kSlots][j];
        if constexpr (kSplit == 1) return {{{v.x, v.y, v.z, v.w}}};
        float values[8];
        load<8>(reinterpret_cast<const T *>(&v), values);
        return split<kSplit>(values);
    }
};

// --- the product -------------------------------------------------------------------------------------------------------

// depth must be a multiple of 8. kSpan: words of a step that share factors; 0: all of K does.
template <typename T, typename Decoder, int kSplit, int kSpan, int kTiles, bool kOffset, bool kShared>
__global__ void __launch_bounds__(kThreads, kSplit * Decoder::kParts == 1 ? 2 : 1)
    few_rows(const T *a, const uint4 *codes, const uint4 *tables, const float *scale, const float *offset,
             const T *bias, T *y, int rows, int outputs, int padded, int depth, int steps, int group_steps,
             int table_output, int table_group) {
    extern __shared__ uint4 shared[];
    constexpr int kParts = kWarps / kTiles, kAhead = kPiece / kParts;
    const Weights weights{codes, tables, scale, offset, table_output, table_group, padded, steps, group_steps};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp / kTiles;
    const int tile = blockIdx.x * kTiles + warp % kTiles, output = min(tile * kTile, padded - kTile) + lane / 4;
    const uint4 *from = codes + int64(output / kTile) * steps * 64 + lane;

    const typename Decoder::Asked asked = Decoder::ask(tables);
    uint4 mine[kAhead][2];
    Factors<kOffset> factors[kSpan == 4 ? kAhead : 1];
    const auto ask = [&](int slot, int step) {
        if (step >= steps) return;
        mine[slot][0] = streamed(from + step * 64), mine[slot][1] = streamed(from + step * 64 + 32);
        if constexpr (kSpan == 4) factors[slot].ask(weights, output, weights.group<4>(step));
    };
#pragma unroll
    for (int slot = 0; slot < kAhead; slot++) ask(slot, part + slot * kParts);
    if constexpr (kSpan == 0) factors[0].ask(weights, output, 0);
    using Row = typename Decoder::Row;
    const Decoder decoder(tables, asked, reinterpret_cast<Word *>(shared));
    const Row whole[2] = {{decoder, weights.table(output, 0)}, {decoder, weights.table(output + 8, 0)}};
    // Blocks of two tiles leave room for one of the next kernel on every multiprocessor, and that spreads evenly only if all
    // of this one have their places.
    if constexpr (kTiles == 1) let_next_kernel_start();
    wait_for_kernel_before();
    if constexpr (kTiles > 1) let_next_kernel_start();

    auto piece = [&] {
        if constexpr (kShared)
            return InShared<T>{a, reinterpret_cast<T *>(shared + Decoder::kShared / 16), rows, depth};
        else
            return InRegisters<T, kParts, Decoder::kShared ? kAhead : 2>{a, rows, depth, part};
    }();
    Sums<kOffset> all;
    float sums[4] = {};
    for (int start = 0; start < steps; start += kPiece) {
        piece.fetch(start, steps);
#pragma unroll
        for (int slot = 0; slot < kAhead; slot++) {
            const int in_piece = part + slot * kParts, step = start + in_piece;
            if (step >= steps) break;
            const Word words[4][2] = {{mine[slot][0].x, mine[slot][1].x}, {mine[slot][0].y, mine[slot][1].y},
                                      {mine[slot][0].z, mine[slot][1].z}, {mine[slot][0].w, mine[slot][1].w}};
            if constexpr (kSpan == 0) {
#pragma unroll
                for (int j = 0; j < 4; j++)
                    all.add(decoder, whole, words[j], piece.template of<kSplit>(slot, in_piece, j));
            } else {
#pragma unroll
                for (int first = 0; first < 4; first += kSpan) {
                    const int group = weights.group<kSpan>(step) + first / kSpan;
                    const Row own[2] = {{decoder, weights.table(output, group)}, {decoder, weights.table(output + 8, group)}};
                    if constexpr (kSpan < 4) factors[0].ask(weights, output, group);
                    Sums<kOffset> some;
#pragma unroll
                    for (int j = first; j < first + kSpan; j++)
                        some.add(decoder, own, words[j], piece.template of<kSplit>(slot, in_piece, j));
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[i] += some.of(i, factors[kSpan == 4 ? slot : 0]);
                }
            }
            ask(slot, step + kPiece);
            piece.used(start, slot);
        }
    }
    // [part][row of A][output]
    constexpr int kOutputs = kTiles * kTile;
    float *parts = reinterpret_cast<float *>(shared);
    __syncthreads();  // tables and A have been read
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int place = warp % kTiles * kTile + lane / 4 + i / 2 * 8;
        parts[(part * 8 + lane % 4 * 2 + i % 2) * kOutputs + place] = kSpan == 0 ? all.of(i, factors[0]) : sums[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * kOutputs; i += kThreads) {
        const int place = blockIdx.x * kOutputs + i % kOutputs;
        if (place >= outputs) continue;
        float sum = bias ? widen(bias[place]) : 0;
#pragma unroll
        for (int p = 0; p < kParts; p++) sum += parts[p * 8 * kOutputs + i];
        narrow(sum, y[int64(i / kOutputs) * outputs + place]);
    }
}

// instances: few_rows<bfloat16, Pairs<1>, 1, 0, 2, false, true>; few_rows<bfloat16, Pairs<1>, 1, 0, 1, false, false>
// instances: few_rows<bfloat16, Tables<1>, 1, 0, 1, false, true>; few_rows<bfloat16, Tables<1>, 1, 0, 1, false, false>
// instances: few_rows<bfloat16, Levels, 1, 4, 1, true, true>; few_rows<bfloat16, Levels, 1, 4, 1, true, false>
// instances: few_rows<float16, Levels, 2, 1, 1, true, false>; few_rows<float16, Tables<2>, 2, 4, 1, true, false>
// instances: few_rows<float, Pairs<2>, 2, 0, 2, false, true>; few_rows<float, Tables<2>, 2, 2, 1, true, true>

// Four-bit weights (lowbit.cuh) times up to eight rows of A in bfloat16, on Hopper and later: latency is what there is to
// save. All codes of a block come into its registers while the kernel before this one, which may have written A, is still
// running; A follows, from the second cache. The one or two blocks of a cluster have the same outputs and all of K among
// them: every warp hands each of its sums to the block that writes the output, once.
//
// Two blocks fit on a multiprocessor: those of a kernel and of the next one, whose codes are coming meanwhile. So that no
// multiprocessor gets two of one kernel there is a block for each, some without work if need be, and none ends while the
// kernel before is running. Spilled registers cost up to a third of the time.
// architectures: sm_90a sm_100a
#include "lowbit_hopper.cuh"

constexpr int kWarps = 8, kThreads = kWarps * 32;

enum Offset { kNone, kInSums, kInCodes };  // taken off sums over A, or off codes, being whole numbers

// To the same place of another block, whose barrier counts the bytes.
__device__ __forceinline__ void send(float4 *to, u64 *barrier, u32 rank, const float (&values)[4]) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            in_block(shared_address(to), rank)),
        "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]), "r"(in_block(shared_address(barrier), rank))
        : "memory");
}

// --- a table for each output -----------------------------------------------------------------------------------------

// In shared memory, once for every lane that wants it: [tile][code][half][lane]. Codes are in order.
template <int kTiles>
struct Lanes {
    static constexpr int kParts = 1, kShared = kTiles * 4096, kItems = kTiles * 64, kEach = (kItems + kThreads - 1) / kThreads;
    u32 own;  // where this lane's entries begin

    struct Asked {
        uint4 bytes[kEach][2];
    };
    struct Row {
        u32 at;
        __device__ Row(const Lanes &from, int half_tile) : at(from.own + half_tile / 2 * 4096 + half_tile % 2 * 128) {}
    };

    // From the first output of the block on.
    __device__ static Asked ask(const uint4 *tables) {
        Asked asked;
#pragma unroll
        for (int i = 0; i < kEach; i++) {
            const int item = threadIdx.x + i * kThreads, output = item / 64 * kTile + item / 4 % kTile;
            if (item < kItems)
                asked.bytes[i][0] = __ldg(tables + output * 2), asked.bytes[i][1] = __ldg(tables + output * 2 + 1);
        }
        return asked;
    }

    __device__ Lanes(const uint4 *, const Asked &asked, Word *shared) : own(shared_address(shared) + threadIdx.x % 32 * 4) {
#pragma unroll
        for (int i = 0; i < kEach; i++) {
            const int item = threadIdx.x + i * kThreads;
            const Word *low = &asked.bytes[i][0].x, *high = &asked.bytes[i][1].x;
            if (item < kItems)
#pragma unroll
                for (int code = 0; code < 16; code++)
                    shared[item / 64 * 1024 + code * 64 + item % 64] =
                        __byte_perm(low[code / 4], high[code / 4], code % 4 * 0x11 + 0x40) & 0xffff;
        }
        __syncthreads();
    }

    template <int kPart>
    __device__ void decode(Word word, const Row &row, Word *pairs) const {
        const Word codes[2] = {word & 0x0f0f0f0f, word >> 4 & 0x0f0f0f0f};
#pragma unroll
        for (int p = 0; p < 4; p++) {
            Word entries[2];
#pragma unroll
            for (int i = 0; i < 2; i++)
                asm("ld.shared.b32 %0, [%1];" : "=r"(entries[i]) : "r"(row.at + __byte_perm(codes[i], 0, 0x4404 + p * 16)));
            pairs[p] = entries[1] * 65536 + entries[0];
        }
    }
};

// --- what a block has ------------------------------------------------------------------------------------------------

// kTiles tiles, of which it writes kMine. A warp has kSteps steps of all of them, kCluster * kWarps apart, with those of other
// warps and of the other block of the cluster in between. The tiles that the other block writes come first, so that their sums
// travel while those of its own are made.
template <int kTilesOf, int kStepsOf, int kClusterOf>
struct Share {
    static_assert(kClusterOf <= 2);
    static constexpr int kTiles = kTilesOf, kSteps = kStepsOf, kCluster = kClusterOf, kOutputs = kTiles * kTile;
    static constexpr int kMine = kTiles / kCluster;
    int rank, first_output, padded, steps;

    __device__ int step(int slot, int part) const { return (slot * kCluster + rank) * kWarps + part; }
    __device__ int tile(int n) const { return (n < kMine ? kCluster - 1 - rank : rank) * kMine + n % kMine; }
    __device__ int tiles() const { return min(kTiles, (padded - first_output) / kTile); }
};

// A warp's sums of a tile as its threads have them: two rows 2 t and 2 t + 1 of A by two outputs g and g + 8. They are at
// [t][(g + 2 t) % 8], so that eight threads that write want different banks.
struct TileSums {
    float4 at[4][8];

    static constexpr int kBytes = 128;  // for each t

    __device__ float4 &of(int t, int g) { return at[t][(g + 2 * t) % 8]; }
    __device__ float of(int i) const { return reinterpret_cast<const float *>(at)[i]; }
    __device__ static int row(int i) { return i / 32 * 2 + i % 2; }
    __device__ static int output(int i) { return (i / 4 - i / 32 * 2 + 8) % 8 + i / 2 % 2 * 8; }
};

// Shared memory behind the decoder's.
template <typename S, bool kGroups>
struct Memory {
    TileSums own[kWarps][S::kMine], received[kWarps][S::kMine];
    float factors[kGroups ? kWarps * S::kSteps : 1][2][S::kOutputs];  // scale, offset
    u64 summed;

    __device__ void ask_factors(const S &share, const Weights &weights) {
        constexpr int kPieces = S::kOutputs / 4;
        for (int i = threadIdx.x; i < (kGroups ? kWarps * S::kSteps : 1) * kPieces; i += kThreads) {
            const int item = i / kPieces, place = i % kPieces * 4;
            const int step = kGroups ? share.step(item / kWarps, item % kWarps) : 0;
            const bool there = step < share.steps && share.first_output + place < share.padded;
            const int64 at = there ? int64(weights.group<4>(step)) * share.padded + share.first_output + place : 0;
            copy_16_bytes(factors[item][0] + place, weights.scale + at, there);
            if (kGroups && weights.offset) copy_16_bytes(factors[item][1] + place, weights.offset + at, there);
        }
        commit_copies();
    }

    // For one thread, before the blocks meet.
    __device__ void expect_sums(int rows) {
        barrier_init(&summed, 1);
        barrier_init_fence();
        barrier_expect(&summed, kWarps * S::kMine * ((rows + 1) / 2) * TileSums::kBytes);
    }

    // A warp's sums of its n-th tile, to the block that writes it.
    __device__ void hand_over(const S &share, int n, const float (&sums)[4], int rows) {
        const int part = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        if (2 * t >= rows) return;
        if (n < S::kTiles - S::kMine)
            send(&received[part][n].of(t, g), &summed, share.rank ^ 1, sums);
        else
            own[part][n % S::kMine].of(t, g) = make_float4(sums[0], sums[1], sums[2], sums[3]);
    }

    // The i-th of the n-th tile that the block writes, over all K, in the same order every time.
    __device__ float sum(int n, int i) const {
        float sum = 0;
#pragma unroll
        for (int part = 0; part < kWarps; part++) {
            sum += own[part][n].of(i);
            if (S::kCluster > 1) sum += received[part][n].of(i);
        }
        return sum;
    }
};

// --- the product -------------------------------------------------------------------------------------------------------

// A thread's codes of one step.
template <typename S>
struct Codes {
    uint4 at[S::kTiles][2];

    __device__ void ask(const S &share, const uint4 *codes, int step) {
#pragma unroll
        for (int i = 0; i < S::kTiles * 2; i++) {
            const int tile = share.tile(i / 2);
            const int64 first = (int64(share.first_output / kTile + tile) * share.steps + step) * 64;
            at[i / 2][i % 2] = make_uint4(0, 0, 0, 0);
            if (step < share.steps && tile < share.tiles())
                at[i / 2][i % 2] = streamed(codes + first + i % 2 * 32 + threadIdx.x % 32);
        }
    }
};

// A's part for a lane in one step.
struct Rows {
    Activations<1> at[4];  // zeros beyond the rows and the depth

    // Some of it, here and not where the compiler would like it, which may be too late.
    __device__ void ask(const bfloat16 *a, int rows, int depth, int step, int first = 0, int last = 4) {
        const int row = threadIdx.x % 32 / 4, k = step * kStep + threadIdx.x % 4 * 8, left = row < rows ? depth - k : 0;
        const bfloat16 *own = a + int64(row) * depth + k;
#pragma unroll
        for (int j = first; j < last; j++) {
            uint4 v = make_uint4(0, 0, 0, 0);
            const bfloat16 *from = own + j * 32;
            if (j * 32 < left)
                asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                             : "l"(from));
            at[j] = {{{v.x, v.y, v.z, v.w}}};
        }
    }
};

// A share of A for each block, into the second cache only, so that it may still be written.
__device__ __forceinline__ void ask_ahead(const bfloat16 *a, int elements) {
    constexpr int kLine = 64;
    const int each = (elements + gridDim.x * kLine - 1) / (gridDim.x * kLine);
    const int64 at = int64(blockIdx.x * each + threadIdx.x) * kLine;
    if (threadIdx.x < each && at < elements) asm volatile("prefetch.global.L2 [%0];" ::"l"(a + at));
}

// sums += the product of a step with a tile, whose codes a thread has of both its outputs; with groups `factors` are their
// scales and offsets, and `totals` what A itself sums up to.
template <bool kGroups, Offset kOffset, int kOutputs, typename Decoder>
__device__ __forceinline__ void add_tile(const Decoder &decoder, int tile, const uint4 (&codes)[2],
                                         const float (&factors)[2][kOutputs], const Rows &a, const float (&totals)[4],
                                         float (&sums)[4]) {
    const int place = tile * kTile + threadIdx.x % 32 / 4;
    const Word words[4][2] = {{codes[0].x, codes[1].x}, {codes[0].y, codes[1].y},
                              {codes[0].z, codes[1].z}, {codes[0].w, codes[1].w}};
    typename Decoder::Row both[2] = {{decoder, 2 * tile}, {decoder, 2 * tile + 1}};
    if constexpr (kOffset == kInCodes)
        both[0].take_off(factors[1][place]), both[1].take_off(factors[1][place + 8]);
    float products[2][4] = {};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        Word decoded[1][2][4];
        decode_both(decoder, both, words[j], decoded);
        add_word(decoded, a.at[j], products[0], products[1]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float product = products[0][i] + products[1][i];
        if constexpr (kOffset == kInSums) product = fmaf(-factors[1][place + i / 2 * 8], totals[i], product);
        sums[i] = kGroups ? fmaf(factors[0][place + i / 2 * 8], product, sums[i]) : sums[i] + product;
    }
}

// All of K is in one turn: the blocks of a cluster have at least `steps` steps. depth must be a multiple of 8. Without groups
// there are no offsets, and scales are those of whole outputs.
template <typename Decoder, bool kGroups, Offset kOffset, int kTiles, int kSteps, int kCluster>
__global__ void __launch_bounds__(kThreads, 2)
    few_rows(const bfloat16 *a, const uint4 *codes, const uint4 *tables, const float *scale, const float *offset,
             const bfloat16 *bias, bfloat16 *y, int rows, int outputs, int padded, int depth, int steps, int group_steps,
             int table_output, int table_group) {
    using S = Share<kTiles, kSteps, kCluster>;
    static_assert(S::kMine * 128 <= kThreads);
    extern __shared__ __align__(128) uint4 shared[];
    auto &memory = *reinterpret_cast<Memory<S, kGroups> *>(shared + Decoder::kShared / 16);
    const Weights weights{codes, tables, scale, offset, table_output, table_group, padded, steps, group_steps};
    const int part = threadIdx.x / 32;
    const S share{int(blockIdx.x % kCluster), int(blockIdx.x / kCluster) * S::kOutputs, padded, steps};

    let_next_kernel_start();
    if (share.first_output >= padded) {
        wait_for_kernel_before();
        return;
    }
    const typename Decoder::Asked asked = Decoder::ask(tables + int64(share.first_output) * table_output * 2);
    memory.ask_factors(share, weights);
    Codes<S> own[kSteps];
#pragma unroll
    for (int slot = 0; slot < kSteps; slot++) own[slot].ask(share, codes, share.step(slot, part));
    ask_ahead(a, rows * depth);
    const Decoder decoder(tables, asked, reinterpret_cast<Word *>(shared));
    if (kCluster > 1 && threadIdx.x == 0) memory.expect_sums(rows);
    wait_for_copies<0>();  // factors
    __syncthreads();
    if constexpr (kCluster > 1) meet();
    wait_for_kernel_before();

    // A's part for the next step is asked for in so many pieces, a tile apart: all at once there are too few registers.
    constexpr int kPieces = kOffset == kInSums ? 1 : 2;
    Rows mine[kSteps];
    mine[0].ask(a, rows, depth, share.step(0, part));
    float sums[kTiles][4] = {};
#pragma unroll
    for (int slot = 0; slot < kSteps; slot++) {
        const auto &factors = memory.factors[kGroups ? slot * kWarps + part : 0];
        float totals[4] = {};
#pragma unroll
        for (int j = 0; j < 4 && kOffset == kInSums; j++) add_up(mine[slot].at[j], totals);
#pragma unroll
        for (int n = 0; n < kTiles; n++) {
            add_tile<kGroups, kOffset>(decoder, share.tile(n), own[slot].at[n], factors, mine[slot], totals, sums[n]);
            if (slot + 1 == kSteps)
                memory.hand_over(share, n, sums[n], rows);
            else if (n < kPieces)
                mine[slot + 1].ask(a, rows, depth, share.step(slot + 1, part), n * 4 / kPieces, (n + 1) * 4 / kPieces);
        }
    }
    const int n = threadIdx.x / 128, i = threadIdx.x % 128, row = TileSums::row(i);
    const int place = (share.rank * S::kMine + n) * kTile + TileSums::output(i), output = share.first_output + place;
    const bool writes = n < S::kMine && row < rows && output < outputs;
    const float factor = kGroups || !writes ? 1 : memory.factors[0][0][place];
    const float added = bias && writes ? widen(bias[output]) : 0;
    __syncthreads();
    if constexpr (kCluster > 1) barrier_wait(&memory.summed, 0);
    if (writes) narrow(fmaf(factor, memory.sum(n, i), added), y[int64(row) * outputs + output]);
}

// instances: few_rows<Pairs<1>, false, kNone, 4, 2, 2>; few_rows<Lanes<4>, false, kNone, 4, 2, 2>
// instances: few_rows<Levels, true, kInCodes, 4, 2, 2>; few_rows<Levels, true, kInSums, 4, 2, 2>
// instances: few_rows<Pairs<1>, true, kInSums, 4, 2, 2>; few_rows<Levels, true, kInCodes, 2, 2, 2>
// instances: few_rows<Pairs<1>, false, kNone, 2, 2, 1>

// Four-bit weights (lowbit.cuh) times some tens of rows of A in bfloat16, on Hopper: every warpgroup decodes 64 outputs
// straight into the registers that wgmma reads. The copy engine brings codes and, for two blocks at a time, rows of A.
//
//   D (64 outputs x kRows rows) += W (64 x 16) A^T (16 x kRows)       wgmma.m64nNk16, W from registers
//
// A block has 128 outputs and a share of K: so A is read seldom, every weight is decoded once for kRows rows, and all
// multiprocessors have work. `combine` adds the shares up, in the same order every time. Scales and offsets of groups are
// in the weights, rounded to bfloat16 with them; those of whole outputs are applied to the sums.
// architectures: sm_90a
#include "lowbit_hopper.cuh"

constexpr int kWarps = 8, kThreads = kWarps * 32 + 32;  // a tile a warp; the last warp copies
constexpr int kCluster = 2;                             // blocks that have the same rows of A

// --- what the instruction set has and hopper.cuh does not ------------------------------------------------------------

#define NAMES_16 TEN() "%10,%11,%12,%13,%14,%15"
#define SUMS_16(d) SUMS_8(d, 0), SUMS_8(d, 8)
#define WGMMA_OF_REGISTERS(n, names, sums, w_names, a_name)                                                          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" names "}, {" w_names "}, " a_name       \
                 ", 1, 1, 1, 0;"                                                                                     \
                 : sums                                                                                              \
                 : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(a))

// sums (64 x kRows, bits of floats) += w a': a fragment of 16 x 16 from every warp, and 32 bytes of K of the rows at `a`.
template <int kRows>
__device__ __forceinline__ void add_product(u32 (&sums)[kRows / 2], const Word (&w)[4], u64 a) {
    if constexpr (kRows == 32)
        WGMMA_OF_REGISTERS("32", NAMES_16, SUMS_16(sums), "%16,%17,%18,%19", "%20");
    else if constexpr (kRows == 64)
        WGMMA_OF_REGISTERS("64", NAMES_32, SUMS_32(sums, 0), "%32,%33,%34,%35", "%36");
    else
        WGMMA_OF_REGISTERS("128", NAMES_64, SUMS_64(sums, 0), "%64,%65,%66,%67", "%68");
}

// No access to the registers moves from one side of this to the other.
template <int kCount>
__device__ __forceinline__ void hold(u32 (&registers)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; i++) asm volatile("" : "+r"(registers[i])::"memory");
}

// At the barrier of another block.
__device__ __forceinline__ void arrive_at(u64 *barrier, u32 rank) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(in_block(shared_address(barrier), rank)) : "memory");
}

// A box of A, for all blocks of the cluster.
__device__ __forceinline__ void share_box(u32 to, const TensorMap *map, u64 *barrier, int k, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(map), "r"(shared_address(barrier)), "r"(k), "r"(row), "h"((unsigned short)((1 << kCluster) - 1))
        : "memory");
}

// --- weights ---------------------------------------------------------------------------------------------------------

// A lane's codes are of eight neighbours, t = lane % 4 of four lanes having k = 8 t + 0..7, and its fragments of two by
// two. So four lanes exchange them: word s gets pair t of lane s, from words j = 0..3.
template <bool kInPairs>
__device__ __forceinline__ void exchange(const uint4 &w, Word (&found)[4]) {
    const int t = threadIdx.x % 4;
    Word wanted[4];  // by lane t ^ d
    if constexpr (kInPairs) {
        constexpr Word kEven = 0x0f0f0f0f, kOdd = 0xf0f0f0f0;  // nibbles: pairs p = 0, 2 and p = 1, 3
        const Word even[2] = {(w.x & kEven) | (w.y & kEven) << 4, (w.z & kEven) | (w.w & kEven) << 4};
        const Word odd[2] = {(w.x & kOdd) >> 4 | (w.y & kOdd), (w.z & kOdd) >> 4 | (w.w & kOdd)};
#pragma unroll
        for (int d = 0; d < 4; d++) {
            const bool is_odd = (t ^ d) % 2;
            wanted[d] = __byte_perm(is_odd ? odd[0] : even[0], is_odd ? odd[1] : even[1], (t ^ d) / 2 ? 0x7351 : 0x6240);
        }
    } else {
#pragma unroll
        for (int d = 0; d < 4; d++) {
            const Word bytes = (t ^ d) * 0x11 + 0x40;
            wanted[d] = __byte_perm(__byte_perm(w.x, w.y, bytes), __byte_perm(w.z, w.w, bytes), 0x5410);
        }
    }
#pragma unroll
    for (int d = 1; d < 4; d++) wanted[d] = __shfl_xor_sync(~0u, wanted[d], d);
    const bool odd = t % 2, upper = t / 2;
    const Word low[2] = {odd ? wanted[1] : wanted[0], odd ? wanted[0] : wanted[1]};
    const Word high[2] = {odd ? wanted[3] : wanted[2], odd ? wanted[2] : wanted[3]};
#pragma unroll
    for (int i = 0; i < 2; i++) found[i] = upper ? high[i] : low[i], found[2 + i] = upper ? low[i] : high[i];
}

// What the weights of a step have in common for the two outputs of a lane. With kSpan 0 scales are of whole outputs, and
// left for later.
template <typename Decoder, int kSpan>
struct Group {
    static constexpr int kMany = kSpan ? 4 / kSpan : 1;
    typename Decoder::Row rows[2];
    Word scale[2][kMany], shift[2][kMany];

    __device__ __forceinline__ Group(const Weights &weights, const Decoder &decoder, int output, int group)
        : rows{{decoder, weights.table(output, group)}, {decoder, weights.table(output + 8, group)}} {
        if constexpr (kSpan != 0)
#pragma unroll
            for (int n = 0; n < 2 * kMany; n++) {
                const int64 at = int64(group + n / 2) * weights.outputs + output + n % 2 * 8;
                const float factor = __ldg(weights.scale + at), rest = weights.offset ? -factor * __ldg(weights.offset + at) : 0;
                scale[n % 2][n / 2] = pair(factor, factor), shift[n % 2][n / 2] = pair(rest, rest);
            }
    }

    // The pairs of words j = 0..3 of one of both outputs.
    __device__ __forceinline__ void decode(const Decoder &decoder, int half, Word word, Word *pairs) const {
        if constexpr (kSpan == 0) {
            decoder.template decode<0>(word, rows[half], pairs);
        } else {
            Word entries[4];
            decoder.template decode<0>(word, rows[half], entries);
#pragma unroll
            for (int j = 0; j < 4; j++)
                asm("fma.rn.bf16x2 %0, %1, %2, %3;"
                    : "=r"(pairs[j])
                    : "r"(entries[j]), "r"(scale[half][j / kSpan]), "r"(shift[half][j / kSpan]));
        }
    }
};

// --- what is on its way into shared memory ---------------------------------------------------------------------------

// Of a step: a block's codes, and two boxes of 64 k of A, which the blocks of a cluster bring together.
template <int kRows>
struct Stages {
    static constexpr int kBox = kRows * 128, kCodes = 2 * kBox, kStage = kCodes + kWarps * 1024;
    static constexpr int kCount = kRows == 128 ? 4 : 8;
    u32 first;
    u64 *full, *empty;

    __device__ u32 at(int step) const { return first + step % kCount * kStage; }

    __device__ void init() const {
        for (int i = 0; i < kCount; i++) barrier_init(full + i, 1), barrier_init(empty + i, kWarps * kCluster);
        barrier_init_fence();
    }

    // For one thread: `codes` has so many tiles, none beyond the last step; all lie `apart` from each other.
    __device__ void ask_codes(int step, const uint4 *codes, int tiles, int apart) const {
        u64 *barrier = full + step % kCount;
        barrier_expect(barrier, kCodes + tiles * 1024);
        for (int n = 0; n < tiles; n++) copy_once(at(step) + kCodes + n * 1024, codes + int64(n) * apart, 1024, barrier);
    }

    __device__ void ask_rows(int step, const TensorMap &a, int k, int first_row) const {
        const int row = cluster_rank() * (kRows / kCluster);
#pragma unroll
        for (int box = 0; box < 2; box++)
            share_box(at(step) + box * kBox + row * 128, &a, full + step % kCount, k + box * 64, first_row + row);
    }

    __device__ __forceinline__ void wait(int step) const { barrier_wait(full + step % kCount, step / kCount % 2); }
    __device__ void wait_for_room(int step) const { barrier_wait(empty + step % kCount, (step / kCount - 1) % 2); }

    // Of this lane.
    __device__ __forceinline__ uint4 codes(int step, int half) const {
        uint4 v;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(at(step) + kCodes + threadIdx.x / 32 * 1024 + half * 512 + threadIdx.x % 32 * 16));
        return v;
    }

    // 16 k of A.
    __device__ __forceinline__ u64 slice(int step, int i) const {
        return operand<128>(at(step) + i / 4 * kBox + i % 4 * 32);
    }

    __device__ __forceinline__ void release(int step) const {
        if (threadIdx.x % 32 < kCluster) arrive_at(empty + step % kCount, threadIdx.x % 32);
    }
};

// --- the product -------------------------------------------------------------------------------------------------------

// A step in two halves, of which one is decoded while the other is multiplied: those are the 16 k with even numbers and with
// odd ones, for which a thread has two of its exchanged words.
template <int kHalf, int kRows, typename Decoder, typename Of>
__device__ __forceinline__ void add_half(u32 (&sums)[kRows / 2], Word (&fragments)[4][4], const Stages<kRows> &stages,
                                         const Decoder &decoder, const Of &group, const Word (&words)[2][4], int step) {
    Word pairs[2][2][4];
#pragma unroll
    for (int n = 0; n < 4; n++) group.decode(decoder, n % 2, words[n % 2][2 * kHalf + n / 2], pairs[n / 2][n % 2]);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        for (int n = 0; n < 4; n++) fragments[j][n] = pairs[n / 2][n % 2][j];
        hold(fragments[j]);
    }
    wgmma_begin();
#pragma unroll
    for (int j = 0; j < 4; j++) add_product<kRows>(sums, fragments[j], stages.slice(step, 2 * j + kHalf));
    wgmma_commit();
}

// parts: [share of K][row][padded output]; `count` steps a share.
template <typename Decoder, int kRows, int kSpan>
__global__ void __launch_bounds__(kThreads, 1)
    partial_products(const __grid_constant__ TensorMap a, const uint4 *codes, const uint4 *tables, const float *scale,
                     const float *offset, float *parts, int rows, int padded, int count, int steps, int group_steps,
                     int table_output, int table_group) {
    using Of = Group<Decoder, kSpan>;
    using Rows = Stages<kRows>;
    extern __shared__ __align__(1024) uint4 shared[];
    __shared__ u64 barriers[2 * Rows::kCount];
    const Weights weights{codes, tables, scale, offset, table_output, table_group, padded, steps, group_steps};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_step = blockIdx.y * count, first_row = blockIdx.z * kRows;
    const int tile = blockIdx.x * kWarps + warp, output = min(tile * kTile, padded - kTile) + lane / 4;
    const Rows stages{shared_address(shared) + Decoder::kShared, barriers, barriers + Rows::kCount};
    const auto ask_codes = [&](int i) {
        const int step = first_step + i, first_tile = blockIdx.x * kWarps;
        const int tiles = step < steps ? max(0, min(kWarps, padded / kTile - first_tile)) : 0;
        stages.ask_codes(i, codes + (int64(first_tile) * steps + step) * 64, tiles, steps * 64);
    };
    const typename Decoder::Asked asked = Decoder::ask(tables);
    if (threadIdx.x == kWarps * 32) {
        stages.init();
        for (int i = 0; i < min(count, Rows::kCount); i++) ask_codes(i);
    }
    const Decoder decoder(tables, asked, reinterpret_cast<Word *>(shared));
    __syncthreads();
    meet();
    let_next_kernel_start();
    wait_for_kernel_before();
    if (warp == kWarps) {
        for (int i = 0; lane == 0 && i < count; i++) {
            if (i >= Rows::kCount) stages.wait_for_room(i), ask_codes(i);
            stages.ask_rows(i, a, (first_step + i) * kStep, first_row);
        }
        __syncwarp();
    } else {
        u32 sums[kRows / 2] = {};
        Word fragments[2][4][4];
        Of group(weights, decoder, output, weights.group<kSpan ? kSpan : 4>(min(first_step, steps - 1)));
        hold(sums);
#pragma unroll 2
        for (int i = 0; i < count; i++) {
            if constexpr (kSpan != 0)
                group = Of(weights, decoder, output, weights.group<kSpan>(min(first_step + i, steps - 1)));
            stages.wait(i);
            Word words[2][4];
#pragma unroll
            for (int half = 0; half < 2; half++) exchange<Decoder::kInPairs>(stages.codes(i, half), words[half]);
            wgmma_wait<1>();  // for what had the registers of the next fragments
            add_half<0>(sums, fragments[0], stages, decoder, group, words, i);
            wgmma_wait<1>();
            if (i) stages.release(i - 1);
            add_half<1>(sums, fragments[1], stages, decoder, group, words, i);
        }
        hold(sums);
        wgmma_wait<0>();
        hold(sums);
        if (tile * kTile < padded)
#pragma unroll
            for (int i = 0; i < kRows / 2; i++) {
                const int row = first_row + i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (row < rows)
                    parts[(int64(blockIdx.y) * rows + row) * padded + output + i / 2 % 2 * 8] = __uint_as_float(sums[i]);
            }
    }
    meet();  // nobody leaves while others arrive at its barriers
}

// y = scale times the sum of kShares parts, plus bias, with four outputs a thread; no scale stands for one.
template <int kShares>
__global__ void __launch_bounds__(256)
    combine(const float *parts, const float *scale, const bfloat16 *bias, bfloat16 *y, int rows, int outputs, int padded) {
    const int64 i = (int64(blockIdx.x) * 256 + threadIdx.x) * 4;
    const int row = i / padded, place = i % padded;
    let_next_kernel_start();
    wait_for_kernel_before();
    if (row >= rows) return;
    float sums[4] = {};
#pragma unroll
    for (int share = 0; share < kShares; share++) {
        float more[4];
        load<4>(parts + (int64(share) * rows + row) * padded + place, more);
#pragma unroll
        for (int n = 0; n < 4; n++) sums[n] += more[n];
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
        if (place + n < outputs) sums[n] = fmaf(scale ? __ldg(scale + place + n) : 1, sums[n], bias ? widen(bias[place + n]) : 0);
    bfloat16 *to = y + int64(row) * outputs + place;
    if (outputs % 4 == 0 && place < outputs) {
        store<4>(to, sums);
    } else {
        for (int n = 0; n < 4 && place + n < outputs; n++) narrow(sums[n], to[n]);
    }
}

// instances: partial_products<Pairs<1>, 128, 0>; partial_products<Pairs<1>, 32, 0>; combine<4>
// instances: partial_products<Tables<1>, 128, 0>; partial_products<Tables<1>, 64, 4>; partial_products<Tables<1>, 128, 4>
// instances: partial_products<Levels, 128, 4>; partial_products<Levels, 64, 1>; partial_products<Levels, 32, 4>

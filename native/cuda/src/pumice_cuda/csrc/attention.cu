// since: sm_80
// Attention, out = softmax(factor Q K' + mask) V for every head, in one pass over the keys.
//
// A warp has 16 queries of a head, a block kWarps times as many, and kGroups of so many warps go through chunks of kKeys
// keys side by side and in step, each with its own share of the softmax: the greatest score so far, the sum and the
// weighted values relative to it. At the end the groups' shares are put together. What a warp makes of its queries and
// keys stays in registers: the scores that a thread holds are those that it needs of the next product's first operand.
//
// Every operand is the sum of two bfloat16, 16 bits of mantissa: hi hi' + hi lo' + lo hi' is off by about 2^-17 of the
// product of the norms, and has float's range. Scores are those of powers of two.
//
// A result that is quantized next is stored times factors of its columns, and its range noted for every block.
#include "overlapping.cuh"
#include "ranges.cuh"

typedef unsigned int u32;

constexpr int kPadding = 8;  // elements behind a row of keys, so that eight rows lie in different banks

// Elements from one matrix, head and row of an array to the next; rows are contiguous and begin at 16 bytes.
struct Heads {
    int64 batch, head, row;

    __device__ int64 at(int of_batch, int of_head, int64 of_row) const {
        return of_batch * batch + of_head * head + of_row * row;
    }
};

struct Shape {
    Heads q, k, v, out, mask;  // `mask.row` is that of a query
    int64 mask_key;
    int queries, keys;
    float factor;
};

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

// --- products ---------------------------------------------------------------------------------------------------------

// Two neighbours as bfloat16, the first in the low half, and what that leaves of them.
struct Pair {
    u32 high, low;

    Pair() = default;
    __device__ Pair(float first, float second) {
        high = packed(first, second);
        low = packed(first - __uint_as_float(high << 16), second - __uint_as_float(high & 0xFFFF0000));
    }
    __device__ static u32 packed(float first, float second) {
        u32 both;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
        return both;
    }
};

__device__ inline void multiply_bf16(float (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// sums[n] += a b[n]', a of 16 by 16 and each b of 8 by 16: first the small products, those of one kind after each other,
// so that none waits for the one before.
template <int kCount>
__device__ inline void multiply(float (*sums)[4], const Pair (&a)[4], const u32 (&high)[kCount][2],
                                const u32 (&low)[kCount][2]) {
#pragma unroll
    for (int n = 0; n < kCount; n++)
        multiply_bf16(sums[n], a[0].low, a[1].low, a[2].low, a[3].low, high[n][0], high[n][1]);
#pragma unroll
    for (int n = 0; n < kCount; n++)
        multiply_bf16(sums[n], a[0].high, a[1].high, a[2].high, a[3].high, low[n][0], low[n][1]);
#pragma unroll
    for (int n = 0; n < kCount; n++)
        multiply_bf16(sums[n], a[0].high, a[1].high, a[2].high, a[3].high, high[n][0], high[n][1]);
}

// Four matrices of 8 by 8, whose rows begin where the lanes say, eight lanes a matrix.
template <bool kTransposed>
__device__ inline void load_matrices(u32 (*words)[2], const unsigned short *row) {
    const u32 from = u32(__cvta_generic_to_shared(row));
    if constexpr (kTransposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0][0]), "=r"(words[0][1]), "=r"(words[1][0]), "=r"(words[1][1]) : "r"(from));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0][0]), "=r"(words[0][1]), "=r"(words[1][0]), "=r"(words[1][1]) : "r"(from));
}

// --- keys and values of a chunk ---------------------------------------------------------------------------------------

template <int kSize, int kKeys>
struct Chunk {
    static constexpr int kRow = kSize + kPadding;
    unsigned short high[kKeys * kRow], low[kKeys * kRow];
};

// What a thread of kThreads fetches of a chunk: all of it is on its way before any is looked at.
template <int kSize, int kKeys, int kThreads>
struct Fetched {
    static constexpr int kPieces = kSize / 4, kStep = kThreads / kPieces, kCount = kKeys / kStep;
    float values[kCount][4];

    // What lies beyond the last of `keys` is zero.
    __device__ Fetched(const float *from, int64 row, int first, int keys) {
        const int key = first + threadIdx.x % kThreads / kPieces;
        from += key * row + 4 * (threadIdx.x % kPieces);
#pragma unroll
        for (int n = 0; n < kCount; n++, from += kStep * row) {
            if (key + n * kStep < keys) load<4>(from, values[n]);
            else values[n][0] = values[n][1] = values[n][2] = values[n][3] = 0;
        }
    }

    __device__ void put(Chunk<kSize, kKeys> &chunk) const {
        const int at = threadIdx.x % kThreads / kPieces * chunk.kRow + 4 * (threadIdx.x % kPieces);
#pragma unroll
        for (int n = 0; n < kCount; n++) {
            const Pair one(values[n][0], values[n][1]), two(values[n][2], values[n][3]);
            *reinterpret_cast<uint2 *>(chunk.high + at + n * kStep * chunk.kRow) = make_uint2(one.high, two.high);
            *reinterpret_cast<uint2 *>(chunk.low + at + n * kStep * chunk.kRow) = make_uint2(one.low, two.low);
        }
    }
};

// --- what a warp knows of its 16 queries ------------------------------------------------------------------------------

// Over the four threads that share a row.
template <typename Combine>
__device__ inline float of_row(float value, Combine combine) {
    value = combine(value, __shfl_xor_sync(~0u, value, 1));
    return combine(value, __shfl_xor_sync(~0u, value, 2));
}

// A thread has the rows i and i + 8 of a warp's, where its lane is 4i + j, and of 8 columns 2j and 2j + 1.
template <int kSize>
struct Share {
    float most[2] = {-infinity(), -infinity()};
    float sum[2] = {};  // of this thread's columns
    float values[kSize / 8][4] = {};

    // Makes another score the greatest, and returns what to take off the scores: zero if all so far are minus infinity.
    __device__ float raise(int half, float greatest) {
        const float shift = greatest == -infinity() ? 0 : greatest, by = power_of_two(most[half] - shift);
        most[half] = greatest;
        sum[half] *= by;
#pragma unroll
        for (int n = 0; n < kSize / 8; n++) values[n][2 * half] *= by, values[n][2 * half + 1] *= by;
        return shift;
    }
};

// Scores of kCount keys from the row `at` of a chunk on.
template <int kSize, int kCount, int kKeys>
__device__ inline void score(float (&scores)[kCount / 8][4], const Pair (&q)[kSize / 16][4], const Chunk<kSize, kKeys> &k,
                             int at) {
    const int lane = threadIdx.x % 32;
    const int place = (at + lane / 16 * 8 + lane % 8) * k.kRow + lane / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < kSize / 16; d++) {
        u32 high[kCount / 8][2], low[kCount / 8][2];
#pragma unroll
        for (int n = 0; n < kCount / 8; n += 2) {
            load_matrices<false>(high + n, k.high + place + 8 * n * k.kRow + 16 * d);
            load_matrices<false>(low + n, k.low + place + 8 * n * k.kRow + 16 * d);
        }
        multiply<kCount / 8>(scores, q[d], high, low);
    }
}

// Scaled, masked, and minus infinity beyond the last key; of the queries from `query` on and the keys from `first` on.
template <int kBlocks>
__device__ inline void adjust(float (&scores)[kBlocks][4], const float *mask, const Shape &shape, int query, int first) {
    const float factor = shape.factor * kLog2E;
#pragma unroll
    for (int n = 0; n < kBlocks; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) scores[n][c] *= factor;
    if (!mask && first + 8 * kBlocks <= shape.keys) return;
#pragma unroll
    for (int n = 0; n < kBlocks; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int key = first + 8 * n + threadIdx.x % 4 * 2 + c % 2, row = query + c / 2 * 8;
            if (key >= shape.keys) scores[n][c] = -infinity();
            else if (mask && row < shape.queries)
                scores[n][c] = fmaf(mask[row * shape.mask.row + key * shape.mask_key], kLog2E, scores[n][c]);
        }
}

// Takes the scores of keys into the share; their values are those from the row `at` of a chunk on.
template <int kSize, int kCount, int kKeys>
__device__ inline void attend(Share<kSize> &share, float (&scores)[kCount / 8][4], const Chunk<kSize, kKeys> &v, int at) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = share.most[half];
#pragma unroll
        for (int n = 0; n < kCount / 8; n++) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        const float shift = share.raise(half, of_row(most, Larger()));
#pragma unroll
        for (int n = 0; n < kCount / 8; n++)
#pragma unroll
            for (int c = 2 * half; c < 2 * half + 2; c++) {
                scores[n][c] = power_of_two(scores[n][c] - shift);
                share.sum[half] += scores[n][c];
            }
    }
    const int lane = threadIdx.x % 32, place = (at + lane % 16) * v.kRow + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < kCount / 8; n += 2) {
        const Pair p[4] = {Pair(scores[n][0], scores[n][1]), Pair(scores[n][2], scores[n][3]),
                           Pair(scores[n + 1][0], scores[n + 1][1]), Pair(scores[n + 1][2], scores[n + 1][3])};
        constexpr int kOnce = kSize / 8 < 4 ? kSize / 8 : 4;
#pragma unroll
        for (int d = 0; d < kSize / 8; d += kOnce) {
            u32 high[kOnce][2], low[kOnce][2];
#pragma unroll
            for (int i = 0; i < kOnce; i += 2) {
                load_matrices<true>(high + i, v.high + place + 8 * n * v.kRow + 8 * (d + i));
                load_matrices<true>(low + i, v.low + place + 8 * n * v.kRow + 8 * (d + i));
            }
            multiply<kOnce>(share.values + d, p, high, low);
        }
    }
}

// The shares of all groups as one, in the first: through shared memory, a word of each thread after the other.
template <int kSize, int kThreads, int kGroups>
__device__ inline void gather(Share<kSize> &share, float *exchanged, int group) {
    constexpr int kWords = 4 + kSize / 2;
    const int thread = threadIdx.x % kThreads;
    __syncthreads();  // nobody reads keys any more
    if (group > 0) {
        float *own = exchanged + (group - 1) * kWords * kThreads + thread;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            own[half * kThreads] = share.most[half];
            own[(2 + half) * kThreads] = share.sum[half];
        }
#pragma unroll
        for (int n = 0; n < kSize / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) own[(4 + 4 * n + c) * kThreads] = share.values[n][c];
    }
    __syncthreads();
    if (group > 0) return;
    for (int other = 0; other < kGroups - 1; other++) {
        const float *its = exchanged + other * kWords * kThreads + thread;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float most = its[half * kThreads];
            const float by = power_of_two(most - share.raise(half, fmaxf(share.most[half], most)));
            share.sum[half] += by * its[(2 + half) * kThreads];
#pragma unroll
            for (int n = 0; n < kSize / 8; n++)
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; c++) share.values[n][c] += by * its[(4 + 4 * n + c) * kThreads];
        }
    }
}

// Stores one of the two rows of what the share has come to, and notes its range.
template <int kSize>
__device__ inline void finish(const Share<kSize> &share, int half, float inverse, float *out, const float *columns,
                              Range &range) {
#pragma unroll
    for (int n = 0; n < kSize / 8; n++) {
        const int column = 8 * n + threadIdx.x % 4 * 2;
        float two[2] = {share.values[n][2 * half] * inverse, share.values[n][2 * half + 1] * inverse}, factors[2] = {1, 1};
        if (columns) load<2>(columns + column, factors);
        two[0] *= factors[0], two[1] *= factors[1];
        range.see(two[0]), range.see(two[1]);
        store<2>(out + column, two);
    }
}

template <int kSize>
__device__ inline void load_queries(Pair (&queries)[kSize / 16][4], const float *q, const Shape &shape, int query) {
#pragma unroll
    for (int d = 0; d < kSize / 16; d++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int row = query + c % 2 * 8;
            float two[2] = {};
            if (row < shape.queries) load<2>(q + row * shape.q.row + 16 * d + threadIdx.x % 4 * 2 + c / 2 * 8, two);
            queries[d][c] = Pair(two[0], two[1]);
        }
}

// Threads of a multiprocessor that have the registers they need.
template <int kSize>
constexpr int kResident = kSize <= 64 ? 512 : 256;

// `columns`: factors of heads times size columns; `ranges`: of every block. Both may be null.
template <int kSize, int kWarps, int kKeys, int kGroups>
__global__ void __launch_bounds__(32 * kWarps * kGroups, kResident<kSize> / (32 * kWarps * kGroups))
    attention(const float *q, const float *k, const float *v, const float *mask, const float *columns, float *out,
              float2 *ranges, const __grid_constant__ Shape shape) {
    extern __shared__ __align__(16) float shared[];
    let_next_kernel_start();
    wait_for_kernel_before();
    constexpr int kThreads = 32 * kWarps, kOnce = kSize <= 64 ? 32 : 16;
    typedef Chunk<kSize, kKeys> Own;
    const int group = threadIdx.x / kThreads, head = blockIdx.y, batch = blockIdx.z;
    const int query = (blockIdx.x * kWarps + threadIdx.x % kThreads / 32) * 16 + threadIdx.x % 32 / 4;
    Own &keys = reinterpret_cast<Own *>(shared)[2 * group], &values = reinterpret_cast<Own *>(shared)[2 * group + 1];
    k += shape.k.at(batch, head, 0), v += shape.v.at(batch, head, 0);
    if (mask) mask += shape.mask.at(batch, head, 0);
    Pair queries[kSize / 16][4];
    load_queries<kSize>(queries, q + shape.q.at(batch, head, 0), shape, query);
    Share<kSize> share;
    for (int round = 0; round < shape.keys; round += kGroups * kKeys) {
        const int first = round + group * kKeys;  // beyond the last key: the group attends to nothing
        __syncthreads();  // nobody reads the last keys any more
        Fetched<kSize, kKeys, kThreads>(k, shape.k.row, first, shape.keys).put(keys);
        Fetched<kSize, kKeys, kThreads>(v, shape.v.row, first, shape.keys).put(values);
        __syncthreads();
#pragma unroll 1
        for (int at = 0; at < kKeys && first + at < shape.keys; at += kOnce) {
            float scores[kOnce / 8][4] = {};
            score<kSize, kOnce>(scores, queries, keys, at);
            adjust(scores, mask, shape, query, first + at);
            attend<kSize, kOnce>(share, scores, values, at);
        }
    }
    if constexpr (kGroups > 1) gather<kSize, kThreads, kGroups>(share, shared, group);
    Range range;
    out += shape.out.at(batch, head, query);
    if (columns) columns += head * kSize;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float inverse = 1 / of_row(share.sum[half], Add());
        if (group == 0 && query + 8 * half < shape.queries)
            finish(share, half, inverse, out + 8 * half * shape.out.row, columns, range);
    }
    if (ranges)
        range.write<kThreads * kGroups>(ranges + (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
}

// instances: attention<16, 8, 128, 1>; attention<16, 4, 32, 4>; attention<32, 8, 128, 1>; attention<32, 4, 64, 1>
// instances: attention<64, 8, 128, 1>; attention<64, 4, 64, 1>; attention<64, 4, 32, 4>; attention<128, 8, 64, 1>
// instances: attention<128, 4, 32, 1>

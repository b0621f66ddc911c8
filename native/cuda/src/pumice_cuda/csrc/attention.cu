// Attention, out = softmax(factor Q K' + mask) V for every head, in one pass over the keys.
//
// A block has 64 queries of a head, a warp 16 of them, and kGroups of four warps go through chunks of kKeys keys side by
// side and in step, each with its own share of the softmax: the greatest score so far, the sum and the weighted values
// relative to it. At the end the groups' shares are put together. What a warp makes of its queries and keys stays in
// registers: the scores that a thread holds are those that it needs of the next product's first operand.
//
// Every operand is the sum of two bfloat16, 16 bits of mantissa: hi hi' + hi lo' + lo hi' is off by about 2^-17 of the
// product of the norms, and has float's range.
#include "elements.cuh"

typedef unsigned int u32;

// Blocks of a multiprocessor where a thread's part is small.
constexpr int kResident = __CUDA_ARCH__ >= 900 ? 3 : 2;
constexpr int kQueries = 64, kWarps = 4, kThreads = 32 * kWarps;
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

    // Of keys from `first` on; what lies beyond the last is zero.
    __device__ void fill(const float *from, int64 row, int first, int keys) {
        constexpr int kPieces = kSize / 4;
#pragma unroll 8
        for (int i = threadIdx.x % kThreads; i < kKeys * kPieces; i += kThreads) {
            const int key = i / kPieces, piece = i % kPieces;
            float values[4] = {};
            if (first + key < keys) load<4>(from + (first + key) * row + 4 * piece, values);
            const Pair one(values[0], values[1]), two(values[2], values[3]);
            *reinterpret_cast<uint2 *>(high + key * kRow + 4 * piece) = make_uint2(one.high, two.high);
            *reinterpret_cast<uint2 *>(low + key * kRow + 4 * piece) = make_uint2(one.low, two.low);
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

__device__ inline float greater(float a, float b) { return fmaxf(a, b); }
__device__ inline float added(float a, float b) { return a + b; }

// A thread has the rows i and i + 8 of a warp's, where its lane is 4i + j, and of 8 columns 2j and 2j + 1.
template <int kSize>
struct Share {
    float most[2] = {-infinity(), -infinity()}, sum[2] = {};
    float values[kSize / 8][4] = {};

    // By what is multiplied what was relative to `most` when the greatest score is another one.
    __device__ static float turned(float most, float greatest) { return most == -infinity() ? 0 : __expf(most - greatest); }

    __device__ void scale(int half, float greatest) {
        const float by = turned(most[half], greatest);
        most[half] = greatest;
        sum[half] *= by;
#pragma unroll
        for (int n = 0; n < kSize / 8; n++) values[n][2 * half] *= by, values[n][2 * half + 1] *= by;
    }
};

// The chunk's scores: scaled, masked, and minus infinity beyond the last key.
template <int kSize, int kKeys>
__device__ inline void score(float (&scores)[kKeys / 8][4], const Pair (&q)[kSize / 16][4], const Chunk<kSize, kKeys> &k,
                             const float *mask, const Shape &shape, int query, int first) {
    const int lane = threadIdx.x % 32, j = lane % 4;
    const int place = (lane / 16 * 8 + lane % 8) * k.kRow + lane / 8 % 2 * 8;
    constexpr int kOnce = kKeys / 8 < 4 ? kKeys / 8 : 4;
#pragma unroll
    for (int d = 0; d < kSize / 16; d++)
#pragma unroll
        for (int n = 0; n < kKeys / 8; n += kOnce) {
            u32 high[kOnce][2], low[kOnce][2];
#pragma unroll
            for (int i = 0; i < kOnce; i += 2) {
                load_matrices<false>(high + i, k.high + place + 8 * (n + i) * k.kRow + 16 * d);
                load_matrices<false>(low + i, k.low + place + 8 * (n + i) * k.kRow + 16 * d);
            }
            multiply<kOnce>(scores + n, q[d], high, low);
        }
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int key = first + 8 * n + 2 * j + c % 2, row = query + c / 2 * 8;
            scores[n][c] *= shape.factor;
            if (mask && key < shape.keys && row < shape.queries)
                scores[n][c] += mask[row * shape.mask.row + key * shape.mask_key];
            if (key >= shape.keys) scores[n][c] = -infinity();
        }
}

// Takes a chunk's scores into the share.
template <int kSize, int kKeys>
__device__ inline void attend(Share<kSize> &share, float (&scores)[kKeys / 8][4], const Chunk<kSize, kKeys> &v) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = share.most[half], sum = 0;
#pragma unroll
        for (int n = 0; n < kKeys / 8; n++) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        most = of_row(most, greater);
        share.scale(half, most);
#pragma unroll
        for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
            for (int c = 2 * half; c < 2 * half + 2; c++) {
                scores[n][c] = share.turned(scores[n][c], most);
                sum += scores[n][c];
            }
        share.sum[half] += of_row(sum, added);
    }
    const int lane = threadIdx.x % 32, place = lane % 16 * v.kRow + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2) {
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
template <int kSize, int kGroups>
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
            const float most = its[half * kThreads], greatest = fmaxf(share.most[half], most);
            const float by = share.turned(most, greatest);
            share.scale(half, greatest);
            share.sum[half] += by * its[(2 + half) * kThreads];
#pragma unroll
            for (int n = 0; n < kSize / 8; n++)
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; c++) share.values[n][c] += by * its[(4 + 4 * n + c) * kThreads];
        }
    }
}

template <int kSize, int kKeys, int kGroups>
__global__ void __launch_bounds__(kThreads * kGroups, kGroups == 1 && kSize <= 64 ? kResident : 1)
    attention(const float *q, const float *k, const float *v, const float *mask, float *out,
              const __grid_constant__ Shape shape) {
    extern __shared__ __align__(16) float shared[];
    typedef Chunk<kSize, kKeys> Own;
    const int group = threadIdx.x / kThreads, head = blockIdx.y, batch = blockIdx.z;
    const int lane = threadIdx.x % 32, i = lane / 4, j = lane % 4;
    const int query = blockIdx.x * kQueries + threadIdx.x % kThreads / 32 * 16 + i;
    Own &keys = reinterpret_cast<Own *>(shared)[2 * group], &values = reinterpret_cast<Own *>(shared)[2 * group + 1];
    k += shape.k.at(batch, head, 0), v += shape.v.at(batch, head, 0), q += shape.q.at(batch, head, 0);
    if (mask) mask += shape.mask.at(batch, head, 0);
    Pair queries[kSize / 16][4];
#pragma unroll
    for (int d = 0; d < kSize / 16; d++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int row = query + c % 2 * 8;
            float two[2] = {};
            if (row < shape.queries) load<2>(q + row * shape.q.row + 16 * d + 2 * j + c / 2 * 8, two);
            queries[d][c] = Pair(two[0], two[1]);
        }
    Share<kSize> share;
    for (int round = 0; round < shape.keys; round += kGroups * kKeys) {
        const int first = round + group * kKeys;  // beyond the last key: the group attends to nothing
        __syncthreads();
        keys.fill(k, shape.k.row, first, shape.keys);
        values.fill(v, shape.v.row, first, shape.keys);
        __syncthreads();
        float scores[kKeys / 8][4] = {};
        score<kSize, kKeys>(scores, queries, keys, mask, shape, query, first);
        attend<kSize, kKeys>(share, scores, values);
    }
    if constexpr (kGroups > 1) gather<kSize, kGroups>(share, shared, group);
    if (group > 0) return;
    out += shape.out.at(batch, head, 0);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = query + 8 * half;
        if (row >= shape.queries) continue;
#pragma unroll
        for (int d = 0; d < kSize / 8; d++) {
            float two[2] = {share.values[d][2 * half] / share.sum[half], share.values[d][2 * half + 1] / share.sum[half]};
            store<2>(out + row * shape.out.row + 8 * d + 2 * j, two);
        }
    }
}

// instances: attention<16, 64, 1>; attention<32, 32, 2>; attention<32, 64, 1>; attention<64, 32, 2>
// instances: attention<64, 64, 1>; attention<64, 64, 2>; attention<128, 16, 1>

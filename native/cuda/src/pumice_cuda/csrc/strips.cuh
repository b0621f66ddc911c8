// Finishes and stores the sums of a warp: a strip of 16 rows and 8 BLOCKS columns.
//
// Every thread holds, of each block of 8 columns, columns 2j and 2j + 1 of the rows i and i + 8, where its lane is
// 4i + j: so mma.sync and wgmma leave them. The four threads of a row trade values until each has 16 bytes side by side
// to store.
#pragma once

#include "epilogue.cuh"

template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int WIDTH>
struct Strip {
    typedef typename Stored<OUTPUT>::type Value;
    static constexpr Output STORED = OUTPUT;
    static constexpr bool ADDS = RESIDUAL;
    const Epilogue& e;
    const ColumnTerms<WIDTH>& terms;
    int row, column;   // of this thread's first value; its other row is 8 below
    int inside;        // that column in the tile
    Value* stored[2];           // its place in both rows
    const Value* residual[2];
    float row_scale[2];
    float least = 0.0f, greatest = 0.0f;  // of what this thread stores

    __device__ __forceinline__ Strip(const Epilogue& e, const ColumnTerms<WIDTH>& terms, int row, int column, int inside)
        : e(e), terms(terms), row(row + threadIdx.x % 32 / 4), column(column + 2 * (threadIdx.x % 4)),
          inside(inside + 2 * (threadIdx.x % 4)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int m = this->row + 8 * half;
            stored[half] = (Value*)e.out + m * e.out_stride + this->column;
            residual[half] = (const Value*)e.residual + m * e.residual_stride + this->column;
            row_scale[half] = ROW_SCALE && has_row(half) ? e.row_scale[m] : 1.0f;
        }
    }

    __device__ __forceinline__ bool has_row(int half) const { return row + 8 * half < e.rows; }

    __device__ __forceinline__ Value* place(int half, int block) const {
        return stored[half] + 8 * block;
    }

    __device__ __forceinline__ const Value* residual_place(int half, int block) const {
        return residual[half] + 8 * block;
    }

    // A block of 8 columns has four values of this thread: both columns of the first row, then of the second.
    __device__ __forceinline__ void residuals(int block, float (&values)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int m = row + i / 2 * 8, n = column + 8 * block + i % 2;
            values[i] = m < e.rows && n < e.columns ? residual_at<OUTPUT, RESIDUAL>(e, m, n) : 0.0f;
        }
    }

    // The factors of the columns, and the range; of all columns if WHOLE, else of those that there are.
    template <bool WHOLE>
    __device__ __forceinline__ void range(int block, float (&v)[4]) {
        float2 factor = *(const float2*)(terms.factor + inside + 8 * block);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            v[i] *= i % 2 ? factor.y : factor.x;
            if (has_row(i / 2) && (WHOLE || column + 8 * block + i % 2 < e.columns))
                least = Least()(least, v[i]), greatest = Greatest()(greatest, v[i]);
        }
    }

    template <bool WHOLE = true>
    __device__ __forceinline__ void values(const u32* sums, int block, const float (&residual)[4], float (&v)[4]) {
        int n = inside + 8 * block;
        int2 offset = *(const int2*)(terms.offset + n);
        float2 scale = *(const float2*)(terms.scale + n), bias = *(const float2*)(terms.bias + n);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 bits = sums[4 * block + i];
            float sum = INTEGER ? (float)(int)(bits + (i % 2 ? offset.y : offset.x)) : __uint_as_float(bits);
            float scaled = sum * ((i % 2 ? scale.y : scale.x) * row_scale[i / 2]) + (i % 2 ? bias.y : bias.x);
            v[i] = finished_value<OUTPUT, ACTIVATION, RESIDUAL>(scaled, residual[i], e);
        }
        if constexpr (RANGED) range<WHOLE>(block, v);
    }

    // The same as bits of the output's type.
    template <bool WHOLE = true>
    __device__ __forceinline__ void results(const u32* sums, int block, const float (&residual)[4], u32 (&bits)[4]) {
        if constexpr (OUTPUT == Output::s32) {
            int2 offset = *(const int2*)(terms.offset + inside + 8 * block);
#pragma unroll
            for (int i = 0; i < 4; ++i) bits[i] = sums[4 * block + i] + (i % 2 ? offset.y : offset.x);
        } else {
            float v[4];
            values<WHOLE>(sums, block, residual, v);
#pragma unroll
            for (int i = 0; i < 4; ++i) bits[i] = stored_bits<OUTPUT, RESIDUAL>(v[i], residual[i], e);
        }
    }
};

// Thread j of a row gets word j of all four: words[i] of thread j becomes words[j] of thread i.
__device__ __forceinline__ void transpose_among_four(u32 (&words)[4]) {
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    u32 a = __shfl_xor_sync(~0u, odd ? words[0] : words[1], 1);
    u32 b = __shfl_xor_sync(~0u, odd ? words[2] : words[3], 1);
    words[0] = odd ? a : words[0], words[1] = odd ? words[1] : a;
    words[2] = odd ? b : words[2], words[3] = odd ? words[3] : b;
    a = __shfl_xor_sync(~0u, upper ? words[0] : words[2], 2);
    b = __shfl_xor_sync(~0u, upper ? words[1] : words[3], 2);
    words[0] = upper ? a : words[0], words[2] = upper ? words[2] : a;
    words[1] = upper ? b : words[1], words[3] = upper ? words[3] : b;
}

// One value at a time, where rows do not begin at multiples of 16 bytes and at the right edge.
template <int BLOCKS, class STRIP>
__device__ __forceinline__ void store_singly(const u32 (&sums)[4 * BLOCKS], STRIP& strip) {
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        float residual[4];
        u32 bits[4];
        strip.residuals(block, residual);
        strip.template results<false>(sums, block, residual, bits);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (strip.has_row(i / 2) && strip.column + 8 * block + i % 2 < strip.e.columns)
                store_bits<STRIP::STORED>(strip.place(i / 2, block) + i % 2, bits[i]);
    }
}

// Two columns of each of two blocks become four columns of the first in even threads, of the second in odd ones.
__device__ __forceinline__ uint4 joined_with_neighbour(uint2 first, uint2 second) {
    bool odd = threadIdx.x & 1;
    uint2 given = odd ? first : second, kept = odd ? second : first;
    given.x = __shfl_xor_sync(~0u, given.x, 1), given.y = __shfl_xor_sync(~0u, given.y, 1);
    return odd ? make_uint4(given.x, given.y, kept.x, kept.y) : make_uint4(kept.x, kept.y, given.x, given.y);
}

// 32-bit outputs: 16 bytes a thread. What is added is read for several blocks ahead of what is stored of them.
template <int BLOCKS, class STRIP>
__device__ __forceinline__ void store_words(const u32 (&sums)[4 * BLOCKS], STRIP& strip) {
    constexpr int AHEAD = BLOCKS % 16 == 0 ? 8 : BLOCKS % 4 == 0 ? 4 : 2;
    static_assert(BLOCKS % AHEAD == 0, "blocks are read in groups");
    int odd = threadIdx.x & 1;
#pragma unroll
    for (int group = 0; group < BLOCKS; group += AHEAD) {
        float residual[AHEAD][4] = {};
#pragma unroll
        for (int i = 0; i < 2 * AHEAD; ++i)
            if (STRIP::ADDS && strip.has_row(i % 2)) {
                float2 two = *(const float2*)strip.residual_place(i % 2, group + i / 2);
                residual[i / 2][i % 2 * 2] = two.x, residual[i / 2][i % 2 * 2 + 1] = two.y;
            }
#pragma unroll
        for (int i = 0; i < AHEAD; i += 2) {
            u32 bits[2][4];
            strip.results(sums, group + i, residual[i], bits[0]);
            strip.results(sums, group + i + 1, residual[i + 1], bits[1]);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint4 four = joined_with_neighbour(make_uint2(bits[0][2 * half], bits[0][2 * half + 1]),
                                                         make_uint2(bits[1][2 * half], bits[1][2 * half + 1]));
                if (strip.has_row(half)) *(uint4*)(strip.place(half, group + i + odd) - 2 * odd) = four;
            }
        }
    }
}

// 16 bytes a thread: columns 8j .. 8j + 7 of a group of 32 for the j-th of a row.
template <int BLOCKS, Output OUTPUT, class STRIP>
__device__ __forceinline__ void store_halves(const u32 (&sums)[4 * BLOCKS], STRIP& strip) {
    int lane = threadIdx.x % 4;
#pragma unroll
    for (int group = 0; group < BLOCKS; group += 4) {
        u32 words[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float residual[4], v[4];
            strip.residuals(group + i, residual);
            strip.values(sums, group + i, residual, v);
            words[0][i] = halves<OUTPUT>(v[0], v[1]);
            words[1][i] = halves<OUTPUT>(v[2], v[3]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32(&w)[4] = words[half];
            transpose_among_four(w);
            if (strip.has_row(half))
                *(uint4*)(strip.place(half, group) + 6 * lane) = make_uint4(w[0], w[1], w[2], w[3]);
        }
    }
}

// 16 bytes a thread: columns 16j .. 16j + 15 of a group of 64 for the j-th of a row. What is traded are words of two
// blocks of columns, one in each half.
template <class STRIP>
__device__ __forceinline__ void load_bytes(const STRIP& strip, int half, int group, u32 (&w)[4]) {
    uint4 bytes = {};
    if (strip.has_row(half)) bytes = *(const uint4*)(strip.residual_place(half, group) + 14 * (threadIdx.x % 4));
    w[0] = __byte_perm(bytes.x, bytes.z, 0x5410), w[1] = __byte_perm(bytes.x, bytes.z, 0x7632);
    w[2] = __byte_perm(bytes.y, bytes.w, 0x5410), w[3] = __byte_perm(bytes.y, bytes.w, 0x7632);
    transpose_among_four(w);
}

template <class STRIP>
__device__ __forceinline__ float byte_of(u32 word, int i) {
    return widen((typename STRIP::Value)(word >> 8 * i));
}

template <int BLOCKS, class STRIP>
__device__ __forceinline__ void store_bytes(const u32 (&sums)[4 * BLOCKS], STRIP& strip) {
#pragma unroll
    for (int group = 0; group < BLOCKS; group += 8) {
        u32 words[2][4], beside[2][4] = {};
        if constexpr (STRIP::ADDS) {
            load_bytes(strip, 0, group, beside[0]);
            load_bytes(strip, 1, group, beside[1]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 bits[2][4];  // of both blocks
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                float residual[4];
#pragma unroll
                for (int n = 0; n < 4; ++n) residual[n] = byte_of<STRIP>(beside[n / 2][i], 2 * side + n % 2);
                strip.results(sums, group + 2 * i + side, residual, bits[side]);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half)
                words[half][i] = __byte_perm(__byte_perm(bits[0][2 * half], bits[0][2 * half + 1], 0x0040),
                                             __byte_perm(bits[1][2 * half], bits[1][2 * half + 1], 0x0040), 0x5410);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32(&w)[4] = words[half];
            transpose_among_four(w);
            if (strip.has_row(half))
                *(uint4*)(strip.place(half, group) + 14 * (threadIdx.x % 4)) =
                    make_uint4(__byte_perm(w[0], w[1], 0x5410), __byte_perm(w[2], w[3], 0x5410),
                               __byte_perm(w[0], w[1], 0x7632), __byte_perm(w[2], w[3], 0x7632));
        }
    }
}

// Finishes and stores the sums of a warp (bits of s32 if INTEGER, else of f32) that begin at a row and a column of the
// matrix; the column is `inside` columns from the tile's first.
template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int BLOCKS, int WIDTH>
__device__ __forceinline__ void store_strip(const u32 (&sums)[4 * BLOCKS], const Epilogue& e,
                                            const ColumnTerms<WIDTH>& terms, int row, int column, int inside) {
    Strip<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, WIDTH> strip(e, terms, row, column, inside);
    constexpr int SIZE = sizeof(typename Stored<OUTPUT>::type);
    constexpr int GROUP = SIZE == 4 ? 1 : SIZE == 2 ? 4 : 8;  // blocks of columns that are stored together
    bool whole = e.wide && column + 8 * BLOCKS <= e.columns;
    if constexpr (BLOCKS % GROUP == 0) {
        if (whole) {
            if constexpr (SIZE == 4) store_words<BLOCKS>(sums, strip);
            else if constexpr (SIZE == 2) store_halves<BLOCKS, OUTPUT>(sums, strip);
            else store_bytes<BLOCKS>(sums, strip);
        }
    } else {
        whole = false;
    }
    if (!whole) store_singly<BLOCKS>(sums, strip);
    if constexpr (RANGED) store_range<BLOCKS>(e, strip.least, strip.greatest, row, column);
}

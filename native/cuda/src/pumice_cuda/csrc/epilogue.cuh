// What becomes of the sums of a matrix product or a convolution before they are stored, in this order:
//
//     v = (sum + offset[n]) * scale[n] * row_scale[m] + bias[n] + (residual[m, n] - residual_zero) * residual_scale
//     v = activation(v);  8-bit outputs: saturate(round_half_even(v / divisor) + zero)
//
// Output::s32 stores sum + offset[n]. Every thread holds, of each block of 8 columns, columns 2j and 2j + 1 of the rows
// i and i + 8 of its warp's 16, where its lane is 4i + j: so mma.sync and wgmma leave them. The four threads of a row
// trade values until each has 16 bytes side by side to store.
#pragma once

#include "elements.cuh"

typedef unsigned int u32;

enum class Output { s32, f32, f16, bf16, s8, u8 };
enum class Activation { none, clip, gelu, silu };

struct Epilogue {
    void* out;
    const void* residual;     // of the output's type
    const float* scale;       // one a column, or one for all if scale_step is 0
    const float* row_scale;
    const float* bias;
    const int* offset;
    long long out_stride, residual_stride;  // in elements
    int rows, columns, scale_step;
    int zero, residual_zero;
    float residual_scale, low, high, divisor;
    int wide;                 // rows of the output begin at multiples of 16 bytes
};

template <Output OUTPUT>
struct Stored { typedef int type; };
template <>
struct Stored<Output::f32> { typedef float type; };
template <>
struct Stored<Output::f16> { typedef float16 type; };
template <>
struct Stored<Output::bf16> { typedef bfloat16 type; };
template <>
struct Stored<Output::s8> { typedef signed char type; };
template <>
struct Stored<Output::u8> { typedef unsigned char type; };

// --- conversions ------------------------------------------------------------------------------------------------------

// Two halves in one word, the first below.
template <Output OUTPUT>
__device__ __forceinline__ u32 halves(float first, float second) {
    typename Stored<OUTPUT>::type low, high;
    narrow(first, low);
    narrow(second, high);
    return (u32)low.bits | (u32)high.bits << 16;
}

template <Output OUTPUT>
__device__ __forceinline__ u32 quantized(float v, const Epilogue& e) {
    constexpr int LOWEST = OUTPUT == Output::s8 ? -128 : 0;
    if (e.divisor != 1.0f) v = __fdiv_rn(v, e.divisor);
    v = fminf(fmaxf(v, (float)(LOWEST - e.zero)), (float)(LOWEST + 255 - e.zero));
    return (u32)(__float2int_rn(v) + e.zero) & 0xFF;
}

template <Activation ACTIVATION>
__device__ __forceinline__ float activated(float v, const Epilogue& e) {
    if constexpr (ACTIVATION == Activation::clip) {
        v = v < e.low ? e.low : v;  // comparisons, not fmaxf, so that NaN stays
        return v > e.high ? e.high : v;
    } else if constexpr (ACTIVATION == Activation::gelu) {
        return 0.5f * v * (1.0f + erff(v * 0.70710678f));
    } else if constexpr (ACTIVATION == Activation::silu) {
        return v / (1.0f + __expf(-v));
    } else {
        return v;
    }
}

// A result as bits of the output's type.
template <Output OUTPUT>
__device__ __forceinline__ u32 stored_bits(float v, const Epilogue& e) {
    if constexpr (OUTPUT == Output::f32) return __float_as_uint(v);
    else if constexpr (sizeof(typename Stored<OUTPUT>::type) == 2) return halves<OUTPUT>(v, 0.0f);
    else return quantized<OUTPUT>(v, e);
}

template <Output OUTPUT>
__device__ __forceinline__ void store_bits(typename Stored<OUTPUT>::type* to, u32 bits) {
    if constexpr (sizeof(*to) == 4) *(u32*)to = bits;
    else if constexpr (sizeof(*to) == 2) to->bits = bits;
    else *to = bits;
}

template <Output OUTPUT>
__device__ __forceinline__ float residual_term(const Epilogue& e, int m, int n) {
    typedef typename Stored<OUTPUT>::type Value;
    Value stored = ((const Value*)e.residual)[m * e.residual_stride + n];
    return (widen(stored) - (float)e.residual_zero) * e.residual_scale;
}

// One sum, its terms read from memory: for kernels that make few sums a thread.
template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL>
__device__ __forceinline__ u32 finished(u32 sum, int m, int n, const Epilogue& e) {
    if (INTEGER && e.offset) sum += __ldg(e.offset + n);
    if constexpr (OUTPUT == Output::s32) {
        return sum;
    } else {
        float scale = e.scale ? __ldg(e.scale + n * e.scale_step) : 1.0f;
        if (e.row_scale) scale *= __ldg(e.row_scale + m);
        float v = (INTEGER ? (float)(int)sum : __uint_as_float(sum)) * scale + (e.bias ? __ldg(e.bias + n) : 0.0f);
        if constexpr (RESIDUAL) v += residual_term<OUTPUT>(e, m, n);
        return stored_bits<OUTPUT>(activated<ACTIVATION>(v, e), e);
    }
}

// --- what belongs to the columns of a tile ----------------------------------------------------------------------------

// In shared memory, filled by THREADS threads: they fetch into registers before the sums are made and put afterwards, so
// that the fetch takes no time of its own.
template <int WIDTH>
struct ColumnTerms {
    float scale[WIDTH], bias[WIDTH];
    int offset[WIDTH];
};

template <int WIDTH, int THREADS>
struct FetchedTerms {
    static constexpr int EACH = (WIDTH + THREADS - 1) / THREADS;
    float scale[EACH], bias[EACH];
    int offset[EACH];

    __device__ __forceinline__ void fetch(int thread, int first_column, const Epilogue& e) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int n = min(first_column + thread + i * THREADS, e.columns - 1);
            scale[i] = e.scale ? __ldg(e.scale + n * e.scale_step) : 1.0f;
            bias[i] = e.bias ? __ldg(e.bias + n) : 0.0f;
            offset[i] = e.offset ? __ldg(e.offset + n) : 0;
        }
    }

    __device__ __forceinline__ void put(int thread, ColumnTerms<WIDTH>& terms) const {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int n = thread + i * THREADS;
            if (n < WIDTH) terms.scale[n] = scale[i], terms.bias[n] = bias[i], terms.offset[n] = offset[i];
        }
    }
};

// --- one strip of a warp: 16 rows and 8 BLOCKS columns ----------------------------------------------------------------

template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int WIDTH>
struct Strip {
    typedef typename Stored<OUTPUT>::type Value;
    static constexpr Output STORED = OUTPUT;
    const Epilogue& e;
    const ColumnTerms<WIDTH>& terms;
    int row, column;   // of this thread's first value; its other row is 8 below
    int inside;        // that column in the tile
    float row_scale[2];

    __device__ __forceinline__ Strip(const Epilogue& e, const ColumnTerms<WIDTH>& terms, int row, int column, int inside)
        : e(e), terms(terms), row(row + threadIdx.x % 32 / 4), column(column + 2 * (threadIdx.x % 4)),
          inside(inside + 2 * (threadIdx.x % 4)) {
        for (int half = 0; half < 2; ++half)
            row_scale[half] = e.row_scale && has_row(half) ? e.row_scale[this->row + 8 * half] : 1.0f;
    }

    __device__ __forceinline__ bool has_row(int half) const { return row + 8 * half < e.rows; }

    __device__ __forceinline__ Value* place(int half, int block) const {
        return (Value*)e.out + (row + 8 * half) * e.out_stride + column + 8 * block;
    }

    // The values of this thread in one block of 8 columns: both columns of the first row, then of the second.
    __device__ __forceinline__ void values(const u32* sums, int block, float (&v)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int n = inside + 8 * block + i % 2;
            float sum = INTEGER ? (float)((int)sums[4 * block + i] + terms.offset[n]) : __uint_as_float(sums[4 * block + i]);
            v[i] = sum * (terms.scale[n] * row_scale[i / 2]) + terms.bias[n];
        }
        if constexpr (RESIDUAL) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int m = row + i / 2 * 8, n = column + 8 * block + i % 2;
                if (has_row(i / 2) && n < e.columns) v[i] += residual_term<OUTPUT>(e, m, n);
            }
        }
#pragma unroll
        for (float& value : v) value = activated<ACTIVATION>(value, e);
    }

    // The same as bits of the output's type.
    __device__ __forceinline__ void results(const u32* sums, int block, u32 (&bits)[4]) const {
        float v[4];
        if constexpr (OUTPUT != Output::s32) values(sums, block, v);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (OUTPUT == Output::s32) bits[i] = sums[4 * block + i] + terms.offset[inside + 8 * block + i % 2];
            else bits[i] = stored_bits<OUTPUT>(v[i], e);
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
__device__ __forceinline__ void store_singly(const u32 (&sums)[4 * BLOCKS], const STRIP& strip) {
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        u32 bits[4];
        strip.results(sums, block, bits);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (strip.has_row(i / 2) && strip.column + 8 * block + i % 2 < strip.e.columns)
                store_bits<STRIP::STORED>(strip.place(i / 2, block) + i % 2, bits[i]);
    }
}

// 32-bit outputs: a thread's two columns as they are; four threads fill a sector of 32 bytes.
template <int BLOCKS, class STRIP>
__device__ __forceinline__ void store_words(const u32 (&sums)[4 * BLOCKS], const STRIP& strip) {
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        u32 bits[4];
        strip.results(sums, block, bits);
        if (strip.has_row(0)) *(uint2*)strip.place(0, block) = make_uint2(bits[0], bits[1]);
        if (strip.has_row(1)) *(uint2*)strip.place(1, block) = make_uint2(bits[2], bits[3]);
    }
}

// 16 bytes a thread: columns 8j .. 8j + 7 of a group of 32 for the j-th of a row.
template <int BLOCKS, Output OUTPUT, class STRIP>
__device__ __forceinline__ void store_halves(const u32 (&sums)[4 * BLOCKS], const STRIP& strip) {
    int lane = threadIdx.x % 4;
#pragma unroll
    for (int group = 0; group < BLOCKS; group += 4) {
        u32 words[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float v[4];
            strip.values(sums, group + i, v);
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

// 16 bytes a thread: columns 16j .. 16j + 15 of a group of 64 for the j-th of a row.
template <int BLOCKS, Output OUTPUT, class STRIP>
__device__ __forceinline__ void store_bytes(const u32 (&sums)[4 * BLOCKS], const STRIP& strip) {
    int lane = threadIdx.x % 4;
#pragma unroll
    for (int group = 0; group < BLOCKS; group += 8) {
        u32 words[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 left[4], right[4];
            strip.results(sums, group + 2 * i, left);
            strip.results(sums, group + 2 * i + 1, right);
            words[0][i] = left[0] | left[1] << 8 | right[0] << 16 | right[1] << 24;
            words[1][i] = left[2] | left[3] << 8 | right[2] << 16 | right[3] << 24;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32(&w)[4] = words[half];
            transpose_among_four(w);  // each word still has two blocks of columns in its halves
            if (strip.has_row(half))
                *(uint4*)(strip.place(half, group) + 14 * lane) =
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
            else store_bytes<BLOCKS, OUTPUT>(sums, strip);
            return;
        }
    }
    store_singly<BLOCKS>(sums, strip);
}

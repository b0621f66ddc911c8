// What becomes of the sums of a matrix product or a convolution before they are stored, in this order:
//
//     v = activation((sum + offset[n]) * scale[n] * scale_by * row_scale[m] + bias[n] + residual[m, n])
//
// A product whose range is asked for (RANGED, of f32) stores v factor[n], and the least and the greatest of it (NaN if
// there is one), and of zero, for every 16 rows and 64 columns.
//
// Output::s32 stores sum + offset[n]. Outputs of 8 bits are levels, and a residual of theirs is added to them as
// onnxruntime's QLinearAdd does, rounding a second time:
//
//     level = saturate(round_half_even(v) + zero)
//     level = saturate(round_half_even(level * level_factor + (residual[m, n] * residual_factor + sum_offset)))
//
// each product and sum rounded once, the other product inside where `residual_last`.
//
// Every thread holds, of each block of 8 columns, columns 2j and 2j + 1 of the rows i and i + 8 of its warp's 16, where
// its lane is 4i + j: so mma.sync and wgmma leave them. The four threads of a row trade values until each has 16 bytes
// side by side to store.
#pragma once

#include "elements.cuh"

typedef unsigned int u32;

enum class Output { s32, f32, f16, bf16, s8, u8 };
enum class Activation { none, clip, gelu, silu };

#ifndef USE_ROW_SCALE
#define USE_ROW_SCALE false
#endif
constexpr bool ROW_SCALE = USE_ROW_SCALE;
#ifndef USE_RANGED
#define USE_RANGED false
#endif
constexpr bool RANGED = USE_RANGED;

struct Epilogue {
    void* out;
    const void* residual;     // of the output's type
    const float* scale;       // one a column, or one for all if scale_step is 0
    const float* row_scale;
    const float* bias;
    const int* offset;
    const unsigned char* offset_zero;  // one, whose negative multiplies the offsets
    const float* scale_by;    // one, that multiplies the scales
    const float* factor;      // of the columns, if RANGED
    float2* ranges;           // (rows / 16, columns / 64), rounded up
    long long out_stride, residual_stride;  // in elements
    int rows, columns, scale_step;
    int zero, residual_last;
    float low, high;
    float level_factor, residual_factor, sum_offset;
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
#if __CUDA_ARCH__ >= 800
    u32 both;
    if constexpr (OUTPUT == Output::bf16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#else
    typename Stored<OUTPUT>::type low, high;
    narrow(first, low);
    narrow(second, high);
    return (u32)low.bits | (u32)high.bits << 16;
#endif
}

template <Output OUTPUT>
constexpr bool IS_LEVEL = sizeof(typename Stored<OUTPUT>::type) == 1;
template <Output OUTPUT>
constexpr float LOWEST = OUTPUT == Output::s8 ? -128.0f : 0.0f;
constexpr float ROUNDING = 12582912.0f;  // 1.5 2^23: adding it rounds to even and leaves the integer in the low bits

// A value within what levels can say, and within the bounds of a clip (infinite where there is none).
template <Output OUTPUT>
__device__ __forceinline__ float saturated(float v, const Epilogue& e) {
    float low = LOWEST<OUTPUT> - (float)e.zero;
    return fminf(fmaxf(v, fmaxf(low, e.low)), fminf(low + 255.0f, e.high));
}

// The nearest level, in the low eight bits; those above mean nothing.
template <Output OUTPUT>
__device__ __forceinline__ u32 level_bits(float v, const Epilogue& e) {
    return __float_as_uint(saturated<OUTPUT>(v, e) + ROUNDING) + e.zero;
}

// The same where a residual's level is added to it.
template <Output OUTPUT>
__device__ __forceinline__ u32 level_bits(float v, float residual, const Epilogue& e) {
    float level = (saturated<OUTPUT>(v, e) + ROUNDING) - ROUNDING + (float)e.zero;
    float inner = e.residual_last ? fmaf(level, e.level_factor, e.sum_offset) : fmaf(residual, e.residual_factor, e.sum_offset);
    v = e.residual_last ? fmaf(residual, e.residual_factor, inner) : fmaf(level, e.level_factor, inner);
    v = fminf(fmaxf(v, LOWEST<OUTPUT>), LOWEST<OUTPUT> + 255.0f);
    return __float_as_uint(v + ROUNDING);
}

// v times the normal distribution's share below v, to 2e-7 of the greater of |v| and 1: erf by Abramowitz and Stegun's
// 7.1.26, whose exponential and reciprocal the GPU has as instructions.
__device__ __forceinline__ float gelu(float v) {
    float x = fabsf(v) * 0.70710678f, t = __fdividef(1.0f, fmaf(0.3275911f, x, 1.0f));
    float tail = fmaf(fmaf(fmaf(fmaf(1.061405429f, t, -1.453152027f), t, 1.421413741f), t, -0.284496736f), t, 0.254829592f);
    tail *= t * __expf(-x * x);  // 1 - erf(x)
    return v * (0.5f * (v < 0.0f ? tail : 2.0f - tail));
}

template <Activation ACTIVATION>
__device__ __forceinline__ float activated(float v, const Epilogue& e) {
    if constexpr (ACTIVATION == Activation::clip) {
        v = v < e.low ? e.low : v;  // comparisons, not fmaxf, so that NaN stays
        return v > e.high ? e.high : v;
    } else if constexpr (ACTIVATION == Activation::gelu) {
        return gelu(v);
    } else if constexpr (ACTIVATION == Activation::silu) {
        return v / (1.0f + __expf(-v));
    } else {
        return v;
    }
}

// A scaled sum as the value that is stored, or whose level is.
template <Output OUTPUT, Activation ACTIVATION, bool RESIDUAL>
__device__ __forceinline__ float finished_value(float v, float residual, const Epilogue& e) {
    if constexpr (RESIDUAL && !IS_LEVEL<OUTPUT>) v += residual;
    return IS_LEVEL<OUTPUT> && ACTIVATION == Activation::clip ? v : activated<ACTIVATION>(v, e);
}

// That value as bits of the output's type.
template <Output OUTPUT, bool RESIDUAL>
__device__ __forceinline__ u32 stored_bits(float v, float residual, const Epilogue& e) {
    if constexpr (OUTPUT == Output::f32) return __float_as_uint(v);
    else if constexpr (!IS_LEVEL<OUTPUT>) return halves<OUTPUT>(v, 0.0f);
    else if constexpr (RESIDUAL) return level_bits<OUTPUT>(v, residual, e);
    else return level_bits<OUTPUT>(v, e);
}

template <Output OUTPUT>
__device__ __forceinline__ void store_bits(typename Stored<OUTPUT>::type* to, u32 bits) {
    if constexpr (sizeof(*to) == 4) *(u32*)to = bits;
    else if constexpr (sizeof(*to) == 2) to->bits = bits;
    else *to = bits;
}

template <Output OUTPUT, bool RESIDUAL>
__device__ __forceinline__ float residual_at(const Epilogue& e, int m, int n) {
    typedef typename Stored<OUTPUT>::type Value;
    if constexpr (!RESIDUAL || OUTPUT == Output::s32) return 0.0f;
    else return widen(((const Value*)e.residual)[m * e.residual_stride + n]);
}

__device__ __forceinline__ int offset_at(const Epilogue& e, int n) {
    int offset = e.offset ? __ldg(e.offset + n) : 0;
    return e.offset_zero ? offset * -(int)__ldg(e.offset_zero) : offset;
}

// What belongs to one column, read from memory: for kernels that make few sums a thread.
struct OneColumn {
    float scale, bias;
    int offset;

    OneColumn() = default;
    __device__ __forceinline__ OneColumn(const Epilogue& e, int n)
        : scale(e.scale ? __ldg(e.scale + n * e.scale_step) : 1.0f), bias(e.bias ? __ldg(e.bias + n) : 0.0f),
          offset(offset_at(e, n)) {
        if (e.scale_by) scale *= __ldg(e.scale_by);
    }
};

// One sum of the column n.
template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL>
__device__ __forceinline__ u32 finished(u32 sum, const OneColumn& column, int m, int n, const Epilogue& e) {
    if constexpr (INTEGER) sum += column.offset;
    if constexpr (OUTPUT == Output::s32) {
        return sum;
    } else {
        float scale = ROW_SCALE ? column.scale * __ldg(e.row_scale + m) : column.scale;
        float v = (INTEGER ? (float)(int)sum : __uint_as_float(sum)) * scale + column.bias;
        float residual = residual_at<OUTPUT, RESIDUAL>(e, m, n);
        return stored_bits<OUTPUT, RESIDUAL>(finished_value<OUTPUT, ACTIVATION, RESIDUAL>(v, residual, e), residual, e);
    }
}

// --- what belongs to the columns of a tile ----------------------------------------------------------------------------

// In shared memory, filled by THREADS threads: they fetch into registers before the sums are made and put afterwards, so
// that the fetch takes no time of its own.
template <int WIDTH>
struct alignas(8) ColumnTerms {
    float scale[WIDTH], bias[WIDTH];
    int offset[WIDTH];
    float factor[RANGED ? WIDTH : 2];
};

template <int WIDTH, int THREADS>
struct FetchedTerms {
    static constexpr int EACH = (WIDTH + THREADS - 1) / THREADS;
    float scale[EACH], bias[EACH], factor[EACH];
    int offset[EACH];

    __device__ __forceinline__ void fetch(int thread, int first_column, const Epilogue& e) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int n = min(first_column + thread + i * THREADS, e.columns - 1);
            OneColumn column(e, n);
            scale[i] = column.scale, bias[i] = column.bias, offset[i] = column.offset;
            factor[i] = RANGED && e.factor ? __ldg(e.factor + n) : 1.0f;
        }
    }

    __device__ __forceinline__ void put(int thread, ColumnTerms<WIDTH>& terms) const {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int n = thread + i * THREADS;
            if (n < WIDTH) terms.scale[n] = scale[i], terms.bias[n] = bias[i], terms.offset[n] = offset[i];
            if (RANGED && n < WIDTH) terms.factor[n] = factor[i];
        }
    }
};

// --- one strip of a warp: 16 rows and 8 BLOCKS columns ----------------------------------------------------------------

template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int WIDTH>
struct Strip {
    typedef typename Stored<OUTPUT>::type Value;
    static constexpr Output STORED = OUTPUT;
    static constexpr bool ADDS = RESIDUAL;
    const Epilogue& e;
    const ColumnTerms<WIDTH>& terms;
    int row, column;   // of this thread's first value; its other row is 8 below
    int inside;        // that column in the tile
    float row_scale[2];
    float least = 0.0f, greatest = 0.0f;  // of what this thread stores

    __device__ __forceinline__ Strip(const Epilogue& e, const ColumnTerms<WIDTH>& terms, int row, int column, int inside)
        : e(e), terms(terms), row(row + threadIdx.x % 32 / 4), column(column + 2 * (threadIdx.x % 4)),
          inside(inside + 2 * (threadIdx.x % 4)) {
        for (int half = 0; half < 2; ++half)
            row_scale[half] = ROW_SCALE && has_row(half) ? e.row_scale[this->row + 8 * half] : 1.0f;
    }

    __device__ __forceinline__ bool has_row(int half) const { return row + 8 * half < e.rows; }

    __device__ __forceinline__ Value* place(int half, int block) const {
        return (Value*)e.out + (row + 8 * half) * e.out_stride + column + 8 * block;
    }

    __device__ __forceinline__ const Value* residual_place(int half, int block) const {
        return (const Value*)e.residual + (row + 8 * half) * e.residual_stride + column + 8 * block;
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
    constexpr int AHEAD = BLOCKS % 16 == 0 ? 8 : 4;
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

// The range of what a warp has stored, for each 64 of its columns the same.
template <int BLOCKS>
__device__ __forceinline__ void store_range(const Epilogue& e, float least, float greatest, int row, int column) {
    static_assert(BLOCKS % 8 == 0, "ranges are of 64 columns");
#pragma unroll
    for (int distance = 16; distance; distance /= 2) {
        least = Least()(least, __shfl_xor_sync(~0u, least, distance));
        greatest = Greatest()(greatest, __shfl_xor_sync(~0u, greatest, distance));
    }
    int lane = threadIdx.x % 32, across = (e.columns + 63) / 64, place = column / 64 + lane;
    if (lane < BLOCKS / 8 && row < e.rows && place < across)
        e.ranges[row / 16 * across + place] = make_float2(least, greatest);
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

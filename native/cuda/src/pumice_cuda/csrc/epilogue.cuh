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
// This is the arithmetic, and what belongs to columns; `strips.cuh` and `neighbours.cuh` store what a warp has.
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
#ifndef USE_OFFSETS
#define USE_OFFSETS true
#endif
constexpr bool OFFSETS = USE_OFFSETS;

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
    return narrow_two<typename Stored<OUTPUT>::type>(first, second);
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
    return __float_as_uint((saturated<OUTPUT>(v, e) + ROUNDING) + (float)e.zero);
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
// 7.1.26 (its coefficients halved), whose exponential and reciprocal the GPU has as instructions.
__device__ __forceinline__ float gelu(float v) {
    float x = fabsf(v) * 0.70710678f, t;  // a reciprocal of its own: others look after subnormal numbers
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(fmaf(0.3275911f, x, 1.0f)));
    float tail = fmaf(fmaf(fmaf(fmaf(0.5307027145f, t, -0.7265760135f), t, 0.7107068705f), t, -0.142248368f), t, 0.127414796f);
    tail *= t * power_of_two(x * x * -kLog2E);  // (1 - erf(x)) / 2
    return v * (v < 0.0f ? tail : 1.0f - tail);
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

// Sums of as many neighbouring columns from n on, finished and stored at once where rows allow it.
template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int COUNT>
__device__ __forceinline__ void store_columns(const u32 (&sums)[COUNT], const OneColumn (&columns)[COUNT], int m, int n,
                                              const Epilogue& e) {
    typedef typename Stored<OUTPUT>::type Result;
    Vector<Result, COUNT> results;
#pragma unroll
    for (int c = 0; c < COUNT; ++c)
        store_bits<OUTPUT>(results.at + c,
                           finished<INTEGER, OUTPUT, ACTIVATION, RESIDUAL>(sums[c], columns[c], m, n + c, e));
    Result* to = (Result*)e.out + m * e.out_stride + n;
    if (e.wide) {
        *(Vector<Result, COUNT>*)to = results;
    } else {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) to[c] = results.at[c];
    }
}

// --- what belongs to the columns of a tile ----------------------------------------------------------------------------

// In shared memory, filled by THREADS threads: they fetch into registers before the sums are made and put afterwards, so
// that the fetch takes no time of its own.
template <int WIDTH>
struct alignas(16) ColumnTerms {
    float scale[WIDTH], bias[WIDTH];
    int offset[WIDTH];
    float factor[RANGED ? WIDTH : 4];
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

// --- the range of what is stored -------------------------------------------------------------------------------------

// Of 16 rows and 8 BLOCKS columns, from what each thread of a warp has seen; for each 64 columns the same.
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

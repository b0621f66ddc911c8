// Elements in memory and in registers: half precision without the toolkit's headers, and accesses of 16 bytes.
//
// Arithmetic is in float; `widen` and `narrow` go between it and what memory holds.
#pragma once

using int64 = long long;

struct float16 {
    unsigned short bits;
};

struct bfloat16 {
    unsigned short bits;
};

template <typename T>
constexpr bool kBrain = false;
template <>
constexpr bool kBrain<bfloat16> = true;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(signed char x) { return x; }
__device__ inline float widen(unsigned char x) { return x; }

__device__ inline float widen(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ inline float widen(bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

__device__ inline void narrow(float x, float &y) { y = x; }

__device__ inline void narrow(float x, float16 &y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

__device__ inline void narrow(float x, bfloat16 &y) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    unsigned bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}

// Two halves in one word, the first below.
template <typename Half>
__device__ inline unsigned narrow_two(float first, float second) {
#if __CUDA_ARCH__ >= 800
    unsigned both;
    if constexpr (kBrain<Half>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#else
    Half low, high;
    narrow(first, low);
    narrow(second, high);
    return unsigned(low.bits) | unsigned(high.bits) << 16;
#endif
}

template <typename Half>
__device__ inline float2 widen_two(unsigned both) {
    if constexpr (kBrain<Half>) return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000)};
    else return {widen(Half{(unsigned short)both}), widen(Half{(unsigned short)(both >> 16)})};
}

// What one access moves, with the alignment that it needs.
template <typename T, int kWide>
struct alignas(sizeof(T) * kWide) Vector {
    T at[kWide];
};

template <typename T>
constexpr int kWidest = 16 / sizeof(T);

template <bool kByTwo, typename T, int kWide>
struct Packed { typedef Vector<T, kWide> type; };
template <typename T, int kWide>
struct Packed<true, T, kWide> { typedef Vector<unsigned, kWide / 2> type; };

// kWide elements as they are in memory; halves by two, in half the registers of halves one by one.
template <typename T, int kWide>
struct Access {
    static constexpr bool kByTwo = sizeof(T) == 2 && kWide % 2 == 0;
    typename Packed<kByTwo, T, kWide>::type words;

    __device__ void fetch(const T *from) { words = *reinterpret_cast<const decltype(words) *>(from); }

    __device__ void values(float *to) const {
        if constexpr (kByTwo) {
#pragma unroll
            for (int w = 0; w < kWide; w += 2) {
                const float2 two = widen_two<T>(words.at[w / 2]);
                to[w] = two.x, to[w + 1] = two.y;
            }
        } else {
#pragma unroll
            for (int w = 0; w < kWide; w++) to[w] = widen(words.at[w]);
        }
    }

    __device__ void take(const float *values) {
        if constexpr (kByTwo) {
#pragma unroll
            for (int w = 0; w < kWide; w += 2) words.at[w / 2] = narrow_two<T>(values[w], values[w + 1]);
        } else {
#pragma unroll
            for (int w = 0; w < kWide; w++) narrow(values[w], words.at[w]);
        }
    }

    // Hides from the compiler what it has made of these, so that it makes it anew and keeps nothing but the words.
    __device__ void forget() {
        if constexpr (kByTwo)
#pragma unroll
            for (int w = 0; w < kWide / 2; w++) asm volatile("" : "+r"(words.at[w]));
    }

    __device__ void put(T *to) const { *reinterpret_cast<decltype(words) *>(to) = words; }
};

template <int kWide, typename T>
__device__ inline void load(const T *from, float *values) {
    Access<T, kWide> access;
    access.fetch(from);
    access.values(values);
}

template <int kWide, typename T>
__device__ inline void store(T *to, const float *values) {
    Access<T, kWide> access;
    access.take(values);
    access.put(to);
}

constexpr float kLog2E = 1.4426950408889634f;

// To 2 of the last places; results below the normal numbers are zero.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// NaN stays NaN.
struct Greatest {
    __device__ static float neutral() { return __int_as_float(0xff800000); }
    __device__ float operator()(float a, float b) const {
#if __CUDA_ARCH__ >= 800
        asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
        return a;
#else
        return a > b || a != a ? a : b;
#endif
    }
};

struct Least {
    __device__ static float neutral() { return __int_as_float(0x7f800000); }
    __device__ float operator()(float a, float b) const {
#if __CUDA_ARCH__ >= 800
        asm("min.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
        return a;
#else
        return a < b || a != a ? a : b;
#endif
    }
};

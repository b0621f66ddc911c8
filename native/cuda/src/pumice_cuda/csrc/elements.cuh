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

// What one access moves, with the alignment that it needs.
template <typename T, int kWide>
struct alignas(sizeof(T) * kWide) Vector {
    T at[kWide];
};

template <typename T>
constexpr int kWidest = 16 / sizeof(T);

template <int kWide, typename T>
__device__ inline void load(const T *from, float *values) {
    const Vector<T, kWide> vector = *reinterpret_cast<const Vector<T, kWide> *>(from);
#pragma unroll
    for (int w = 0; w < kWide; w++) values[w] = widen(vector.at[w]);
}

template <int kWide, typename T>
__device__ inline void store(T *to, const float *values) {
    Vector<T, kWide> vector;
#pragma unroll
    for (int w = 0; w < kWide; w++) narrow(values[w], vector.at[w]);
    *reinterpret_cast<Vector<T, kWide> *>(to) = vector;
}

// NaN stays NaN.
struct Greatest {
    __device__ static float neutral() { return __int_as_float(0xff800000); }
    __device__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

struct Least {
    __device__ static float neutral() { return __int_as_float(0x7f800000); }
    __device__ float operator()(float a, float b) const { return a < b || a != a ? a : b; }
};

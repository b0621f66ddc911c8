// Levels of 8 bits: x / scale, clamped and rounded to even, and what DynamicQuantizeLinear makes of a range.
//
// The quotient is the correctly rounded one, so that integers agree with the CPU's bit for bit, without a division: with
// y = RN(1 / scale), two steps q <- q + y (x - q scale) round to RN(x / scale) (Markstein 1990, theorem 8.1) while nothing
// overflows or becomes subnormal; scales beyond 2^+-100, which no data has, are divided by. Adding 1.5 2^23 rounds to
// even and leaves the integer in the low bits.
#pragma once

#include "elements.cuh"

// A scale, ready to divide by.
struct Divisor {
    float scale, inverse, most;
    bool fast;

    __device__ explicit Divisor(float scale) : scale(scale), inverse(1 / scale), most(1024 * scale) {
        fast = scale > 0x1p-100f && scale < 0x1p100f;
    }

    // x / scale where that is less than 1024 in magnitude, and what saturates alike where it is not.
    __device__ float quotient(float x) const {
        if (!fast) return x / scale;
        x = fminf(fmaxf(x, -most), most);
        float q = x * inverse;
        q = fmaf(fmaf(-q, scale, x), inverse, q);
        return fmaf(fmaf(-q, scale, x), inverse, q);
    }
};

// What values may become: stored integers from low to high.
struct Levels {
    float low, high;
    int zero;

    __device__ Levels(int low, int high, int zero) : low(low - zero), high(high - zero), zero(zero) {}

    __device__ float clamped(float quotient) const { return fminf(fmaxf(quotient, low), high); }

    // The bits of the result are its low eight; those above mean nothing.
    __device__ int stored(float quotient) const { return __float_as_int(clamped(quotient) + 12582912.0f) + zero; }
};

__device__ inline unsigned four_bytes(const int *levels) {
    const unsigned low = __byte_perm(levels[0], levels[1], 0x0040), high = __byte_perm(levels[2], levels[3], 0x0040);
    return __byte_perm(low, high, 0x5410);
}

// As DynamicQuantizeLinear: uint8 over the range, which holds zero.
struct Dynamic {
    float scale;
    int zero;

    __device__ Dynamic(float low, float high) {
        scale = (high - low) / 255;
        if (!(scale > 0)) scale = 1;
        zero = fminf(fmaxf(rintf(-low / scale), 0), 255);
    }
};

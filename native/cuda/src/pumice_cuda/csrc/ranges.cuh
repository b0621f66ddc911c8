// The range of values that will be quantized, the least and the greatest of them and zero: noted as they are made, a range
// for each block or strip of a result, and put together by who quantizes. NaN, once seen, is both.
#pragma once

#include "teams.cuh"

struct Range {
    float least = 0, greatest = 0;  // zero is inside

    __device__ void see(float value) { see(value, value); }
    __device__ void see(float low, float high) {
        least = Least()(least, low);
        greatest = Greatest()(greatest, high);
    }

    // Of all threads of the block.
    template <int kThreads>
    __device__ Range whole() const {
        Range found;
        found.least = across<kThreads>(least, Least());
        found.greatest = across<kThreads>(greatest, Greatest());
        return found;
    }

    template <int kThreads>
    __device__ void write(float2 *to) const {
        const Range found = whole<kThreads>();
        if (threadIdx.x == 0) *to = make_float2(found.least, found.greatest);
    }
};

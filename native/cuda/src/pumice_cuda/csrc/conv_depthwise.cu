// Depthwise convolutions, channels last: every channel of a pixel of the output is the product of its own window and its
// own weights (taps, channels). Reading the image is what takes the time, so a thread makes SPAN neighbouring pixels of
// CHANNELS channels, whose windows overlap in the cache, and the neighbours in a warp take the channels beside.
#include "operands.cuh"

#ifndef USE_CHANNELS
#define USE_CHANNELS 4
#endif
constexpr int CHANNELS = USE_CHANNELS, SPAN = 4;

struct Window {
    int height, width, out_height, out_width, stride_y, stride_x, before_y, before_x, dilation_y, dilation_x;
    int taps_y, taps_x, channels, images;
    int padding;  // of integers
};

template <bool SUMS>
struct Number { typedef float type; };
template <>
struct Number<true> { typedef int type; };
typedef typename Number<INTEGER>::type Sum;

template <Element E>
struct Stores { typedef float16 type; };
template <>
struct Stores<Element::bf16> { typedef bfloat16 type; };
template <>
struct Stores<Element::s8> { typedef signed char type; };
template <>
struct Stores<Element::u8> { typedef unsigned char type; };
template <>
struct Stores<Element::f32> { typedef float type; };
typedef typename Stores<ELEMENT>::type Value;
typedef typename Stores<ELEMENT == Element::u8 ? Element::s8 : ELEMENT>::type Weight;

template <typename T>
__device__ __forceinline__ Sum number(T stored) {
    if constexpr (INTEGER) return stored;
    else return widen(stored);
}

__device__ __forceinline__ void add_tap(Sum (&sums)[SPAN][CHANNELS], const Value* image, const Window& w,
                                        const Vector<Weight, CHANNELS>& weights, int y, int x) {
#pragma unroll
    for (int i = 0; i < SPAN; ++i) {
        int at = x + i * w.stride_x;
        if ((unsigned)y < (unsigned)w.height && (unsigned)at < (unsigned)w.width) {
            auto values = *(const Vector<Value, CHANNELS>*)(image + (long long)(y * w.width + at) * w.channels);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) sums[i][c] += number(values.at[c]) * number(weights.at[c]);
        } else if (INTEGER) {
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) sums[i][c] += w.padding * number(weights.at[c]);
        }
    }
}

__device__ __forceinline__ u32 bits_of(int sum) { return sum; }
__device__ __forceinline__ u32 bits_of(float sum) { return __float_as_uint(sum); }

extern "C" __global__ void __launch_bounds__(128)
    conv(const Value* images, const Weight* weights, const __grid_constant__ Window w, const __grid_constant__ Epilogue e) {
    int groups = w.channels / CHANNELS, spans = (w.out_width + SPAN - 1) / SPAN;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (long long)groups * spans * w.out_height * w.images) return;
    int channel = index % groups * CHANNELS, first = index / groups % spans * SPAN;
    int line = index / groups / spans, out_y = line % w.out_height;
    const Value* image = images + (long long)(line / w.out_height) * w.height * w.width * w.channels + channel;
    int y = out_y * w.stride_y - w.before_y, x = first * w.stride_x - w.before_x;
    Sum sums[SPAN][CHANNELS] = {};
    for (int tap_y = 0; tap_y < w.taps_y; ++tap_y)
        for (int tap_x = 0; tap_x < w.taps_x; ++tap_x) {
            auto tap = *(const Vector<Weight, CHANNELS>*)(weights + (tap_y * w.taps_x + tap_x) * w.channels + channel);
            add_tap(sums, image, w, tap, y + tap_y * w.dilation_y, x + tap_x * w.dilation_x);
        }
    typedef typename Stored<OUTPUT>::type Result;
#pragma unroll
    for (int i = 0; i < SPAN; ++i) {
        if (first + i >= w.out_width) return;
        int m = line * w.out_width + first + i;
        Vector<Result, CHANNELS> results;
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            u32 bits = finished<INTEGER, OUTPUT, ACTIVATION, RESIDUAL>(bits_of(sums[i][c]), m, channel + c, e);
            store_bits<OUTPUT>(results.at + c, bits);
        }
        Result* to = (Result*)e.out + m * e.out_stride + channel;
        if (e.wide) {
            *(Vector<Result, CHANNELS>*)to = results;
        } else {
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) to[c] = results.at[c];
        }
    }
}

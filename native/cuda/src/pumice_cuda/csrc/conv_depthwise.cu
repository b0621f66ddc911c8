// Depthwise convolutions, channels last: every channel of a pixel of the output is the product of its own window and its
// own weights (taps, channels). A thread makes SPAN neighbouring pixels of CHANNELS channels: what their windows share
// of a line it reads once, and the neighbours in a warp take the channels beside.
#include "operands.cuh"

#ifndef USE_CHANNELS
#define USE_CHANNELS 4
#define USE_TAPS 3
#define USE_STRIDE 1
#endif
// TAPS across a window are taken together, all of them where they are neighbours; STRIDE is the step across.
constexpr int CHANNELS = USE_CHANNELS, SPAN = 4, TAPS = USE_TAPS, STRIDE = USE_STRIDE;
constexpr int READ = (SPAN - 1) * STRIDE + TAPS;

struct Window {
    int height, width, out_height, out_width, stride_y, stride_x, before_y, before_x, dilation_y, dilation_x;
    int taps_y, taps_x, channels, images;
    int padding;  // of integers; 0 for floats
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

// TAPS neighbouring taps of a line: the pixels from (y, x) on.
__device__ __forceinline__ void add_line(Sum (&sums)[SPAN][CHANNELS], const Value* image, const Window& w,
                                         const Weight* weights, int y, int x) {
    Sum pixels[READ][CHANNELS];
    bool line = (unsigned)y < (unsigned)w.height;
#pragma unroll
    for (int i = 0; i < READ; ++i) {
        bool there = line && (unsigned)(x + i) < (unsigned)w.width;
        Vector<Value, CHANNELS> values;
        if (there) values = *(const Vector<Value, CHANNELS>*)(image + (long long)(y * w.width + x + i) * w.channels);
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) pixels[i][c] = there ? number(values.at[c]) : (Sum)w.padding;
    }
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) {
        auto tap_weights = *(const Vector<Weight, CHANNELS>*)(weights + tap * w.channels);
#pragma unroll
        for (int i = 0; i < SPAN; ++i)
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) sums[i][c] += pixels[i * STRIDE + tap][c] * number(tap_weights.at[c]);
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
        for (int tap_x = 0; tap_x < w.taps_x; tap_x += TAPS)
            add_line(sums, image, w, weights + (tap_y * w.taps_x + tap_x) * w.channels + channel, y + tap_y * w.dilation_y,
                     x + tap_x * w.dilation_x);
    OneColumn columns[CHANNELS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) columns[c] = OneColumn(e, channel + c);
    typedef typename Stored<OUTPUT>::type Result;
#pragma unroll
    for (int i = 0; i < SPAN; ++i) {
        if (first + i >= w.out_width) return;
        int m = line * w.out_width + first + i;
        Vector<Result, CHANNELS> results;
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            u32 bits = finished<INTEGER, OUTPUT, ACTIVATION, RESIDUAL>(bits_of(sums[i][c]), columns[c], m, channel + c, e);
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

// Depthwise convolutions, channels last: every channel of a pixel of the output is the product of its own window and its
// own weights. A thread makes SPAN neighbouring pixels of CHANNELS channels: what their windows share of a line it reads
// once, and the neighbours in a warp take the channels beside.
//
// Bytes of four channels are turned within a thread, four pixels at a time, so that a word holds neighbours of one
// channel, and four taps are one instruction (dp4a). Their weights are words of four taps, zero behind the last:
// (lines of the window, words of a line, channels). Other weights are (taps, channels).
#include "operands.cuh"
#include "overlapping.cuh"

#ifndef USE_CHANNELS
#define USE_CHANNELS 4
#define USE_TAPS 3
#define USE_STRIDE 1
#endif
// TAPS across a window are taken together, all of them where they are neighbours; STRIDE is the step across.
constexpr int CHANNELS = USE_CHANNELS, SPAN = 4, TAPS = USE_TAPS, STRIDE = USE_STRIDE;
constexpr int READ = (SPAN - 1) * STRIDE + TAPS;
constexpr bool TURNED = INTEGER && CHANNELS == 4;

struct Window {
    int height, width, out_height, out_width, stride_y, stride_x, before_y, before_x, dilation_y, dilation_x;
    int taps_y, taps_x, channels;
    int blocks;   // of an image
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

// Words of four channels of one pixel each as words of four pixels of one channel each.
__device__ __forceinline__ void turn(u32 (&w)[4]) {
    u32 first = __byte_perm(w[0], w[1], 0x5140), second = __byte_perm(w[0], w[1], 0x7362);
    u32 third = __byte_perm(w[2], w[3], 0x5140), fourth = __byte_perm(w[2], w[3], 0x7362);
    w[0] = __byte_perm(first, third, 0x5410), w[1] = __byte_perm(first, third, 0x7632);
    w[2] = __byte_perm(second, fourth, 0x5410), w[3] = __byte_perm(second, fourth, 0x7632);
}

// sum + four products, of bytes of the images' type and signed ones.
__device__ __forceinline__ int add_four(u32 pixels, u32 weights, int sum) {
    if constexpr (ELEMENT == Element::u8)
        asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(pixels), "r"(weights));
    else
        asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(pixels), "r"(weights));
    return sum;
}

// The same of bytes turned. What is read behind the last pixel meets weights of zero.
__device__ __forceinline__ void add_turned_line(Sum (&sums)[SPAN][CHANNELS], const Value* image, const Window& w,
                                                const u32* weights, int y, int x) {
    constexpr int GROUPS = (READ + 3) / 4, WORDS = (TAPS + 3) / 4;
    u32 pixels[GROUPS + 1][4] = {};  // [four pixels][pixel, then channel]
    bool line = (unsigned)y < (unsigned)w.height;
    const Value* from = image + (y * w.width + x) * w.channels;
#pragma unroll
    for (int i = 0; i < READ; ++i) {
        u32 word = (w.padding & 0xFF) * 0x01010101u;
        if (line && (unsigned)(x + i) < (unsigned)w.width) word = *(const u32*)(from + i * w.channels);
        pixels[i / 4][i % 4] = word;
    }
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) turn(pixels[group]);
#pragma unroll
    for (int word = 0; word < WORDS; ++word) {
        const auto four = *(const Vector<u32, 4>*)(weights + word * w.channels);
#pragma unroll
        for (int i = 0; i < SPAN; ++i) {
            constexpr u32 SHIFTS[4] = {0x3210, 0x4321, 0x5432, 0x6543};
            const int at = i * STRIDE + 4 * word;
            if (at >= READ) continue;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c)
                sums[i][c] = add_four(__byte_perm(pixels[at / 4][c], pixels[at / 4 + 1][c], SHIFTS[at % 4]), four.at[c],
                                      sums[i][c]);
        }
    }
}

__device__ __forceinline__ u32 bits_of(int sum) { return sum; }
__device__ __forceinline__ u32 bits_of(float sum) { return __float_as_uint(sum); }

extern "C" __global__ void __launch_bounds__(128)
    conv(const Value* images, const Weight* weights, const __grid_constant__ Window w, const __grid_constant__ Epilogue e) {
    let_next_kernel_start();
    wait_for_kernel_before();
    unsigned groups = w.channels / CHANNELS, spans = (w.out_width + SPAN - 1) / SPAN;
    unsigned number = blockIdx.x / w.blocks, index = blockIdx.x % w.blocks * blockDim.x + threadIdx.x;
    unsigned place = index / groups, out_y = place / spans;
    if (out_y >= w.out_height) return;
    int channel = index % groups * CHANNELS, first = place % spans * SPAN, line = number * w.out_height + out_y;
    const Value* image = images + (long long)number * w.height * w.width * w.channels + channel;
    int y = out_y * w.stride_y - w.before_y, x = first * w.stride_x - w.before_x;
    Sum sums[SPAN][CHANNELS] = {};
    if constexpr (TURNED) {
        const u32* words = (const u32*)weights + channel;
        int step = (TAPS + 3) / 4 * w.channels, pieces = w.taps_x / TAPS;
#pragma unroll 3
        for (int tap_y = 0; tap_y < w.taps_y; ++tap_y)
            for (int piece = 0; piece < pieces; ++piece, words += step)
                add_turned_line(sums, image, w, words, y + tap_y * w.dilation_y, x + piece * TAPS * w.dilation_x);
    } else {
        for (int tap_y = 0; tap_y < w.taps_y; ++tap_y)
            for (int tap_x = 0; tap_x < w.taps_x; tap_x += TAPS)
                add_line(sums, image, w, weights + (tap_y * w.taps_x + tap_x) * w.channels + channel,
                         y + tap_y * w.dilation_y, x + tap_x * w.dilation_x);
    }
    OneColumn columns[CHANNELS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) columns[c] = OneColumn(e, channel + c);
#pragma unroll
    for (int i = 0; i < SPAN; ++i) {
        if (first + i >= w.out_width) return;
        u32 bits[CHANNELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) bits[c] = bits_of(sums[i][c]);
        store_columns<INTEGER, OUTPUT, ACTIVATION, RESIDUAL>(bits, columns, line * w.out_width + first + i, channel, e);
    }
}

// Depthwise convolutions of floats, channels last, whose taps are neighbours: every channel of a pixel of the output is
// the product of its own window and its own weights.
//
// A thread makes SPAN neighbouring pixels of each of LINES lines, of CHANNELS channels. It reads a line of the image once
// for all lines of the output, and a pixel once for all pixels, that need it. Threads of a block take LANES pieces of
// channels, then those of DOWN squares below each other, then those to the right: what windows of different threads share
// comes from the first cache. Weights are (taps, channels).
#ifndef USE_ELEMENT
#define USE_ELEMENT f32
#define USE_OUTPUT f32
#define USE_ACTIVATION none
#define USE_RESIDUAL false
#endif
#ifndef USE_CHANNELS
#define USE_CHANNELS 4
#define USE_LANES 8
#define USE_LINES 4
#define USE_TAPS_Y 3
#define USE_TAPS_X 3
#define USE_STRIDE_Y 1
#define USE_STRIDE_X 1
#endif
#include "operands.cuh"
#include "overlapping.cuh"

constexpr int THREADS = 256, CHANNELS = USE_CHANNELS, LANES = USE_LANES, SPAN = 2, LINES = USE_LINES, DOWN = 4 / LINES;
constexpr int TAPS_Y = USE_TAPS_Y, TAPS_X = USE_TAPS_X, STRIDE_Y = USE_STRIDE_Y, STRIDE_X = USE_STRIDE_X;
constexpr int READ_LINES = (LINES - 1) * STRIDE_Y + TAPS_Y, READ_PIXELS = (SPAN - 1) * STRIDE_X + TAPS_X;
static_assert(!INTEGER, "bytes have a kernel of their own");

struct Window {
    int height, width, out_height, out_width, before_y, before_x, channels;
    int blocks, pieces;  // of all places of an image, for LANES pieces of channels; such groups of pieces
};

typedef typename Stored<ELEMENT == Element::f32 ? Output::f32 : ELEMENT == Element::bf16 ? Output::bf16 : Output::f16>::type
    Value;
typedef Access<Value, CHANNELS> Piece;

// Adds a line of an image, of READ_PIXELS pixels, to the sums of all lines of the output whose windows it is in.
__device__ __forceinline__ void add_line(float (&sums)[LINES][SPAN][CHANNELS], const Piece (&pixels)[READ_PIXELS],
                                         const Piece (&weights)[TAPS_Y][TAPS_X], int line) {
#pragma unroll
    for (int out = 0; out < LINES; ++out) {
        const int tap_y = line - out * STRIDE_Y;
        if (tap_y < 0 || tap_y >= TAPS_Y) continue;
#pragma unroll
        for (int i = 0; i < SPAN * TAPS_X; ++i) {
            const int tap_x = i % TAPS_X, to = i / TAPS_X;
            float values[CHANNELS], factors[CHANNELS];
            pixels[to * STRIDE_X + tap_x].values(values);
            weights[tap_y][tap_x].values(factors);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) sums[out][to][c] = fmaf(values[c], factors[c], sums[out][to][c]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    conv(const Value* images, const Value* weights, const __grid_constant__ Window w, const __grid_constant__ Epilogue e) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int blocks = w.blocks * w.pieces, number = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const int channel = (block % w.pieces * LANES + threadIdx.x % LANES) * CHANNELS;
    const int place = block / w.pieces * (THREADS / LANES) + threadIdx.x / LANES;
    const int across = (w.out_width + SPAN - 1) / SPAN;
    const int out_y = (place / (DOWN * across) * DOWN + place % DOWN) * LINES, out_x = place / DOWN % across * SPAN;
    if (out_y >= w.out_height || channel >= w.channels) return;
    Piece of_taps[TAPS_Y][TAPS_X];
#pragma unroll
    for (int tap = 0; tap < TAPS_Y * TAPS_X; ++tap)
        of_taps[tap / TAPS_X][tap % TAPS_X].fetch(weights + tap * w.channels + channel);
    const int y = out_y * STRIDE_Y - w.before_y, x = out_x * STRIDE_X - w.before_x;
    const Value* image = images + (long long)number * w.height * w.width * w.channels + channel;
    float sums[LINES][SPAN][CHANNELS] = {};
#pragma unroll
    for (int line = 0; line < READ_LINES; ++line) {
        const bool there = (unsigned)(y + line) < (unsigned)w.height;
        Piece pixels[READ_PIXELS] = {};
#pragma unroll
        for (int i = 0; i < READ_PIXELS; ++i)
            if (there && (unsigned)(x + i) < (unsigned)w.width)
                pixels[i].fetch(image + (long long)((y + line) * w.width + x + i) * w.channels);
        add_line(sums, pixels, of_taps, line);
    }
    OneColumn columns[CHANNELS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) columns[c] = OneColumn(e, channel + c);
#pragma unroll
    for (int i = 0; i < LINES * SPAN; ++i) {
        const int at_y = out_y + i / SPAN, at_x = out_x + i % SPAN;
        if (at_y < w.out_height && at_x < w.out_width)
            store_columns<INTEGER, OUTPUT, ACTIVATION, RESIDUAL>((const u32(&)[CHANNELS])sums[i / SPAN][i % SPAN], columns,
                                                                 (number * w.out_height + at_y) * w.out_width + at_x,
                                                                 channel, e);
    }
}

// since: sm_80
// The first convolution of a network of integers: images of at most four channels, in any layout. A block copies the
// pixels under its rows of output into shared memory, four bytes a pixel, and there a row of a window is a row of memory:
// what a thread needs of A (32 bytes of K, eight pixels) are words that it reads where they are, at pixel x s + t, and
// the eight times four lanes of a warp read neighbouring words. Weights (outputs, rows of the window, eight pixels, four
// channels), zero where the window ends, stay in shared memory in the order in which lanes want them.
#include "operands.cuh"
#include "overlapping.cuh"

#ifndef USE_ROWS
#define USE_ROWS 7
#define USE_STRIDE 2
#endif
// Of the window, at most eight pixels across.
constexpr int ROWS = USE_ROWS, STRIDE = USE_STRIDE;
// A warp makes 16 neighbouring pixels of one line by OUTPUTS outputs; a block STRIPS of them by LINES lines.
constexpr int OUTPUTS = 64, STRIPS = 4, LINES = 4, WARPS = 8, PIXELS = 16;
constexpr int ACROSS = STRIPS * PIXELS;
constexpr int READ_LINES = (LINES - 1) * STRIDE + ROWS, READ_PIXELS = (ACROSS - 1) * STRIDE + 8;

typedef typename Stored<ELEMENT == Element::u8 ? Output::u8 : Output::s8>::type Value;

struct Window {
    int height, width, out_height, out_width, before_y, before_x;
    int channels, padding;
    long long image_step, channel_step, line_step, pixel_step;  // in bytes
};

__device__ __forceinline__ void multiply_add(u32* sums, const u32 (&a)[4], uint2 b) {
    if constexpr (ELEMENT == Element::u8)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

__device__ __forceinline__ u32 with_byte(u32 word, int place, unsigned char byte) {
    u32 others = 0x3210 & ~(0xF << 4 * place);
    return __byte_perm(word, byte, others | 4 << 4 * place);
}

// Pixels from (y, x) on as words of four channels, those that are missing as padding: their weights are zero.
__device__ __forceinline__ void read_pixels(u32* to, const Value* image, const Window& w, int y, int x) {
    for (int i = threadIdx.x; i < READ_LINES * READ_PIXELS; i += 32 * WARPS) {
        int at_y = y + i / READ_PIXELS, at_x = x + i % READ_PIXELS;
        bool there = (unsigned)at_y < (unsigned)w.height && (unsigned)at_x < (unsigned)w.width;
        const Value* from = image + at_y * w.line_step + at_x * w.pixel_step;
        u32 word = (w.padding & 0xFF) * 0x01010101u;
#pragma unroll
        for (int c = 0; c < 4; ++c)
            if (there && c < w.channels) word = with_byte(word, c, from[c * w.channel_step]);
        to[i] = word;
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 2)
    conv(const Value* images, const uint2* weights, const __grid_constant__ Window w, const __grid_constant__ Epilogue e) {
    let_next_kernel_start();
    wait_for_kernel_before();
    __shared__ u32 pixels[READ_LINES * READ_PIXELS];
    __shared__ uint2 kernel[ROWS * OUTPUTS / 8 * 32];  // [row][block of 8 outputs][lane]
    __shared__ ColumnTerms<OUTPUTS> terms;
    int across = (w.out_width + ACROSS - 1) / ACROSS, down = (w.out_height + LINES - 1) / LINES;
    int first_x = blockIdx.x % across * ACROSS, first_y = blockIdx.x / across % down * LINES;
    int image = blockIdx.x / across / down, column = blockIdx.y * OUTPUTS;
    FetchedTerms<OUTPUTS, 32 * WARPS> fetched;
    fetched.fetch(threadIdx.x, column, e);
    for (int i = threadIdx.x; i < ROWS * OUTPUTS * 4; i += 32 * WARPS)
        kernel[i] = weights[blockIdx.y * ROWS * OUTPUTS * 4 + i];
    read_pixels(pixels, images + image * w.image_step, w, first_y * STRIDE - w.before_y, first_x * STRIDE - w.before_x);
    fetched.put(threadIdx.x, terms);
    __syncthreads();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int part = warp; part < STRIPS * LINES; part += WARPS) {
        int y = first_y + part / STRIPS, x = first_x + part % STRIPS * PIXELS;
        if (y >= w.out_height || x >= w.out_width) continue;
        const u32* from = pixels + part / STRIPS * STRIDE * READ_PIXELS + (part % STRIPS * PIXELS + lane / 4) * STRIDE + lane % 4;
        u32 sums[OUTPUTS / 2] = {};
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            const u32* at = from + row * READ_PIXELS;
            const u32 a[4] = {at[0], at[8 * STRIDE], at[4], at[8 * STRIDE + 4]};
#pragma unroll
            for (int block = 0; block < OUTPUTS / 8; ++block)
                multiply_add(sums + 4 * block, a, kernel[(row * (OUTPUTS / 8) + block) * 32 + lane]);
        }
        Epilogue strip = e;  // ends where the line of pixels does
        int first = (image * w.out_height + y) * w.out_width;
        strip.rows = first + w.out_width;
        store_strip<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, OUTPUTS / 8>(sums, strip, terms, first + x, column, 0);
    }
}

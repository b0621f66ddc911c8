// since: sm_80
// Convolutions from Ampere on, channels last and in groups: the implicit product of windows (a row for every output
// pixel, its columns taps by channels) and weights (outputs, taps, channels of a group); `mainloop_sm80.cuh` is the loop.
// Every thread follows the tap and channel of its place in K. Floats are zero outside the image; bytes are read from
// `padding`, 16 bytes for each thread of the value that stands there: where all read the same, they wait for each other.
// Channels of a group are a multiple of ACCESS bytes, whole pieces.
#include "mainloop_sm80.cuh"

struct Window {
    int height, width, out_height, out_width, stride_y, stride_x, before_y, before_x, dilation_y, dilation_x;
    int taps_x, taps;
    int pixel_bytes, group_bytes;  // of all channels, and of a group's
    int group_columns;             // outputs of a group
};

struct WindowRows {
    static constexpr int COUNT = PIECES<HEIGHT>;
    const Window& w;
    const unsigned char *images, *padding;
    const unsigned char* image[COUNT];  // of the row's pixel, the group's first channel
    int y[COUNT], x[COUNT];             // where its window begins
    int channel, tap, tap_x, tap_y;     // `channel` in bytes

    __device__ __forceinline__ WindowRows(const Window& w, const unsigned char* images, const unsigned char* padding,
                                          int rows, int first_row)
        : w(w), images(images), padding(padding + 16 * threadIdx.x), channel(threadIdx.x % PIECES_PER_ROW * ACCESS), tap(0), tap_x(0), tap_y(0) {
        int row = first_row + threadIdx.x / PIECES_PER_ROW;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            int pixel = min(row + i * ROWS_APART, rows - 1), line = pixel / w.out_width;
            x[i] = pixel % w.out_width * w.stride_x - w.before_x;
            y[i] = line % w.out_height * w.stride_y - w.before_y;
            image[i] = images + (long long)(line / w.out_height) * w.height * w.width * w.pixel_bytes;
        }
        wrap();
    }
    __device__ __forceinline__ void wrap() {
        while (channel >= w.group_bytes) {
            channel -= w.group_bytes;
            ++tap;
            if (++tap_x == w.taps_x) tap_x = 0, ++tap_y;
        }
    }
    __device__ __forceinline__ void advance(int steps = 1) {
        channel += steps * STEP_BYTES;
        wrap();
    }
    __device__ __forceinline__ Piece piece(int i) const {
        int at_y = y[i] + tap_y * w.dilation_y, at_x = x[i] + tap_x * w.dilation_x, inside = tap < w.taps ? ACCESS : 0;
        if ((unsigned)at_y >= (unsigned)w.height || (unsigned)at_x >= (unsigned)w.width)
            return {padding, INTEGER ? inside : 0};
        return {image[i] + (long long)(at_y * w.width + at_x) * w.pixel_bytes + channel, inside};
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    conv(const unsigned char* images, const unsigned char* weights, const unsigned char* padding,
         const __grid_constant__ Window w, const __grid_constant__ Epilogue e) {
    int row = blockIdx.x / SPLITS * HEIGHT, inside = blockIdx.y * WIDTH, first = blockIdx.z * w.group_columns;
    int bytes = w.taps * w.group_bytes;
    Epilogue of_group = e;
    of_group.columns = first + w.group_columns;
    multiply_tile(WindowRows(w, images + blockIdx.z * w.group_bytes, padding, e.rows, row),
                  MatrixRows<WIDTH>(weights + (long long)first * bytes, bytes, w.group_columns, bytes, inside),
                  (bytes + STEP_BYTES - 1) / STEP_BYTES, of_group, row, first + inside);
}

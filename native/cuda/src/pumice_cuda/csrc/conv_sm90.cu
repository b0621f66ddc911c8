// architectures: sm_90a
// Convolutions on Hopper, channels last: the implicit product of windows (a row for every output pixel, its columns taps
// by channels) and weights (outputs, taps, channels). The copy engine gathers one tap of a tile's windows at a time;
// `mainloop_sm90.cuh` is the loop. Steps of K are taps times pieces of 128 bytes of channels.
#include "mainloop_sm90.cuh"

struct Window {
    int out_height, out_width, stride_y, stride_x, before_y, before_x, dilation_y, dilation_x;
    int taps_x, pieces;  // taps across a window; steps a tap
};

template <class C>
struct Windows {
    const TensorMap *image_map, *weight_map;
    const Window& w;
    int x, y, image;  // where the window of the tile's first pixel begins
    int piece, tap_x, tap_y;

    __device__ __forceinline__ Windows(const TensorMap* images, const TensorMap* weights, const Window& window)
        : image_map(images), weight_map(weights), w(window) {}

    __device__ __forceinline__ void prefetch() const {
        prefetch_map(image_map);
        prefetch_map(weight_map);
    }
    __device__ __forceinline__ void begin(int pixel, int step) {
        int line = pixel / w.out_width, tap = step / w.pieces;
        x = pixel % w.out_width * w.stride_x - w.before_x;
        y = line % w.out_height * w.stride_y - w.before_y;
        image = line / w.out_height;
        piece = step % w.pieces, tap_x = tap % w.taps_x, tap_y = tap / w.taps_x;
    }
    __device__ __forceinline__ void advance() {
        if (++piece < w.pieces) return;
        piece = 0;
        if (++tap_x < w.taps_x) return;
        tap_x = 0, ++tap_y;
    }
    __device__ __forceinline__ void copy_a(u32 to, u64* barrier) const {
        copy_pixels(to, image_map, barrier, piece * C::STEP, x, y, image, tap_x * w.dilation_x, tap_y * w.dilation_y);
    }
    __device__ __forceinline__ void copy_b(u32 to, u64* barrier, int column) const {
        copy_rows<C>(to, weight_map, barrier, piece * C::STEP, tap_y * w.taps_x + tap_x, column);
    }
};

extern "C" __global__ void __launch_bounds__(Chosen::THREADS, Chosen::TOGETHER)
    conv(const __grid_constant__ TensorMap images, const __grid_constant__ TensorMap weights,
         const __grid_constant__ Window window, const __grid_constant__ Epilogue e, int down, int across, int steps) {
    multiply_tiles<Chosen>(Windows<Chosen>(&images, &weights, window), Tiles{down, across}, steps, e);
}

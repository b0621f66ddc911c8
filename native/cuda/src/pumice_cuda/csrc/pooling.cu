// Maxima over the windows of images, channels last: y[n, y, x, c] = max of image[n, y s + t d - p, c] over the taps t
// inside the image; NaN wins. A thread has kWide neighbouring channels of one output pixel, 16 bytes where they allow.
#include "elements.cuh"

struct Window {
    int height, width, out_height, out_width, stride_y, stride_x, before_y, before_x, dilation_y, dilation_x;
    int taps_y, taps_x, channels;
};

__device__ inline void lowest(float &x) { x = -__int_as_float(0x7f800000); }
__device__ inline void lowest(float16 &x) { x.bits = 0xfc00; }
__device__ inline void lowest(bfloat16 &x) { x.bits = 0xff80; }
__device__ inline void lowest(signed char &x) { x = -128; }
__device__ inline void lowest(unsigned char &x) { x = 0; }

__device__ inline bool wins(signed char one, signed char other) { return one > other; }
__device__ inline bool wins(unsigned char one, unsigned char other) { return one > other; }

template <typename T>
__device__ inline bool wins(T one, T other) {
    const float a = widen(one), b = widen(other);
    return a > b || a != a;
}

template <typename T, int kWide>
__global__ void __launch_bounds__(256)
    max_pool(const T *images, T *out, const __grid_constant__ Window w, int64 pixels) {
    const int groups = w.channels / kWide;
    const int64 index = int64(blockIdx.x) * blockDim.x + threadIdx.x, pixel = index / groups;
    if (pixel >= pixels) return;
    const int channel = index % groups * kWide, x = pixel % w.out_width * w.stride_x - w.before_x;
    const int64 line = pixel / w.out_width;
    const int y = line % w.out_height * w.stride_y - w.before_y;
    const T *image = images + line / w.out_height * w.height * w.width * w.channels + channel;
    Vector<T, kWide> best;
#pragma unroll
    for (int c = 0; c < kWide; c++) lowest(best.at[c]);
    for (int tap_y = 0; tap_y < w.taps_y; tap_y++)
        for (int tap_x = 0; tap_x < w.taps_x; tap_x++) {
            const int at_y = y + tap_y * w.dilation_y, at_x = x + tap_x * w.dilation_x;
            if (unsigned(at_y) >= unsigned(w.height) || unsigned(at_x) >= unsigned(w.width)) continue;
            const auto here = *reinterpret_cast<const Vector<T, kWide> *>(image + int64(at_y * w.width + at_x) * w.channels);
#pragma unroll
            for (int c = 0; c < kWide; c++)
                if (wins(here.at[c], best.at[c])) best.at[c] = here.at[c];
        }
    *reinterpret_cast<Vector<T, kWide> *>(out + pixel * w.channels + channel) = best;
}

// instances: max_pool<float, 4>; max_pool<unsigned char, 16>; max_pool<float16, 1>

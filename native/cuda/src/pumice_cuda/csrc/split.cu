// float as the sum of two numbers of TF32, x = h + l: what the matrix unit multiplies without losing more than 2^-21.
//
//   A B' = h_A h_B' + h_A l_B' + l_A h_B'      one product over rows [h, h, l] of A and [h, l, h] of B
#include "elements.cuh"

// y (rows, 3 padded) from x (rows, depth); `second` says which part stands in the middle: 0 h, 1 l. The last has the other.
extern "C" __global__ void split(const float *x, float *y, int64 rows, int depth, int padded, int64 stride, int second) {
    const int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= rows * padded) return;
    const int64 row = i / padded;
    const int k = i - row * padded;
    const float whole = k < depth ? x[row * stride + k] : 0;
    const float high = __uint_as_float(__float_as_uint(whole) & 0xffffe000), low = whole - high;
    float *to = y + row * 3 * padded + k;
    to[0] = high;
    to[padded] = second ? low : high;
    to[2 * padded] = second ? high : low;
}

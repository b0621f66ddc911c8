// since: sm_80
// Matrix products from Ampere on: A (M, K) and B (N, K), rows of both contiguous and at multiples of ACCESS bytes;
// `mainloop_sm80.cuh` is the loop. Strides and K are in bytes.
#include "mainloop_sm80.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    gemm(const void* a, const void* b, long long a_stride, long long b_stride, int bytes, const __grid_constant__ Epilogue e) {
    int row = blockIdx.x / SPLITS * HEIGHT, column = blockIdx.y * WIDTH;
    multiply_tile(MatrixRows<HEIGHT>(a, a_stride, e.rows, bytes, row),
                  MatrixRows<WIDTH>(b, b_stride, e.columns, bytes, column), (bytes + STEP_BYTES - 1) / STEP_BYTES, e, row,
                  column);
}

// INT8 matrix products for GPUs older than Ampere: A (M, K) and B (N, K), rows of both contiguous and at multiples of 16
// bytes, with the instruction that adds four products of bytes. Strides and K are in bytes.
//
// A block of 4 warps makes 64 by 64 sums over steps of 64 bytes of K in shared memory, whose rows are 16 bytes apart
// beyond their length so that they lie in different banks. A warp makes 16 rows, each thread the sums that the matrix
// instructions would leave it (see `epilogue.cuh`): rows i and i + 8, columns 2j and 2j + 1 of each block of 8.
#include "operands.cuh"

constexpr int SIDE = 64, STEP_BYTES = 64, THREADS = 128, CHUNKS = STEP_BYTES / 16;

struct Rows {
    uint4 chunks[SIDE][CHUNKS + 1];
};

__device__ __forceinline__ void load(Rows& rows, const unsigned char* matrix, long long stride, int first, int count,
                                     int at, int bytes) {
    for (int i = threadIdx.x; i < SIDE * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, k = at + i % CHUNKS * 16;
        uint4 chunk = make_uint4(0, 0, 0, 0);
        const unsigned char* from = matrix + min(first + row, count - 1) * stride + k;
        if (k + 16 <= bytes) {
            chunk = *(const uint4*)from;
        } else {
            for (int b = 0; k + b < bytes; ++b) ((unsigned char*)&chunk)[b] = from[b];
        }
        rows.chunks[row][i % CHUNKS] = chunk;
    }
}

__device__ __forceinline__ void add_products(u32& sum, u32 a, u32 b) {
    if constexpr (ELEMENT == Element::s8) asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    else asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
}

__device__ __forceinline__ void add_products(u32& sum, const uint4& a, const uint4& b) {
    add_products(sum, a.x, b.x);
    add_products(sum, a.y, b.y);
    add_products(sum, a.z, b.z);
    add_products(sum, a.w, b.w);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm(const unsigned char* a, const unsigned char* b, long long a_stride, long long b_stride, int bytes,
         const __grid_constant__ Epilogue e) {
    __shared__ Rows a_rows, b_rows;
    __shared__ ColumnTerms<SIDE> terms;
    int row = blockIdx.x * SIDE, column = blockIdx.y * SIDE;
    FetchedTerms<SIDE, THREADS> fetched;
    fetched.fetch(threadIdx.x, column, e);
    fetched.put(threadIdx.x, terms);
    int warp_row = threadIdx.x / 32 * 16, i = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
    u32 sums[32] = {};
    for (int at = 0; at < bytes; at += STEP_BYTES) {
        load(a_rows, a, a_stride, row, e.rows, at, bytes);
        load(b_rows, b, b_stride, column, e.columns, at, bytes);
        __syncthreads();
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            uint4 upper = a_rows.chunks[warp_row + i][chunk], lower = a_rows.chunks[warp_row + i + 8][chunk];
#pragma unroll
            for (int n = 0; n < 16; ++n) {  // this thread's columns
                uint4 weights = b_rows.chunks[n / 2 * 8 + 2 * j + n % 2][chunk];
                add_products(sums[n / 2 * 4 + n % 2], upper, weights);
                add_products(sums[n / 2 * 4 + 2 + n % 2], lower, weights);
            }
        }
        __syncthreads();
    }
    store_strip<true, OUTPUT, ACTIVATION, RESIDUAL, 8>(sums, e, terms, row + warp_row, column, 0);
}

// architectures: sm_90a
// Matrix products on Hopper: A (M, K) and B (N, K), rows of both contiguous; `mainloop_sm90.cuh` is the loop.
#include "mainloop_sm90.cuh"

template <class C>
struct Matrices {
    const TensorMap *a_map, *b_map;
    int row, at;

    __device__ __forceinline__ void prefetch() const {
        prefetch_map(a_map);
        prefetch_map(b_map);
    }
    __device__ __forceinline__ void begin(int first_row, int step) { row = first_row, at = step * C::STEP; }
    __device__ __forceinline__ void advance() { at += C::STEP; }
    __device__ __forceinline__ void copy_a(u32 to, u64* barrier) const { copy_box(to, a_map, barrier, at, row); }
    __device__ __forceinline__ void copy_b(u32 to, u64* barrier, int column) const {
        copy_rows<C>(to, b_map, barrier, at, 0, column);
    }
};

extern "C" __global__ void __launch_bounds__(Chosen::THREADS, Chosen::TOGETHER)
    gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ Epilogue e,
         int down, int across, int steps) {
    multiply_tiles<Chosen>(Matrices<Chosen>{&a, &b, 0, 0}, Tiles{down, across}, steps, e);
}

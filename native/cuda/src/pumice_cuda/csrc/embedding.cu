// Rows that an index selects from a table. A negative index counts from the table's end.
//
// `embed` gives rows of 8-bit levels as floats, each times a factor of its own: y[r][c] = table[index[r]][c] factor[r]. A
// warp has a row, four columns a thread at a time. `embed_gradient` gives every entry of a table the sum of the rows that
// were made of it: dx[e][c] = sum of dy[r][c] over all r with index[r] = e, in the order of r. A block has an entry.
#include "elements.cuh"
#include "overlapping.cuh"

constexpr int kThreads = 256, kWide = 4;

// It comes round again where it is outside, as CuPy's does.
__device__ inline int64 entry_of(int64 index, int64 entries) {
    if (index < -entries || index >= entries) index %= entries;
    return index < 0 ? index + entries : index;
}

template <typename Level, typename Index>
__global__ void __launch_bounds__(kThreads)
    embed(const Level *table, const Index *index, const float *factor, float *y, int64 entries, int64 rows, int columns) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = (int64(blockIdx.x) * kThreads + threadIdx.x) / 32;
    if (r >= rows) return;
    const Level *from = table + entry_of(index[r], entries) * columns;
    const float by = factor[r];
#pragma unroll 4
    for (int c = threadIdx.x % 32 * kWide; c < columns; c += 32 * kWide) {
        float values[kWide];
        load<kWide>(from + c, values);
#pragma unroll
        for (int w = 0; w < kWide; w++) values[w] *= by;
        store<kWide>(y + r * columns + c, values);
    }
}

// A thread has kEach times kAccess neighbouring columns, a block kThreads times as many.
template <typename T, typename Index, int kAccess>
__global__ void __launch_bounds__(kThreads)
    embed_gradient(const T *dy, const Index *index, T *dx, int64 entries, int64 rows, int columns) {
    constexpr int kEach = 4, kWarps = kThreads / 32;
    __shared__ int64 chosen[kThreads];
    __shared__ int of_warps[kWarps];
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 entry = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = (blockIdx.y * kThreads * kEach + threadIdx.x) * kAccess;
    float sums[kEach][kAccess] = {};
    for (int64 first = 0; first < rows; first += kThreads) {
        const int64 r = first + threadIdx.x;
        const bool mine = r < rows && entry_of(index[r], entries) == entry;
        const unsigned mates = __ballot_sync(~0u, mine);
        if (lane == 0) of_warps[warp] = __popc(mates);
        if (!__syncthreads_or(mine)) continue;
        int before = 0, count = 0;
#pragma unroll
        for (int w = 0; w < kWarps; w++) before += w < warp ? of_warps[w] : 0, count += of_warps[w];
        if (mine) chosen[before + __popc(mates & ((1u << lane) - 1))] = r;
        __syncthreads();
        for (int n = 0; n < count; n++) {
            const T *from = dy + chosen[n] * columns;
#pragma unroll
            for (int i = 0; i < kEach; i++) {
                const int c = column + i * kThreads * kAccess;
                if (c >= columns) continue;
                float values[kAccess];
                load<kAccess>(from + c, values);
#pragma unroll
                for (int a = 0; a < kAccess; a++) sums[i][a] += values[a];
            }
        }
        __syncthreads();  // all have read which were chosen
    }
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        const int c = column + i * kThreads * kAccess;
        if (c < columns) store<kAccess>(dx + entry * columns + c, sums[i]);
    }
}

// instances: embed<signed char, int64>; embed<unsigned char, int>; embed_gradient<float, int64, 4>
// instances: embed_gradient<float16, int, 4>; embed_gradient<bfloat16, int64, 1>

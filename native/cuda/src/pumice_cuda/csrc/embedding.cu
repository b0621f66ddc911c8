// Rows of a table of 8-bit levels as floats, each times a factor of its own: y[r][c] = table[index[r]][c] factor[r].
//
// A warp has a row, four columns a thread at a time. A negative index counts from the table's end.
#include "elements.cuh"
#include "overlapping.cuh"

constexpr int kThreads = 256, kWide = 4;

template <typename Level, typename Index>
__global__ void __launch_bounds__(kThreads)
    embed(const Level *table, const Index *index, const float *factor, float *y, int64 entries, int64 rows, int columns) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = (int64(blockIdx.x) * kThreads + threadIdx.x) / 32;
    if (r >= rows) return;
    int64 entry = index[r];
    if (entry < -entries || entry >= entries) entry %= entries;  // it comes round again, as CuPy's does
    const Level *from = table + (entry < 0 ? entry + entries : entry) * columns;
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

// instances: embed<signed char, int64>; embed<unsigned char, int>

// What stands between the matrix products of dynamically quantized networks: DynamicQuantizeLinear of a normalised row,
// of columns times factors, of what a product has stored. Its scale depends on the range of all the values, so the kernel
// that makes them notes the range that each of its blocks saw (`ranges`, the least and the greatest value and zero), and
// the kernel that quantizes them begins with the range of these.
//
// A normalised row is not stored in between: who quantizes it computes it once more, by the same instructions.
#include "levels.cuh"
#include "overlapping.cuh"
#include "ranges.cuh"

constexpr int kWide = 4;

__device__ inline Range range_of(const float2 *ranges, int count, int first, int step) {
    Range range;
#pragma unroll 4
    for (int i = first; i < count; i += step) {
        const float2 one = ranges[i];
        range.see(one.x, one.y);
    }
    return range;
}

// What DynamicQuantizeLinear does with values of a range.
struct Quantization {
    Dynamic found;
    Divisor divisor;
    Levels levels;

    __device__ explicit Quantization(Range range)
        : found(range.least, range.greatest), divisor(found.scale), levels(0, 255, found.zero) {}

    __device__ unsigned four(const float *values) const {
        int stored[kWide];
#pragma unroll
        for (int w = 0; w < kWide; w++) stored[w] = levels.stored(divisor.quotient(values[w]));
        return four_bytes(stored);
    }

    // By one thread of all.
    __device__ void tell(float *scale, unsigned char *zero) const {
        if (blockIdx.x == 0 && threadIdx.x == 0) *scale = found.scale, *zero = found.zero;
    }
};

// --- normalised rows --------------------------------------------------------------------------------------------------

struct Moments {
    float mean, inverse;

    template <typename Row>
    __device__ static Moments of(Row &row, int columns, float epsilon) {
        const float mean = row.fold(Add(), [](float v) { return v; }) / columns;
        const float variance = row.fold(Add(), [=](float v) { return (v - mean) * (v - mean); }) / columns;
        return {mean, 1 / sqrtf(variance + epsilon)};
    }
};

// What is made of a row's columns: (x - mean) inverse scale + bias; bias may be null.
struct Columns {
    const float *scale, *bias;

    __device__ void normalise(const float *values, Moments moments, int column, float *results) const {
        float factors[kWide], offsets[kWide] = {};
        load<kWide>(scale + column, factors);
        if (bias) load<kWide>(bias + column, offsets);
#pragma unroll
        for (int w = 0; w < kWide; w++)
            results[w] = fmaf((values[w] - moments.mean) * moments.inverse, factors[w], offsets[w]);
    }
};

// Of every row.
template <int kBlock, int kTeam, int kVectors>
__global__ void __launch_bounds__(kBlock)
    normalised_range(const float *x, const float *scale, const float *bias, float epsilon, Moments *moments,
                     float2 *ranges, int64 rows, int columns) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = row_of_team<kTeam>(), there = r < rows ? r : rows - 1;
    Row<kWide, kTeam, kVectors, Plain<float, kWide>> row({x + there * columns}, columns);
    const Moments own = Moments::of(row, columns, epsilon);
    const Columns all{scale, bias};
    Range range;
    row.each([&](const float *values, int column, int) {
        float results[kWide];
        all.normalise(values, own, column, results);
#pragma unroll
        for (int w = 0; w < kWide; w++) range.see(results[w]);
    });
    if (threadIdx.x % kTeam == 0 && r < rows) moments[r] = own;
    range.write<kBlock>(ranges + blockIdx.x);
}

// q = DynamicQuantizeLinear of rows normalised by their moments.
template <int kBlock, int kTeam, int kVectors>
__global__ void __launch_bounds__(kBlock)
    quantize_normalised(const float *x, const float *scale, const float *bias, const Moments *moments, int64 rows,
                        int columns, const float2 *ranges, int parts, unsigned *q, float *to_scale,
                        unsigned char *to_zero) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = row_of_team<kTeam>(), there = r < rows ? r : rows - 1;
    Row<kWide, kTeam, kVectors, Plain<float, kWide>> row({x + there * columns}, columns);
    const Moments own = moments[there];
    const Columns all{scale, bias};
    const Quantization quantization(range_of(ranges, parts, threadIdx.x, kBlock).whole<kBlock>());
    row.each([&](const float *values, int column, int) {
        float results[kWide];
        all.normalise(values, own, column, results);
        if (r < rows) q[(r * columns + column) / kWide] = quantization.four(results);
    });
    quantization.tell(to_scale, to_zero);
}

// --- values that lie in memory ----------------------------------------------------------------------------------------

constexpr int kThreads = 256;

// Of four neighbours, times the factors of their columns (if there are any).
__device__ inline void load_times(const float *x, const float *factor, int64 index, int columns, float *values) {
    load<kWide>(x + index, values);
    if (!factor) return;
    float factors[kWide];
    load<kWide>(factor + unsigned(index) % unsigned(columns), factors);
#pragma unroll
    for (int w = 0; w < kWide; w++) values[w] *= factors[w];
}

// Of x factor[column], count a multiple of four below 2^32.
extern "C" __global__ void __launch_bounds__(kThreads)
    factored_range(const float *x, const float *factor, int64 count, int columns, float2 *ranges) {
    let_next_kernel_start();
    wait_for_kernel_before();
    Range range;
    const int64 step = int64(gridDim.x) * kThreads * kWide;
#pragma unroll 4
    for (int64 i = (int64(blockIdx.x) * kThreads + threadIdx.x) * kWide; i < count; i += step) {
        float values[kWide];
        load_times(x, factor, i, columns, values);
#pragma unroll
        for (int w = 0; w < kWide; w++) range.see(values[w]);
    }
    range.write<kThreads>(ranges + blockIdx.x);
}

// Many ranges as one for each block.
extern "C" __global__ void __launch_bounds__(kThreads) fewer_ranges(const float2 *ranges, int count, float2 *fewer) {
    let_next_kernel_start();
    wait_for_kernel_before();
    range_of(ranges, count, blockIdx.x * kThreads + threadIdx.x, gridDim.x * kThreads)
        .write<kThreads>(fewer + blockIdx.x);
}

// q = DynamicQuantizeLinear of x factor[column], whose ranges are known.
template <int kLoads>
__global__ void __launch_bounds__(kThreads)
    quantize_within(const float *x, const float *factor, int64 count, int columns, const float2 *ranges, int parts,
                    unsigned *q, float *scale, unsigned char *zero) {
    let_next_kernel_start();
    wait_for_kernel_before();
    // From the end on: what was written last is still in the cache.
    const int64 first = (int64(gridDim.x - 1 - blockIdx.x) * kThreads * kLoads + threadIdx.x) * kWide;
    float values[kLoads][kWide];
#pragma unroll
    for (int n = 0; n < kLoads; n++) {
        const int64 at = first + n * kThreads * kWide;
        if (at < count) load_times(x, factor, at, columns, values[n]);
    }
    const Quantization quantization(range_of(ranges, parts, threadIdx.x, kThreads).whole<kThreads>());
#pragma unroll
    for (int n = 0; n < kLoads; n++) {
        const int64 at = first + n * kThreads * kWide;
        if (at < count) q[at / kWide] = quantization.four(values[n]);
    }
    quantization.tell(scale, zero);
}

// instances: normalised_range<512, 32, 6>; normalised_range<256, 256, 1>; normalised_range<1024, 1024, 0>
// instances: quantize_normalised<128, 32, 6>; quantize_normalised<1024, 1024, 0>; quantize_within<1>; quantize_within<4>

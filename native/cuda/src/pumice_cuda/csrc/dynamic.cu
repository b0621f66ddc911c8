// What stands between the matrix products of dynamically quantized networks: DynamicQuantizeLinear of a normalised row,
// of columns times factors, of what a product has stored. Its scale depends on the range of all the values, so the kernel
// that makes them notes the range that each of its blocks saw (`ranges`, the least and the greatest value and zero), and
// the kernel that quantizes them begins with the range of these.
#include "levels.cuh"
#include "teams.cuh"

struct Range {
    float least = 0, greatest = 0;  // zero is inside

    __device__ void see(float value) { see(value, value); }
    __device__ void see(float low, float high) {
        least = Least()(least, low);
        greatest = Greatest()(greatest, high);
    }

    // Of all threads of the block.
    template <int kThreads>
    __device__ Range whole() const {
        Range found;
        found.least = across<kThreads>(least, Least());
        found.greatest = across<kThreads>(greatest, Greatest());
        return found;
    }

    template <int kThreads>
    __device__ void write(float2 *ranges) const {
        const Range found = whole<kThreads>();
        if (threadIdx.x == 0) ranges[blockIdx.x] = make_float2(found.least, found.greatest);
    }
};

// y = (x - mean) inverse scale + bias of each row, as rows.cu has it; bias may be null. Blocks walk over rows.
template <int kWide, int kTeam, int kVectors>
__global__ void __launch_bounds__(kBlockOf<kTeam>)
    layer_norm(const float *x, const float *scale, const float *bias, float epsilon, float *y, float2 *ranges, int64 rows,
               int columns) {
    constexpr int kThreads = kBlockOf<kTeam>;
    Range range;
    for (int64 r = row_of_team<kTeam>(); r < rows; r += int64(gridDim.x) * (kThreads / kTeam)) {
        Row<kWide, kTeam, kVectors, Plain<float, kWide>> row({x + r * columns}, columns);
        const float mean = row.fold(Add(), [](float v) { return v; }) / columns;
        const float variance = row.fold(Add(), [=](float v) { return (v - mean) * (v - mean); }) / columns;
        const float inverse = 1 / sqrtf(variance + epsilon);
        row.write(y + r * columns, [&](float v, int column) {
            const float z = (v - mean) * inverse * scale[column] + (bias ? bias[column] : 0);
            range.see(z);
            return z;
        });
    }
    range.write<kThreads>(ranges);
}

constexpr int kThreads = 256, kWide = 4;

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
    Range range;
    const int64 step = int64(gridDim.x) * kThreads * kWide;
#pragma unroll 4
    for (int64 i = (int64(blockIdx.x) * kThreads + threadIdx.x) * kWide; i < count; i += step) {
        float values[kWide];
        load_times(x, factor, i, columns, values);
#pragma unroll
        for (int w = 0; w < kWide; w++) range.see(values[w]);
    }
    range.write<kThreads>(ranges);
}

__device__ inline Range range_of(const float2 *ranges, int count, int first, int step) {
    Range range;
#pragma unroll 4
    for (int i = first; i < count; i += step) {
        const float2 one = ranges[i];
        range.see(one.x, one.y);
    }
    return range;
}

// Many ranges as one for each block.
extern "C" __global__ void __launch_bounds__(kThreads) fewer_ranges(const float2 *ranges, int count, float2 *fewer) {
    range_of(ranges, count, blockIdx.x * kThreads + threadIdx.x, gridDim.x * kThreads).write<kThreads>(fewer);
}

// q = DynamicQuantizeLinear of x factor[column], whose ranges are known.
template <int kLoads>
__global__ void __launch_bounds__(kThreads)
    quantize_within(const float *x, const float *factor, int64 count, int columns, const float2 *ranges, int parts,
                    unsigned *q, float *scale, unsigned char *zero) {
    const int64 first = (int64(blockIdx.x) * kThreads * kLoads + threadIdx.x) * kWide;
    float values[kLoads][kWide];
#pragma unroll
    for (int n = 0; n < kLoads; n++) {
        const int64 at = first + n * kThreads * kWide;
        if (at < count) load_times(x, factor, at, columns, values[n]);
    }
    const Range range = range_of(ranges, parts, threadIdx.x, kThreads).whole<kThreads>();
    const Dynamic found(range.least, range.greatest);
    const Divisor divisor(found.scale);
    const Levels levels(0, 255, found.zero);
#pragma unroll
    for (int n = 0; n < kLoads; n++) {
        const int64 at = first + n * kThreads * kWide;
        int four[kWide];
#pragma unroll
        for (int w = 0; w < kWide; w++) four[w] = levels.stored(divisor.quotient(values[n][w]));
        if (at < count) q[at / kWide] = four_bytes(four);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) *scale = found.scale, *zero = found.zero;
}

// instances: layer_norm<4, 32, 8>; layer_norm<1, 256, 0>; quantize_within<1>; quantize_within<4>

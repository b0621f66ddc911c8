// Gradients of functions of rows and of elements: softmax, normalisation, GELU. Elements are float, float16 or bfloat16;
// arithmetic is float. Rows that fit are read once (teams.cuh).
#include "overlapping.cuh"
#include "teams.cuh"

// Two rows side by side, kept as they came.
template <typename T, int kWide, int kTeam, int kVectors>
struct TwoRows {
    const T *first, *second;
    int columns;
    Access<T, kWide> firsts[kVectors ? kVectors : 1], seconds[kVectors ? kVectors : 1];

    __device__ TwoRows(const T *first, const T *second, int columns) : first(first), second(second), columns(columns) {
#pragma unroll
        for (int n = 0; n < kVectors; n++)
            if (column(n) < columns) firsts[n].fetch(first + column(n)), seconds[n].fetch(second + column(n));
    }

    __device__ static int column(int vector) { return (vector * kTeam + threadIdx.x % kTeam) * kWide; }

    // visit(values of the first, values of the second, column, access)
    template <typename Visit>
    __device__ void each(Visit visit) {
        float a[kWide], b[kWide];
        if constexpr (kVectors > 0) {
#pragma unroll
            for (int n = 0; n < kVectors; n++) {
                if (column(n) >= columns) continue;
                firsts[n].forget(), seconds[n].forget();
                firsts[n].values(a), seconds[n].values(b);
                visit(a, b, column(n), n);
            }
        } else {
            for (int n = 0; column(n) < columns; n++) {
                load<kWide>(first + column(n), a), load<kWide>(second + column(n), b);
                visit(a, b, column(n), n);
            }
        }
    }

    // The sum of f(value of the first, value of the second).
    template <typename F>
    __device__ float sum(F f) {
        float sum = 0;
        each([&](const float *a, const float *b, int, int) {
#pragma unroll
            for (int w = 0; w < kWide; w++) sum += f(a[w], b[w]);
        });
        return across<kTeam>(sum, Add());
    }
};

// dx = y (dy - sum of y dy) for y = softmax x, or dx = dy - exp(y) sum of dy for its logarithm.
template <typename T, int kWide, int kTeam, int kVectors, bool kLogarithm>
__global__ void __launch_bounds__(kBlockOf<kTeam>)
    softmax_gradient(const T *y, const T *dy, T *dx, int64 rows, int columns) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = row_of_team<kTeam>(), start = r * columns;
    if (r >= rows) return;
    TwoRows<T, kWide, kTeam, kVectors> both(y + start, dy + start, columns);
    const float sum = both.sum([](float y, float dy) { return kLogarithm ? dy : y * dy; });
    both.each([&](const float *y, const float *dy, int at, int) {
        float results[kWide];
#pragma unroll
        for (int w = 0; w < kWide; w++)
            results[w] = kLogarithm ? fmaf(-power_of_two(y[w] * kLog2E), sum, dy[w]) : y[w] * (dy[w] - sum);
        store<kWide>(dx + start + at, results);
    });
}

// dx = inverse (g - mean of g - v mean of g v) with g = dy scale and v = (x - mean) inverse; kRms leaves the means of x and
// of g out. What rows have to give to the sums over them, mean and inverse, is written beside it.
template <typename T, int kWide, int kTeam, int kVectors, bool kRms>
__global__ void __launch_bounds__(kBlockOf<kTeam>)
    norm_gradient(const T *x, const T *dy, const T *scale, float epsilon, T *dx, float *means, float *inverses, int64 rows,
                  int columns) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = row_of_team<kTeam>(), start = r * columns;
    if (r >= rows) return;
    const OfColumns<T, kWide, kTeam, kVectors> scales(scale, columns);
    TwoRows<T, kWide, kTeam, kVectors> both(x + start, dy + start, columns);
    const float share = 1.0f / columns;
    const float mean = kRms ? 0 : both.sum([](float x, float) { return x; }) * share;
    const float inverse =
        rsqrtf(both.sum([=](float x, float) { return (x - mean) * (x - mean); }) * share + epsilon);
    if (threadIdx.x % kTeam == 0) means[r] = mean, inverses[r] = inverse;
    float sum = 0, along = 0;
    both.each([&](const float *x, const float *dy, int at, int access) {
        float factors[kWide];
        scales.load(at, access, factors);
#pragma unroll
        for (int w = 0; w < kWide; w++) {
            const float g = dy[w] * factors[w];
            sum += g, along = fmaf(g, (x[w] - mean) * inverse, along);
        }
    });
    sum = kRms ? 0 : across<kTeam>(sum, Add()) * share;
    along = across<kTeam>(along, Add()) * share;
    both.each([&](const float *x, const float *dy, int at, int access) {
        float factors[kWide], results[kWide];
        scales.load(at, access, factors);
#pragma unroll
        for (int w = 0; w < kWide; w++)
            results[w] = inverse * (fmaf(dy[w], factors[w], -sum) - (x[w] - mean) * inverse * along);
        store<kWide>(dx + start + at, results);
    });
}

// sums[0][p][c] of dy (x - mean) inverse and sums[1][p][c] of dy, over the p-th part of the rows, which is `part` long: a
// thread has kWide columns and every kSharers-th row of a part.
template <typename T, int kWide, int kSharers>
__global__ void __launch_bounds__(256)
    norm_columns(const T *x, const T *dy, const float *means, const float *inverses, float *sums, int64 rows, int64 columns,
                 int64 part) {
    constexpr int kThreads = 256 / kSharers, kColumns = kThreads * kWide, kAhead = 4;
    __shared__ float of_sharers[2][kSharers][kColumns];
    let_next_kernel_start();
    wait_for_kernel_before();
    const int sharer = threadIdx.x / kThreads, inside = threadIdx.x % kThreads * kWide;
    const int64 first = int64(blockIdx.x) * kColumns, column = first + inside;
    const int64 start = blockIdx.y * part, end = start + part < rows ? start + part : rows;
    float found[2][kWide] = {};
    for (int64 row = start + sharer; column < columns && row < end; row += kAhead * kSharers) {
        Access<T, kWide> xs[kAhead], dys[kAhead];
#pragma unroll
        for (int n = 0; n < kAhead; n++) {
            const int64 at = row + n * kSharers;
            if (at < end) xs[n].fetch(x + at * columns + column), dys[n].fetch(dy + at * columns + column);
        }
#pragma unroll
        for (int n = 0; n < kAhead; n++) {
            const int64 at = row + n * kSharers;
            if (at >= end) continue;
            const float mean = means[at], inverse = inverses[at];
            float a[kWide], b[kWide];
            xs[n].values(a), dys[n].values(b);
#pragma unroll
            for (int w = 0; w < kWide; w++)
                found[0][w] = fmaf(b[w], (a[w] - mean) * inverse, found[0][w]), found[1][w] += b[w];
        }
    }
#pragma unroll
    for (int w = 0; w < kWide; w++)
        of_sharers[0][sharer][inside + w] = found[0][w], of_sharers[1][sharer][inside + w] = found[1][w];
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * kColumns; i += 256) {
        const int which = i / kColumns, c = i % kColumns;
        if (first + c >= columns) continue;
        float all = 0;
#pragma unroll
        for (int n = 0; n < kSharers; n++) all += of_sharers[which][n][c];
        sums[(int64(which) * gridDim.y + blockIdx.y) * columns + first + c] = all;
    }
}

// --- elements --------------------------------------------------------------------------------------------------------

struct Gelu {
    __device__ static float slope(float x) {
        return 0.5f * (1 + erff(x * 0.70710678118654752f)) + x * expf(-0.5f * x * x) * 0.39894228040143268f;
    }
};

struct GeluTanh {
    __device__ static float slope(float x) {
        const float t = tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x));
        return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.79788456080286536f * (1 + 0.134145f * x * x);
    }
};

// dx = dy f'(x)
template <typename T, typename Function>
__global__ void map_gradient(const T *x, const T *dy, T *dx, int64 count, int aligned) {
    constexpr int kWide = kWidest<T>;
    const int64 first = (int64(blockIdx.x) * blockDim.x + threadIdx.x) * kWide;
    if (aligned && first + kWide <= count) {
        float values[kWide], slopes[kWide];
        load<kWide>(x + first, slopes), load<kWide>(dy + first, values);
#pragma unroll
        for (int w = 0; w < kWide; w++) values[w] *= Function::slope(slopes[w]);
        store<kWide>(dx + first, values);
    } else {
        for (int64 i = first; i < first + kWide && i < count; i++)
            narrow(widen(dy[i]) * Function::slope(widen(x[i])), dx[i]);
    }
}

// instances: softmax_gradient<float, 4, 128, 2, false>; softmax_gradient<bfloat16, 8, 1024, 0, true>
// instances: softmax_gradient<float16, 1, 256, 32, false>; norm_gradient<float, 4, 128, 2, false>
// instances: norm_gradient<float16, 8, 32, 4, false>; norm_gradient<bfloat16, 8, 1024, 0, true>
// instances: norm_columns<float, 4, 8>; norm_columns<float16, 8, 8>; norm_columns<bfloat16, 1, 8>
// instances: map_gradient<float, Gelu>; map_gradient<float16, GeluTanh>; map_gradient<bfloat16, Gelu>

// Functions of rows and of elements: softmax, normalisation, GELU, reductions. Elements are float, float16 or bfloat16;
// arithmetic is float.
//
// A row that fits is read once: its team keeps it in registers (teams.cuh).
#include "overlapping.cuh"
#include "teams.cuh"

// y = exp(x - max) / sum of exp(x - max), or the logarithm of it, of each row.
template <typename T, int kWide, int kTeam, int kVectors, bool kLogarithm>
__global__ void __launch_bounds__(kBlockOf<kTeam>) softmax(const T *x, T *y, int64 rows, int columns) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = row_of_team<kTeam>();
    if (r >= rows) return;
    Row<kWide, kTeam, kVectors, Plain<T, kWide>> row({x + r * columns}, columns);
    const float most = row.fold(Larger(), [](float v) { return v; });
    const auto weight = [=, shift = -most * kLog2E](float v) { return power_of_two(fmaf(v, kLog2E, shift)); };
    if constexpr (kLogarithm) {
        const float logarithm = logf(row.fold(Add(), weight));
        row.write(y + r * columns, [=](float v, int) { return v - most - logarithm; });
    } else if constexpr (kVectors > 0) {  // every power is taken once
        const float inverse = 1 / row.fold(Add(), [=](float &v) { return v = weight(v); });
        row.write(y + r * columns, [=](float v, int) { return v * inverse; });
    } else {
        const float inverse = 1 / row.fold(Add(), weight);
        row.write(y + r * columns, [=](float v, int) { return weight(v) * inverse; });
    }
}

// x, or x + skip, or x + skip + added: what a residual connection brings to a normalisation.
template <typename T, int kWide, bool kMore>
struct Residual {
    struct Fetched {
        Access<T, kWide> x, skip, added;
        __device__ void forget() { x.forget(); }
    };
    const T *x, *skip, *added;

    __device__ Fetched fetch(int column) const {
        Fetched fetched;
        fetched.x.fetch(x + column);
        if (kMore && skip) fetched.skip.fetch(skip + column);
        if (kMore && added) fetched.added.fetch(added + column);
        return fetched;
    }

    __device__ void values(const Fetched &fetched, int, float *values) const {
        fetched.x.values(values);
        if (kMore && skip) add(fetched.skip, values);
        if (kMore && added) add(fetched.added, values);
    }

    __device__ static void add(const Access<T, kWide> &other, float *values) {
        float more[kWide];
        other.values(more);
#pragma unroll
        for (int w = 0; w < kWide; w++) values[w] += more[w];
    }
};

// y = (v - mean) inverse scale + bias with v = x + skip + added and inverse = 1 / sqrt(variance + epsilon); kRms leaves
// out the mean. Without kResidual v is x. bias may be null, as may be skip, added and what is written beside y: v as `total`,
// mean and inverse.
template <typename T, int kWide, int kTeam, int kVectors, bool kRms, bool kResidual>
__global__ void __launch_bounds__(kBlockOf<kTeam>)
    layer_norm(const T *x, const T *skip, const T *added, const T *scale, const T *bias, float epsilon, T *y, T *total,
               float *means, float *inverses, int64 rows, int columns) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = row_of_team<kTeam>(), start = r * columns;
    if (r >= rows) return;
    const OfColumns<T, kWide, kTeam, kVectors> scales(scale, columns), biases(bias, columns);
    Row<kWide, kTeam, kVectors, Residual<T, kWide, kResidual>, sizeof(T) == 2 && !kResidual> row(
        {x + start, skip ? skip + start : skip, added}, columns);
    const float share = 1.0f / columns;  // before the row is there
    const float mean = kRms ? 0 : row.fold(Add(), [](float v) { return v; }) * share;
    const float variance = row.fold(Add(), [=](float v) { return (v - mean) * (v - mean); }) * share;
    const float inverse = rsqrtf(variance + epsilon);
    if (threadIdx.x % kTeam == 0) {
        if (means) means[r] = mean;
        if (inverses) inverses[r] = inverse;
    }
    if (total) row.write(total + start, [](float v, int) { return v; });
    row.each([&](const float *values, int at, int access) {
        float factors[kWide], offsets[kWide], results[kWide];
        scales.load(at, access, factors);
        biases.load(at, access, offsets);
#pragma unroll
        for (int w = 0; w < kWide; w++)
            results[w] = fmaf((values[w] - mean) * inverse, factors[w], offsets[w]);
        store<kWide>(y + start + at, results);
    });
}

// --- elements --------------------------------------------------------------------------------------------------------

struct Gelu {
    __device__ static float of(float x) { return 0.5f * x * (1 + erff(x * 0.70710678118654752f)); }
};

struct GeluTanh {
    __device__ static float of(float x) {
        return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    }
};

struct Silu {
    __device__ static float of(float x) { return x / (1 + expf(-x)); }
};

template <typename T, typename Function>
__global__ void map_elements(const T *x, T *y, int64 count, int aligned) {
    constexpr int kWide = kWidest<T>;
    const int64 first = (int64(blockIdx.x) * blockDim.x + threadIdx.x) * kWide;
    if (aligned && first + kWide <= count) {
        float values[kWide];
        load<kWide>(x + first, values);
#pragma unroll
        for (int w = 0; w < kWide; w++) values[w] = Function::of(values[w]);
        store<kWide>(y + first, values);
    } else {
        for (int64 i = first; i < first + kWide && i < count; i++) narrow(Function::of(widen(x[i])), y[i]);
    }
}

// --- reductions ------------------------------------------------------------------------------------------------------

struct Identity {
    __device__ float operator()(float v) const { return v; }
};

struct Square {
    __device__ float operator()(float v) const { return v * v; }
};

// What becomes of `count` accesses of kWide neighbours, `step` elements from one to the next; several are on their way
// at once.
template <typename Combine, typename F, typename In, int kWide>
__device__ inline void fold_accesses(const In *from, int64 step, int64 count, float (&folded)[kWide]) {
    constexpr int kAhead = 4;
#pragma unroll
    for (int w = 0; w < kWide; w++) folded[w] = Combine::neutral();
    for (int64 first = 0; first < count; first += kAhead) {
        Access<In, kWide> ahead[kAhead];
#pragma unroll
        for (int n = 0; n < kAhead; n++)
            if (first + n < count) ahead[n].fetch(from + (first + n) * step);
#pragma unroll
        for (int n = 0; n < kAhead; n++) {
            if (first + n >= count) continue;
            float values[kWide];
            ahead[n].values(values);
#pragma unroll
            for (int w = 0; w < kWide; w++) folded[w] = Combine()(folded[w], F()(values[w]));
        }
    }
}

// How many of 0, 1 .. count - 1 are `first` more than a multiple of `each`.
__device__ inline int64 share(int64 count, int first, int each) { return count > first ? (count - first - 1) / each + 1 : 0; }

// out[o][s][i] from in[o][r][i] over the s-th part of r, divided by `divisor`. Parts are `part` long, and a second call
// folds what they gave. Threads read kWide neighbours at a time, and rows and parts of rows begin at multiples of kWide.

// Without an inner axis: a team has a part of a row.
template <typename In, typename Out, int kWide, int kTeam, typename Combine, typename F>
__global__ void __launch_bounds__(256)
    reduce_rows(const In *x, Out *y, int64 rows, int64 columns, int64 part, int parts, float divisor) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int64 r = row_of_team<kTeam>();
    if (r >= rows * parts) return;
    const int64 start = r % parts * part, end = start + part < columns ? start + part : columns;
    const int thread = threadIdx.x % kTeam;
    float folded[kWide];
    fold_accesses<Combine, F>(x + r / parts * columns + start + thread * kWide, kTeam * kWide,
                              share((end - start) / kWide, thread, kTeam), folded);
#pragma unroll
    for (int half = kWide / 2; half; half /= 2)
#pragma unroll
        for (int w = 0; w < half; w++) folded[w] = Combine()(folded[w], folded[w + half]);
    const float all = across<kTeam>(folded[0], Combine());
    if (thread == 0) narrow(all / divisor, y[r]);
}

// With one: a thread has kWide columns and, of a part of them, every kSharers-th row.
template <typename In, typename Out, int kWide, int kSharers, typename Combine, typename F>
__global__ void __launch_bounds__(256)
    reduce_columns(const In *x, Out *y, int64 outer, int64 reduced, int64 inner, int64 part, int parts, float divisor) {
    constexpr int kThreads = 256 / kSharers, kColumns = kThreads * kWide;  // of a block
    __shared__ float of_sharers[kSharers][kColumns];
    let_next_kernel_start();
    wait_for_kernel_before();
    const int sharer = threadIdx.x / kThreads, inside = threadIdx.x % kThreads * kWide;
    const int64 first = int64(blockIdx.x) * kColumns, columns = outer * inner, column = first + inside;
    const int64 start = blockIdx.y * part, end = start + part < reduced ? start + part : reduced;
    if (column < columns) {
        float folded[kWide];
        fold_accesses<Combine, F>(x + (column / inner * reduced + start + sharer) * inner + column % inner, kSharers * inner,
                                  share(end - start, sharer, kSharers), folded);
#pragma unroll
        for (int w = 0; w < kWide; w++) of_sharers[sharer][inside + w] = folded[w];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < kColumns && first + c < columns; c += 256) {
        float all = of_sharers[0][c];
#pragma unroll
        for (int n = 1; n < kSharers; n++) all = Combine()(all, of_sharers[n][c]);
        narrow(all / divisor, y[((first + c) / inner * parts + blockIdx.y) * inner + (first + c) % inner]);
    }
}

// instances: softmax<float, 4, 128, 2, false>; softmax<bfloat16, 8, 1024, 0, true>
// instances: softmax<float16, 1, 256, 32, false>; layer_norm<float, 4, 128, 2, false, true>
// instances: layer_norm<float16, 8, 256, 4, true, false>; layer_norm<bfloat16, 8, 32, 4, false, false>
// instances: layer_norm<bfloat16, 8, 1024, 0, false, true>; layer_norm<float, 4, 128, 2, false, false>
// instances: map_elements<float, Gelu>; map_elements<float16, GeluTanh>; map_elements<bfloat16, Silu>
// instances: reduce_rows<float, float, 4, 256, Add, Identity>; reduce_rows<float16, float, 8, 32, Greatest, Identity>
// instances: reduce_columns<float, float, 1, 1, Add, Square>; reduce_columns<bfloat16, bfloat16, 8, 8, Least, Identity>

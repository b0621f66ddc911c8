// Quantization as ONNX defines it, q = clamp(round_to_even(x / scale) + zero, low, high), its inverse, the scales that
// the data itself gives, and the straight-through gradients that training needs.
#include "levels.cuh"
#include "teams.cuh"

template <typename Q>
__device__ int zero_of(const Q *zero, int64 index) {
    return zero ? zero[index] : 0;
}

// --- one scale for all -----------------------------------------------------------------------------------------------

constexpr int kLoads = 4;

// q = quantized x. `low` is the zero point for ReLU; zero may be null.
template <typename T, typename Q>
__global__ void __launch_bounds__(256)
    quantize(const T *x, Q *q, int64 count, const float *scale, const Q *zero, int low, int high, int aligned) {
    constexpr int kWide = kWidest<T>;
    const Divisor divisor(*scale);
    const Levels levels(low, high, zero_of(zero, 0));
    const int64 block = int64(256) * kWide * kLoads, first = blockIdx.x * block + threadIdx.x * kWide;
    if (aligned && (blockIdx.x + 1) * block <= count) {
        float values[kLoads][kWide];
#pragma unroll
        for (int n = 0; n < kLoads; n++) load<kWide>(x + first + n * 256 * kWide, values[n]);
#pragma unroll
        for (int n = 0; n < kLoads; n++) {
            Vector<unsigned, kWide / 4> packed;
#pragma unroll
            for (int w = 0; w < kWide; w += 4) {
                int four[4];
#pragma unroll
                for (int i = 0; i < 4; i++) four[i] = levels.stored(divisor.quotient(values[n][w + i]));
                packed.at[w / 4] = four_bytes(four);
            }
            *reinterpret_cast<Vector<unsigned, kWide / 4> *>(q + first + n * 256 * kWide) = packed;
        }
        return;
    }
    for (int64 i = blockIdx.x * block + threadIdx.x; i < (blockIdx.x + 1) * block && i < count; i += 256)
        q[i] = Q(levels.stored(divisor.quotient(widen(x[i]))));
}

// y = (q - zero) scale.
template <typename Q, typename T>
__global__ void __launch_bounds__(256)
    dequantize(const Q *q, T *y, int64 count, const float *scale, const Q *zero, int aligned) {
    constexpr int kWide = kWidest<T>;
    const float factor = *scale, offset = zero_of(zero, 0);
    const int64 block = int64(256) * kWide * kLoads, first = blockIdx.x * block + threadIdx.x * kWide;
    if (aligned && (blockIdx.x + 1) * block <= count) {
        float values[kLoads][kWide];
#pragma unroll
        for (int n = 0; n < kLoads; n++) load<kWide>(q + first + n * 256 * kWide, values[n]);
#pragma unroll
        for (int n = 0; n < kLoads; n++) {
#pragma unroll
            for (int w = 0; w < kWide; w++) values[n][w] = (values[n][w] - offset) * factor;
            store<kWide>(y + first + n * 256 * kWide, values[n]);
        }
        return;
    }
    for (int64 i = blockIdx.x * block + threadIdx.x; i < (blockIdx.x + 1) * block && i < count; i += 256)
        narrow((widen(q[i]) - offset) * factor, y[i]);
}

// --- a scale for each place of an axis -------------------------------------------------------------------------------

// Arrays are (outer, places, inner).
struct Axis {
    int64 count, inner;
    int places;

    __device__ int place(int64 index) const { return index / inner % places; }
};

// Four neighbours a thread; each(index, place).
template <typename Each>
__device__ void along(Axis axis, Each each) {
    const int64 first = (int64(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (first >= axis.count) return;
    int place = axis.place(first);
    int64 rest = first % axis.inner;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        if (first + n < axis.count) each(first + n, place);
        if (++rest == axis.inner) {
            rest = 0;
            if (++place == axis.places) place = 0;
        }
    }
}

template <typename T, typename Q>
__global__ void quantize_along(const T *x, Q *q, int64 count, int places, int64 inner, const float *scale,
                               const Q *zero, int low, int high) {
    along({count, inner, places}, [=](int64 i, int place) {
        const Levels levels(low, high, zero_of(zero, place));
        q[i] = Q(levels.stored(widen(x[i]) / scale[place]));
    });
}

template <typename Q, typename T>
__global__ void dequantize_along(const Q *q, T *y, int64 count, int places, int64 inner, const float *scale,
                                 const Q *zero) {
    along({count, inner, places}, [=](int64 i, int place) {
        narrow((widen(q[i]) - float(zero_of(zero, place))) * scale[place], y[i]);
    });
}

// --- scales from the data --------------------------------------------------------------------------------------------

// The least and the greatest value that each block of threads sees.
template <typename T>
__global__ void __launch_bounds__(1024) value_range(const T *x, int64 count, float *least, float *greatest, int aligned) {
    constexpr int kWide = kWidest<T>;
    float low = 0, high = 0;  // the range holds zero
    const auto see = [&](float value) {
        low = Least()(low, value);
        high = Greatest()(high, value);
    };
    const int64 vectors = aligned ? count / kWide : 0, step = int64(gridDim.x) * 1024;
    const int64 self = int64(blockIdx.x) * 1024 + threadIdx.x;
#pragma unroll 4
    for (int64 i = self; i < vectors; i += step) {
        float values[kWide];
        load<kWide>(x + i * kWide, values);
#pragma unroll
        for (int w = 0; w < kWide; w++) see(values[w]);
    }
    for (int64 i = vectors * kWide + self; i < count; i += step) see(widen(x[i]));
    low = across<1024>(low, Least());
    high = across<1024>(high, Greatest());
    if (threadIdx.x == 0) {
        least[blockIdx.x] = low;
        greatest[blockIdx.x] = high;
    }
}

extern "C" __global__ void dynamic_parameters(const float *least, const float *greatest, int parts, float *scale,
                                   unsigned char *zero) {
    float low = 0, high = 0;
    for (int i = threadIdx.x; i < parts; i += 32) {
        low = Least()(low, least[i]);
        high = Greatest()(high, greatest[i]);
    }
    const Dynamic found(across<32>(low, Least()), across<32>(high, Greatest()));
    if (threadIdx.x == 0) {
        *scale = found.scale;
        *zero = found.zero;
    }
}

// Each row by its own range, uint8.
template <typename T, int kWide, int kTeam, int kVectors>
__global__ void __launch_bounds__(kBlockOf<kTeam>)
    quantize_rows_u8(const T *x, unsigned char *q, float *scales, unsigned char *zeros, int64 rows, int columns) {
    const int64 r = row_of_team<kTeam>();
    if (r >= rows) return;
    Row<kWide, kTeam, kVectors, Plain<T, kWide>> row({x + r * columns}, columns);
    const float low = fminf(row.fold(Least(), [](float v) { return v; }), 0);
    const float high = fmaxf(row.fold(Greatest(), [](float v) { return v; }), 0);
    const Dynamic found(low, high);
    const Divisor divisor(found.scale);
    const Levels levels(0, 255, found.zero);
    row.each([&](const float *values, int at, int) {
        Vector<unsigned char, kWide> stored;
#pragma unroll
        for (int w = 0; w < kWide; w++) stored.at[w] = levels.stored(divisor.quotient(values[w]));
        *reinterpret_cast<Vector<unsigned char, kWide> *>(q + r * columns + at) = stored;
    });
    if (threadIdx.x % kTeam == 0) {
        scales[r] = found.scale;
        zeros[r] = found.zero;
    }
}

// Each row by its largest magnitude, int8: x is about q scale with scale = max |x| / 127.
template <typename T, int kWide, int kTeam, int kVectors>
__global__ void __launch_bounds__(kBlockOf<kTeam>)
    quantize_rows_s8(const T *x, signed char *q, float *scales, int64 rows, int columns) {
    const int64 r = row_of_team<kTeam>();
    if (r >= rows) return;
    Row<kWide, kTeam, kVectors, Plain<T, kWide>> row({x + r * columns}, columns);
    const float most = row.fold(Greatest(), [](float v) { return fabsf(v); });
    const float factor = most > 0 ? 127 / most : 0;
    const Levels levels(-127, 127, 0);
    row.each([&](const float *values, int at, int) {
        Vector<signed char, kWide> stored;
#pragma unroll
        for (int w = 0; w < kWide; w++) stored.at[w] = levels.stored(values[w] * factor);
        *reinterpret_cast<Vector<signed char, kWide> *>(q + r * columns + at) = stored;
    });
    if (threadIdx.x % kTeam == 0) scales[r] = most / 127;
}

// --- training --------------------------------------------------------------------------------------------------------

// y = (clamp(round(x / scale) + zero) - zero) scale; zero is one of floats here.
template <typename T>
__global__ void fake_quantize(const T *x, T *y, int64 count, int places, int64 inner, const float *scale,
                              const float *zero, int low, int high) {
    along({count, inner, places}, [=](int64 i, int place) {
        const float offset = zero ? zero[place] : 0, level = rintf(widen(x[i]) / scale[place]) + offset;
        narrow((fminf(fmaxf(level, low), high) - offset) * scale[place], y[i]);
    });
}

// What an element gives back: a gradient, and what it adds to its scale's.
struct Pulled {
    float element, scale;
};

// q = QuantizeLinear(x), rounding taken for the identity: dx = dq / scale inside the range, else 0.
template <typename T>
struct OfQuantize {
    const T *x, *dq;
    int low, high;

    __device__ Pulled operator()(int64 i, float scale, float zero) const {
        const float quotient = widen(x[i]) / scale, level = rintf(quotient) + zero;
        const float dx = level >= low && level <= high ? widen(dq[i]) / scale : 0;
        return {dx, -dx * quotient};
    }
};

// y = (q - zero) scale.
template <typename Q>
struct OfDequantize {
    const Q *q;
    const float *dy;

    __device__ Pulled operator()(int64 i, float scale, float zero) const {
        return {dy[i] * scale, dy[i] * (widen(q[i]) - zero)};
    }
};

// Both after each other (LSQ): dx = dy inside the range; the scale gets dy (q - x / scale) there and dy q outside.
template <typename T>
struct OfFake {
    const T *x, *dy;
    int low, high;

    __device__ Pulled operator()(int64 i, float scale, float zero) const {
        const float quotient = widen(x[i]) / scale, level = rintf(quotient) + zero, given = widen(dy[i]);
        const bool inside = level >= low && level <= high;
        const float kept = fminf(fmaxf(level, low), high) - zero;
        return {inside ? given : 0, given * (inside ? kept - quotient : kept)};
    }
};

// Gradients of elements, and sums of the scales' as parts[place][part] where neighbours share a place: a block has a
// part of the elements of one.
template <typename T, typename Pull>
__device__ void pull_places(Pull pull, T *dx, int64 outer, int places, int64 inner, const float *scale,
                            const float *zero, int64 part, float *parts) {
    const int place = blockIdx.y;
    const float factor = scale[place], offset = zero ? zero[place] : 0;
    const int64 end = (blockIdx.x + 1) * part, all = outer * inner;
    float sum = 0;
#pragma unroll 4
    for (int64 j = blockIdx.x * part + threadIdx.x; j < (end < all ? end : all); j += 256) {
        const int64 o = outer == 1 ? 0 : j / inner, i = (o * places + place) * inner + (j - o * inner);
        const Pulled pulled = pull(i, factor, offset);
        narrow(pulled.element, dx[i]);
        sum += pulled.scale;
    }
    sum = across<256>(sum, Add());
    if (threadIdx.x == 0) parts[int64(place) * gridDim.x + blockIdx.x] = sum;
}

// The same as parts[part][column] where they do not: a thread has a part of a column.
template <typename T, typename Pull>
__device__ void pull_columns(Pull pull, T *dx, int64 outer, int places, int64 inner, const float *scale,
                             const float *zero, int64 part, float *parts) {
    const int64 column = int64(blockIdx.x) * 256 + threadIdx.x, columns = places * inner;
    if (column >= columns) return;
    const int place = column / inner;
    const float factor = scale[place], offset = zero ? zero[place] : 0;
    const int64 end = (blockIdx.y + 1) * part;
    float sum = 0;
#pragma unroll 4
    for (int64 o = blockIdx.y * part; o < (end < outer ? end : outer); o++) {
        const Pulled pulled = pull(o * columns + column, factor, offset);
        narrow(pulled.element, dx[o * columns + column]);
        sum += pulled.scale;
    }
    parts[blockIdx.y * columns + column] = sum;
}

template <typename T, bool kColumns, typename Pull>
__device__ void pull(Pull of, T *dx, int64 outer, int places, int64 inner, const float *scale, const float *zero,
                     int64 part, float *parts) {
    if constexpr (kColumns)
        pull_columns(of, dx, outer, places, inner, scale, zero, part, parts);
    else
        pull_places(of, dx, outer, places, inner, scale, zero, part, parts);
}

template <typename T, bool kColumns>
__global__ void __launch_bounds__(256)
    quantize_gradient(const T *x, const T *dq, T *dx, int64 outer, int places, int64 inner, const float *scale,
                      const float *zero, int64 part, float *parts, int low, int high) {
    pull<T, kColumns>(OfQuantize<T>{x, dq, low, high}, dx, outer, places, inner, scale, zero, part, parts);
}

template <typename Q, bool kColumns>
__global__ void __launch_bounds__(256)
    dequantize_gradient(const Q *q, const float *dy, float *dq, int64 outer, int places, int64 inner,
                        const float *scale, const float *zero, int64 part, float *parts) {
    pull<float, kColumns>(OfDequantize<Q>{q, dy}, dq, outer, places, inner, scale, zero, part, parts);
}

template <typename T, bool kColumns>
__global__ void __launch_bounds__(256)
    fake_quantize_gradient(const T *x, const T *dy, T *dx, int64 outer, int places, int64 inner, const float *scale,
                           const float *zero, int64 part, float *parts, int low, int high) {
    pull<T, kColumns>(OfFake<T>{x, dy, low, high}, dx, outer, places, inner, scale, zero, part, parts);
}

// instances: quantize<float, unsigned char>; quantize<bfloat16, signed char>; quantize_along<float16, signed char>
// instances: dequantize<signed char, float>; dequantize<unsigned char, bfloat16>
// instances: dequantize_along<unsigned char, float16>; value_range<float>; quantize_rows_u8<float, 4, 32, 8>
// instances: quantize_rows_s8<float16, 8, 256, 4>; fake_quantize<float>; quantize_gradient<float, true>
// instances: quantize_gradient<float, false>; fake_quantize_gradient<bfloat16, false>
// instances: dequantize_gradient<signed char, true>; dequantize_gradient<unsigned char, false>

// Teams of threads, each with a row: a warp, or a whole block. A row is kept in registers where it fits.
#pragma once

#include "elements.cuh"

struct Add {
    __device__ static float neutral() { return 0; }
    __device__ float operator()(float a, float b) const { return a + b; }
};

// For what a NaN reaches by another way, too: one instruction.
struct Larger {
    __device__ static float neutral() { return __int_as_float(0xff800000); }
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Threads of a block: a team, or several warps.
template <int kTeam>
constexpr int kBlockOf = kTeam > 32 ? kTeam : 128;

// One value of all threads of the team, the same in each and in every run.
template <int kTeam, typename Combine>
__device__ float across(float value, Combine combine) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) value = combine(value, __shfl_xor_sync(~0u, value, distance));
    if constexpr (kTeam > 32) {
        __shared__ float parts[kTeam / 32];
        __syncthreads();  // the parts of the last time have been read
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
        __syncthreads();
        value = parts[0];
        for (int warp = 1; warp < kTeam / 32; warp++) value = combine(value, parts[warp]);
    }
    return value;
}

template <int kTeam>
__device__ int64 row_of_team() {
    return int64(blockIdx.x) * (blockDim.x / kTeam) + threadIdx.x / kTeam;
}

// A row as its team reads it: `kWide` neighbours a thread at a time, `kVectors` times; 0: the row is too long to keep,
// and every pass reads it anew. `Source::fetch(column)` is an access of kWide of them, `Source::values` what they are.
// kPacked: what is kept is what was fetched, for halves in half the registers; what a visit changes is lost.
template <int kWide, int kTeam, int kVectors, typename Source, bool kPacked = false>
struct Row {
    Source source;
    int columns;
    typename Source::Fetched fetched[kVectors ? kVectors : 1];  // all of them on their way before one is used
    float kept[kVectors && !kPacked ? kVectors * kWide : 1];

    __device__ Row(Source source, int columns) : source(source), columns(columns) {
#pragma unroll
        for (int n = 0; n < kVectors; n++)
            if (column(n) < columns) fetched[n] = source.fetch(column(n));
#pragma unroll
        for (int n = 0; n < kVectors; n++)
            if (!kPacked && column(n) < columns) source.values(fetched[n], column(n), kept + n * kWide);
    }

    __device__ static int column(int vector) { return (vector * kTeam + threadIdx.x % kTeam) * kWide; }

    // visit(values, column, access): kWide values that may be changed, which lasts where the row is kept.
    template <typename Visit>
    __device__ void each(Visit visit) {
        if constexpr (kPacked && kVectors > 0) {
#pragma unroll
            for (int n = 0; n < kVectors; n++) {
                if (column(n) >= columns) continue;
                float values[kWide];
                fetched[n].forget();
                source.values(fetched[n], column(n), values);
                visit(values, column(n), n);
            }
        } else if constexpr (kVectors > 0) {
#pragma unroll
            for (int n = 0; n < kVectors; n++)
                if (column(n) < columns) visit(kept + n * kWide, column(n), n);
        } else {
            for (int n = 0; column(n) < columns; n++) {
                float values[kWide];
                source.values(source.fetch(column(n)), column(n), values);
                visit(values, column(n), n);
            }
        }
    }

    // The combination of f(value) over the row; f may change the value, as a visit may.
    template <typename Combine, typename F>
    __device__ float fold(Combine combine, F f) {
        float folded = Combine::neutral();
        each([&](float *values, int, int) {
#pragma unroll
            for (int w = 0; w < kWide; w++) folded = combine(folded, f(values[w]));
        });
        return across<kTeam>(folded, combine);
    }

    // to[column] = f(value, column).
    template <typename T, typename F>
    __device__ void write(T *to, F f) {
        each([&](const float *values, int at, int) {
            float results[kWide];
#pragma unroll
            for (int w = 0; w < kWide; w++) results[w] = f(values[w], at + w);
            store<kWide>(to + at, results);
        });
    }
};

// The row as it is in memory.
template <typename T, int kWide>
struct Plain {
    typedef Access<T, kWide> Fetched;
    const T *from;

    __device__ Fetched fetch(int column) const {
        Fetched fetched;
        fetched.fetch(from + column);
        return fetched;
    }

    __device__ static void values(const Fetched &fetched, int, float *values) { fetched.values(values); }
};

// What all rows have in common, such as factors of columns: asked for with the row where a thread keeps little of it, so
// that nobody waits for it when the sums are known. Null stands for zeros.
template <typename T, int kWide, int kTeam, int kVectors>
struct OfColumns {
    static constexpr bool kEarly = kVectors > 0 && kWide == kWidest<T> && kTeam * kVectors <= 1024;
    const T *from;
    Access<T, kWide> kept[kEarly ? kVectors : 1] = {};

    __device__ OfColumns(const T *from, int columns) : from(from) {
        if constexpr (kEarly)
#pragma unroll
            for (int n = 0; n < kVectors; n++) {
                const int column = (n * kTeam + threadIdx.x % kTeam) * kWide;
                if (from && column < columns) kept[n].fetch(from + column);
            }
    }

    __device__ void load(int column, int access, float *values) const {
        if constexpr (kEarly) {
            kept[access].values(values);
        } else if (from) {
            ::load<kWide>(from + column, values);
        } else {
            for (int w = 0; w < kWide; w++) values[w] = 0;
        }
    }
};

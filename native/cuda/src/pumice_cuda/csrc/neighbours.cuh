// The same as `strips.cuh` where the rows of B came in another order, so that a thread's sums are neighbours and nobody
// trades: of GROUP blocks of 8 columns, row 8 b + q of B is what belongs to column q GROUP + b. A thread has q = 2j and
// 2j + 1 of every block, and so 2 GROUP columns side by side, 16 bytes. The groups that the matrix has are whole.
#pragma once

#include "epilogue.cuh"

template <Output OUTPUT>
constexpr int GROUP = 8 / sizeof(typename Stored<OUTPUT>::type);

// Four words from shared memory.
template <typename T>
__device__ __forceinline__ void load_four(const T* from, T (&values)[4]) {
    static_assert(sizeof(T) == 4, "words");
    *(uint4*)values = *(const uint4*)from;
}

// The lowest bytes of four words.
__device__ __forceinline__ u32 lowest_bytes(const u32 (&words)[4]) {
    return __byte_perm(__byte_perm(words[0], words[1], 0x0040), __byte_perm(words[2], words[3], 0x0040), 0x5410);
}

// Values 4 part .. 4 part + 3 of 16 bytes.
template <Output OUTPUT>
__device__ __forceinline__ void take_four(const u32 (&words)[4], int part, float (&values)[4]) {
    typename Stored<OUTPUT>::type each[4];
    memcpy(each, (const char*)words + part * sizeof(each), sizeof(each));
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = widen(each[i]);
}

template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int WIDTH>
struct Neighbours {
    typedef typename Stored<OUTPUT>::type Value;
    static constexpr int EACH = 2 * GROUP<OUTPUT>, SUMS = 4 * GROUP<OUTPUT>;  // of a thread: in a row; in both its rows
    static constexpr bool ADDS = RESIDUAL && OUTPUT != Output::s32;
    const Epilogue& e;
    const ColumnTerms<WIDTH>& terms;
    int row;                    // of this thread's first value; its other row is 8 below
    int inside;                 // its column in the tile
    Value* stored[2];           // its place in both rows
    const Value* residual[2];
    float row_scale[2];
    float least = 0.0f, greatest = 0.0f;  // of what this thread stores

    __device__ __forceinline__ Neighbours(const Epilogue& e, const ColumnTerms<WIDTH>& terms, int row, int column,
                                          int inside)
        : e(e), terms(terms), row(row + threadIdx.x % 32 / 4), inside(inside + threadIdx.x % 4 * EACH) {
        column += threadIdx.x % 4 * EACH;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int m = this->row + 8 * half;
            stored[half] = (Value*)e.out + m * e.out_stride + column;
            residual[half] = (const Value*)e.residual + m * e.residual_stride + column;
            row_scale[half] = ROW_SCALE && has_row(half) ? e.row_scale[m] : 1.0f;
        }
    }

    __device__ __forceinline__ bool has_row(int half) const { return row + 8 * half < e.rows; }

    // What is added to the thread's values of a group of columns that begins so many after the first.
    __device__ __forceinline__ void fetch(u32 (&beside)[2][4], int after) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            *(uint4*)beside[half] = make_uint4(0, 0, 0, 0);
            if (ADDS && has_row(half)) *(uint4*)beside[half] = *(const uint4*)(residual[half] + after);
        }
    }

    // Those values.
    __device__ __forceinline__ void make(const u32* sums, int after, const u32 (&beside)[2][4], u32 (&words)[2][4]) {
#pragma unroll
        for (int part = 0; part < EACH / 4; ++part) finish(sums, after, part, beside, words);
    }

private:
    // Four columns of both rows.
    __device__ __forceinline__ void finish(const u32* sums, int after, int part, const u32 (&beside)[2][4],
                                           u32 (&words)[2][4]) {
        const int at = inside + after + 4 * part;
        int offset[4] = {};
        if constexpr (INTEGER && OFFSETS) load_four(terms.offset + at, offset);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32 four[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int nth = 4 * part + i;
                four[i] = sums[4 * (nth % GROUP<OUTPUT>) + 2 * half + nth / GROUP<OUTPUT>] + (INTEGER ? offset[i] : 0);
            }
            if constexpr (OUTPUT == Output::s32) *(uint4*)words[half] = *(const uint4*)four;
            else put(words[half], part, half, at, four, beside[half]);
        }
    }

    __device__ __forceinline__ void put(u32 (&words)[4], int part, int half, int at, const u32 (&sums)[4],
                                        const u32 (&beside)[4]) {
        float scale[4], bias[4], residual[4] = {}, v[4];
        load_four(terms.scale + at, scale);
        load_four(terms.bias + at, bias);
        if constexpr (ADDS) take_four<OUTPUT>(beside, part, residual);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float sum = INTEGER ? (float)(int)sums[i] : __uint_as_float(sums[i]);
            v[i] = finished_value<OUTPUT, ACTIVATION, RESIDUAL>(sum * (scale[i] * row_scale[half]) + bias[i], residual[i], e);
        }
        if constexpr (RANGED) range(v, at, half);
        if constexpr (GROUP<OUTPUT> == 4) {
            words[2 * part] = halves<OUTPUT>(v[0], v[1]), words[2 * part + 1] = halves<OUTPUT>(v[2], v[3]);
        } else {
            u32 bits[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) bits[i] = stored_bits<OUTPUT, RESIDUAL>(v[i], residual[i], e);
            if constexpr (GROUP<OUTPUT> == 2) *(uint4*)words = *(const uint4*)bits;
            else words[part] = lowest_bytes(bits);
        }
    }

    __device__ __forceinline__ void range(float (&v)[4], int at, int half) {
        float factor[4];
        load_four(terms.factor + at, factor);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            v[i] *= factor[i];
            if (has_row(half)) least = Least()(least, v[i]), greatest = Greatest()(greatest, v[i]);
        }
    }
};

// The finished values of a warp's strip until they are stored, a few at a time and while other work runs.
template <Output OUTPUT, int BLOCKS>
struct Waiting {
    typedef typename Stored<OUTPUT>::type Value;
    static constexpr int COUNT = 2 * BLOCKS / GROUP<OUTPUT>;  // of every group of columns, both rows of a thread
    uint4 values[COUNT];
    Value* to;     // where the first belongs
    int rows = 0;  // that the matrix has from there on
    int columns;   // from the strip's first on

    __device__ __forceinline__ void store(int nth, const Epilogue& e) const {
        const int half = nth % 2, after = nth / 2 * 8 * GROUP<OUTPUT>;
        if (8 * half < rows && after < columns) *(uint4*)(to + 8 * half * e.out_stride + after) = values[nth];
    }
};

// Hands every group of columns' values to `take(strip, after, words)`.
template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int BLOCKS, int WIDTH, class Take>
__device__ __forceinline__ void finish_neighbours(const u32 (&sums)[4 * BLOCKS], const Epilogue& e,
                                                  const ColumnTerms<WIDTH>& terms, int row, int column, int inside,
                                                  Take take) {
    Neighbours<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, WIDTH> strip(e, terms, row, column, inside);
    constexpr int EACH = GROUP<OUTPUT>, GROUPS = BLOCKS / EACH;
    constexpr int AHEAD = GROUPS >= 16 ? 4 : GROUPS >= 8 ? 2 : 1;  // groups whose residuals are fetched at once
    static_assert(BLOCKS % EACH == 0, "groups are whole");
#pragma unroll
    for (int first = 0; first < BLOCKS; first += AHEAD * EACH) {
        u32 beside[AHEAD][2][4];
#pragma unroll
        for (int i = 0, block = first; i < AHEAD; ++i, block += EACH)
            if (column + 8 * block < e.columns) strip.fetch(beside[i], 8 * block);
#pragma unroll
        for (int i = 0, block = first; i < AHEAD; ++i, block += EACH)
            if (column + 8 * block < e.columns) {
                u32 words[2][4];
                strip.make(sums + 4 * block, 8 * block, beside[i], words);
                take(strip, 8 * block, words);
            }
    }
    if constexpr (RANGED) store_range<BLOCKS>(e, strip.least, strip.greatest, row, column);
}

template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int BLOCKS, int WIDTH>
__device__ __forceinline__ void store_neighbours(const u32 (&sums)[4 * BLOCKS], const Epilogue& e,
                                                 const ColumnTerms<WIDTH>& terms, int row, int column, int inside) {
    typedef Neighbours<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, WIDTH> Strip;
    auto store = [](const Strip& strip, int after, const u32 (&words)[2][4]) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
            if (strip.has_row(half)) *(uint4*)(strip.stored[half] + after) = *(const uint4*)words[half];
    };
    finish_neighbours<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, BLOCKS>(sums, e, terms, row, column, inside, store);
}

template <bool INTEGER, Output OUTPUT, Activation ACTIVATION, bool RESIDUAL, int BLOCKS, int WIDTH>
__device__ __forceinline__ void keep_neighbours(Waiting<OUTPUT, BLOCKS>& waiting, const u32 (&sums)[4 * BLOCKS],
                                                const Epilogue& e, const ColumnTerms<WIDTH>& terms, int row,
                                                int column) {
    typedef Neighbours<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, WIDTH> Strip;
    auto keep = [&](const Strip& strip, int after, const u32 (&words)[2][4]) {
        const int nth = after / (8 * GROUP<OUTPUT>) * 2;
        waiting.values[nth] = *(const uint4*)words[0], waiting.values[nth + 1] = *(const uint4*)words[1];
        if (after == 0) waiting.to = strip.stored[0], waiting.rows = e.rows - strip.row;
    };
    finish_neighbours<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, BLOCKS>(sums, e, terms, row, column, 0, keep);
    waiting.columns = e.columns - column;
}

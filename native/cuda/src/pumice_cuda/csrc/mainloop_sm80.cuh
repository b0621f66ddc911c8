// The loop of matrix products and convolutions from Ampere on: out (M, N) = epilogue(A B'), B (N, K), with mma.sync,
// whose operands every warp reads from shared memory into registers.
//
// A block of 8 warps makes 128 rows by 128 columns, each warp 32 by 64, or 128 by 64, each warp 16 by 64. Steps of 64
// bytes of K come through a ring of STAGES buffers by asynchronous copies of ACCESS bytes, for each of which the source of A or B says where it lies, how
// much of it is inside the array (the rest becomes zero) and how to go on to the next step. Rows of a buffer are four
// chunks of 16 bytes, permuted so that the eight rows that ldmatrix reads at once lie in different banks.
//
// The layouts of all operand types are alike in bytes: a fragment is 16 (A) or 8 (B) rows of 32 bytes of K. Operands of
// f32 are split into what TF32 holds (the upper 10 bits of the mantissa) and the rest: hi hi' + hi lo' + lo hi' has
// the accuracy of f32 for a third of the rate of TF32. The matrix unit cuts its sums towards zero, an error that grows
// with K, so each 8 of K are added up by it and the eights by the rounding adder.
#pragma once

#include "operands.cuh"

#ifndef USE_WIDTH
#define USE_WIDTH 128
#endif
constexpr int STEP_BYTES = 64, STAGES = 4, HEIGHT = 128, WIDTH = USE_WIDTH, THREADS = 256;
constexpr int ACROSS = WIDTH / 64, STRIPS = HEIGHT / 16 * ACROSS / 8;  // warps across; 16 rows each of a warp
constexpr int BUFFER = (HEIGHT + WIDTH) * STEP_BYTES;

#ifndef USE_ACCESS
#define USE_ACCESS 16
#endif
constexpr int ACCESS = USE_ACCESS, ELEMENT_BYTES = INTEGER ? 1 : ELEMENT == Element::tf32 || ELEMENT == Element::f32 ? 4 : 2;

// What one thread copies of each step: pieces of ACCESS bytes at one place of K in every ROWS_APART-th row.
constexpr int PIECES_PER_ROW = STEP_BYTES / ACCESS, ROWS_APART = THREADS / PIECES_PER_ROW;
template <int ROWS>
constexpr int PIECES = ROWS / ROWS_APART;
// Small pieces need registers, and so do many sums and the parts of f32.
constexpr int BLOCKS_AT_ONCE = ACCESS == 16 || (WIDTH == 64 && ELEMENT != Element::f32) ? 2 : 1;

// `inside` bytes are read and the rest of ACCESS is zero.
__device__ __forceinline__ void copy_async(u32 to, const void* from, int inside) {
    if constexpr (ACCESS == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(ACCESS), "r"(inside));
}

__device__ __forceinline__ void load_matrices(u32 (&words)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from));
}

#define MMA(shape_and_types)                                                                                         \
    asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

__device__ __forceinline__ void multiply_add(u32* sums, const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (ELEMENT == Element::s8) MMA("m16n8k32.row.col.s32.s8.s8.s32");
    else if constexpr (ELEMENT == Element::u8) MMA("m16n8k32.row.col.s32.u8.s8.s32");
    else if constexpr (ELEMENT == Element::f16) MMA("m16n8k16.row.col.f32.f16.f16.f32");
    else if constexpr (ELEMENT == Element::bf16) MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    else MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}

// What TF32 does not hold of an f32 number; the matrix unit ignores the lower bits of the number itself.
__device__ __forceinline__ u32 rest(u32 word) {
    return __float_as_uint(__uint_as_float(word) - __uint_as_float(word & 0xFFFFE000));
}

// In f32: the small products first, the sum of all rounded to nearest.
__device__ __forceinline__ void multiply_add_rounded(u32* sums, const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 a_rest[4] = {rest(a[0]), rest(a[1]), rest(a[2]), rest(a[3])};
    u32 part[4] = {};
    multiply_add(part, a_rest, b0, b1);
    multiply_add(part, a, rest(b0), rest(b1));
    multiply_add(part, a, b0, b1);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = __float_as_uint(__uint_as_float(sums[i]) + __uint_as_float(part[i]));
}

__device__ __forceinline__ void multiply_pair(u32* sums, const u32 (&a)[4], const u32 (&b)[4]) {
    constexpr auto multiply = ELEMENT == Element::f32 ? multiply_add_rounded : multiply_add;
    multiply(sums, a, b[0], b[1]);
    multiply(sums + 4, a, b[2], b[3]);
}

// Where 16 bytes of a row of a buffer lie.
__device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * STEP_BYTES + (chunk ^ (row / 2 & 3)) * 16;
}

// Rows of a matrix in memory, as many as a tile has columns or rows.
template <int ROWS>
struct MatrixRows {
    static constexpr int COUNT = PIECES<ROWS>;
    const unsigned char* from[COUNT];
    int left;  // bytes of K from this thread's place on

    __device__ __forceinline__ MatrixRows(const void* matrix, long long stride, int rows, int bytes, int first_row) {
        int row = first_row + threadIdx.x / PIECES_PER_ROW, at = threadIdx.x % PIECES_PER_ROW * ACCESS;
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            from[i] = (const unsigned char*)matrix + min(row + i * ROWS_APART, rows - 1) * stride + at;
        left = bytes - at;
    }
    __device__ __forceinline__ const void* piece(int i) const { return from[i]; }
    // Rows past the last repeat it; nobody stores what comes of them.
    __device__ __forceinline__ int inside() const { return max(0, min(left, ACCESS)); }
    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) from[i] += STEP_BYTES;
        left -= STEP_BYTES;
    }
};

template <class Rows>
__device__ __forceinline__ void copy_rows(u32 to, const Rows& rows) {
    int row = threadIdx.x / PIECES_PER_ROW, at = threadIdx.x % PIECES_PER_ROW * ACCESS;
#pragma unroll
    for (int i = 0; i < Rows::COUNT; ++i)
        copy_async(to + swizzled(row + i * ROWS_APART, at / 16) + at % 16, rows.piece(i), rows.inside());
}

// One step of K of a warp: STRIPS by 8 products of 16 by 8, twice.
__device__ __forceinline__ void multiply_step(u32 (&sums)[STRIPS][32], u32 a_rows, u32 b_rows) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int a_row = warp / ACROSS * 16 * STRIPS + lane % 16, a_chunk = lane / 16;
    int b_row = warp % ACROSS * 64 + lane / 16 * 8 + lane % 8, b_chunk = lane / 8 % 2;
#pragma unroll
    for (int half = 0; half < STEP_BYTES; half += 32) {
        u32 a[STRIPS][4];
#pragma unroll
        for (int i = 0; i < STRIPS; ++i) load_matrices(a[i], a_rows + swizzled(a_row + 16 * i, half / 16 + a_chunk));
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {  // of blocks of 8 columns
            u32 b[4];
            load_matrices(b, b_rows + swizzled(b_row + 16 * pair, half / 16 + b_chunk));
#pragma unroll
            for (int i = 0; i < STRIPS; ++i) multiply_pair(sums[i] + 8 * pair, a[i], b);
        }
    }
}

// The tile whose first row and column are given, over at least one step.
template <class A, class B>
__device__ __forceinline__ void multiply_tile(A a, B b, int steps, const Epilogue& e, int row, int column) {
    extern __shared__ __align__(128) unsigned char buffers[];
    __shared__ ColumnTerms<WIDTH> terms;
    FetchedTerms<WIDTH, THREADS> fetched;
    fetched.fetch(threadIdx.x, column, e);
    u32 base = shared_address(buffers);
    auto start = [&](int step) {
        if (step < steps) {
            u32 to = base + step % STAGES * BUFFER;
            copy_rows(to, a);
            copy_rows(to + HEIGHT * STEP_BYTES, b);
            a.advance();
            b.advance();
        }
        asm volatile("cp.async.commit_group;");
    };
    for (int step = 0; step < STAGES - 1; ++step) start(step);
    fetched.put(threadIdx.x, terms);
    u32 sums[STRIPS][32] = {};
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        start(step + STAGES - 1);
        u32 from = base + step % STAGES * BUFFER;
        multiply_step(sums, from, from + HEIGHT * STEP_BYTES);
    }
    int warp = threadIdx.x / 32, inside = warp % ACROSS * 64;
#pragma unroll
    for (int i = 0; i < STRIPS; ++i)
        store_strip<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, 8>(sums[i], e, terms, row + (warp / ACROSS * STRIPS + i) * 16,
                                                              column + inside, inside);
}

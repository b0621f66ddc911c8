// The loop of matrix products and convolutions from Ampere on: out (M, N) = epilogue(A B'), B (N, K), with mma.sync,
// whose operands every warp reads from shared memory into registers.
//
// A block of 8 warps makes 128 rows by 128 columns, each warp 32 by 64, or 128 by 64, each warp 16 by 64. Steps of 64
// bytes of K come through a ring of STAGES buffers by asynchronous copies of ACCESS bytes, for each of which the source
// of A or B says where it lies, how much of it is inside the array (the rest becomes zero) and how to go on to the next
// step. Rows of a buffer are four chunks of 16 bytes, permuted so that the eight rows that ldmatrix reads at once lie in
// different banks.
//
// From Hopper on a cluster of SPLITS blocks may take one tile and divide K: afterwards each adds up, from the shared
// memory of the others, the part of the columns that it stores.
//
// The layouts of all operand types are alike in bytes: a fragment is 16 (A) or 8 (B) rows of 32 bytes of K. Operands of
// f32 are split into what TF32 holds (the upper 10 bits of the mantissa) and the rest: hi hi' + hi lo' + lo hi' has
// the accuracy of f32 for a third of the rate of TF32. The matrix unit cuts its sums towards zero, an error that grows
// with K, so each 16 of K, a step, are added up by it and the steps by the rounding adder.
#pragma once

#include "clusters.cuh"
#include "operands.cuh"

#ifndef USE_WIDTH
#define USE_WIDTH 128
#endif
#ifndef USE_SPLITS
#define USE_SPLITS 1
#endif
constexpr int STEP_BYTES = 64, STAGES = 4, HEIGHT = 128, WIDTH = USE_WIDTH, THREADS = 256;
constexpr int ACROSS = WIDTH / 64, STRIPS = HEIGHT / 16 * ACROSS / 8;  // warps across; 16 rows each of a warp
constexpr int BUFFER = (HEIGHT + WIDTH) * STEP_BYTES;
constexpr int SPLITS = USE_SPLITS, OWN_BLOCKS = 8 * STRIPS / SPLITS;  // of 8 columns, that a warp stores
static_assert(4 * HEIGHT * WIDTH <= STAGES * BUFFER, "the sums of a divided K need more room");

#ifndef USE_ACCESS
#define USE_ACCESS 16
#endif
constexpr int ACCESS = USE_ACCESS, ELEMENT_BYTES = INTEGER ? 1 : ELEMENT == Element::tf32 || ELEMENT == Element::f32 ? 4 : 2;

// What one thread copies of each step: pieces of ACCESS bytes at one place of K in every ROWS_APART-th row.
constexpr int PIECES_PER_ROW = STEP_BYTES / ACCESS, ROWS_APART = THREADS / PIECES_PER_ROW;
template <int ROWS>
constexpr int PIECES = ROWS / ROWS_APART;
// Small pieces need registers, and so do many sums and the parts of f32.
constexpr int REASONS = (ACCESS < 16) + (WIDTH == 128) + (ELEMENT == Element::f32), BLOCKS_AT_ONCE = REASONS < 2 ? 2 : 1;

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

// In f32, the small products first.
__device__ __forceinline__ void multiply_add_parts(u32* sums, const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 a_rest[4] = {rest(a[0]), rest(a[1]), rest(a[2]), rest(a[3])};
    multiply_add(sums, a_rest, b0, b1);
    multiply_add(sums, a, rest(b0), rest(b1));
    multiply_add(sums, a, b0, b1);
}

// 16 by 8 sums, over both halves of a step; b are the n-th 8 columns of two.
__device__ __forceinline__ void multiply_halves(u32* sums, const u32 (&a)[2][4], const u32 (&b)[2][4], int n) {
    if constexpr (ELEMENT == Element::f32) {
        u32 step[4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) multiply_add_parts(step, a[half], b[half][2 * n], b[half][2 * n + 1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] = __float_as_uint(__uint_as_float(sums[i]) + __uint_as_float(step[i]));
    } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) multiply_add(sums, a[half], b[half][2 * n], b[half][2 * n + 1]);
    }
}

// Where 16 bytes of a row of a buffer lie.
__device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * STEP_BYTES + (chunk ^ (row / 2 & 3)) * 16;
}

// What a thread copies: of ACCESS bytes, those inside the array, which the rest of K may not be.
struct Piece {
    const void* from;
    int inside;
};

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
    // Rows past the last repeat it; nobody stores what comes of them.
    __device__ __forceinline__ Piece piece(int i) const { return {from[i], max(0, min(left, ACCESS))}; }
    __device__ __forceinline__ void advance(int steps = 1) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) from[i] += steps * STEP_BYTES;
        left -= steps * STEP_BYTES;
    }
};

template <class Rows>
__device__ __forceinline__ void copy_rows(u32 to, const Rows& rows) {
    int row = threadIdx.x / PIECES_PER_ROW, at = threadIdx.x % PIECES_PER_ROW * ACCESS;
#pragma unroll
    for (int i = 0; i < Rows::COUNT; ++i) {
        Piece piece = rows.piece(i);
        copy_async(to + swizzled(row + i * ROWS_APART, at / 16) + at % 16, piece.from, piece.inside);
    }
}

// One step of K of a warp: STRIPS by 8 products of 16 by 8, twice.
__device__ __forceinline__ void multiply_step(u32 (&sums)[STRIPS][32], u32 a_rows, u32 b_rows) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int a_row = warp / ACROSS * 16 * STRIPS + lane % 16, a_chunk = lane / 16;
    int b_row = warp % ACROSS * 64 + lane / 16 * 8 + lane % 8, b_chunk = lane / 8 % 2;
    u32 a[STRIPS][2][4];
#pragma unroll
    for (int i = 0; i < 2 * STRIPS; ++i)
        load_matrices(a[i / 2][i % 2], a_rows + swizzled(a_row + i / 2 * 16, i % 2 * 2 + a_chunk));
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {  // of blocks of 8 columns
        u32 b[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
            load_matrices(b[half], b_rows + swizzled(b_row + 16 * pair, 2 * half + b_chunk));
#pragma unroll
        for (int i = 0; i < 2 * STRIPS; ++i) multiply_halves(sums[i / 2] + 8 * pair + i % 2 * 4, a[i / 2], b, i % 2);
    }
}

// This block's blocks of columns, summed over the blocks of the cluster in the order of their ranks.
__device__ __forceinline__ void add_parts(const u32 (&sums)[STRIPS][32], u32 (&own)[4 * OWN_BLOCKS], void* ring) {
    u32* partial = (u32*)ring;  // (sums of a thread, THREADS)
    __syncthreads();            // all have read the last step
#pragma unroll
    for (int i = 0; i < 32 * STRIPS; ++i) partial[i * THREADS + threadIdx.x] = sums[i / 32][i % 32];
    cluster_sync();
    u32 from = shared_address(partial + cluster_rank() * 4 * OWN_BLOCKS * THREADS + threadIdx.x);
#pragma unroll
    for (int i = 0; i < 4 * OWN_BLOCKS; ++i) {
#pragma unroll
        for (int rank = 0; rank < SPLITS; ++rank) {
            u32 part = load_from_cluster(in_block(from + 4 * i * THREADS, rank));
            if (rank == 0) own[i] = part;
            else if (INTEGER) own[i] += part;
            else own[i] = __float_as_uint(__uint_as_float(own[i]) + __uint_as_float(part));
        }
    }
    cluster_sync();  // nobody leaves while others may read its memory
}

// Stores a warp's blocks of columns from `first` on, eight of which make a strip of 16 rows.
__device__ __forceinline__ void store_blocks(const u32 (&sums)[4 * OWN_BLOCKS], const Epilogue& e,
                                             const ColumnTerms<WIDTH>& terms, int row, int column, int first) {
    constexpr int TOGETHER = OWN_BLOCKS < 8 ? OWN_BLOCKS : 8;
    int warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < OWN_BLOCKS; i += TOGETHER) {
        int strip = warp / ACROSS * STRIPS + (first + i) / 8, inside = warp % ACROSS * 64 + (first + i) % 8 * 8;
        store_strip<INTEGER, OUTPUT, ACTIVATION, RESIDUAL, TOGETHER>(*(const u32(*)[4 * TOGETHER])(sums + 4 * i), e, terms,
                                                                     row + 16 * strip, column + inside, inside);
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
    int rank = SPLITS > 1 ? cluster_rank() : 0, before = steps * rank / SPLITS;
    if constexpr (SPLITS > 1) {
        steps = steps * (rank + 1) / SPLITS - before;
        a.advance(before);
        b.advance(before);
    }
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
    if constexpr (SPLITS > 1) {
        u32 own[4 * OWN_BLOCKS];
        add_parts(sums, own, buffers);
        store_blocks(own, e, terms, row, column, rank * OWN_BLOCKS);
    } else {
        store_blocks(*(const u32(*)[4 * OWN_BLOCKS])sums, e, terms, row, column, 0);
    }
}

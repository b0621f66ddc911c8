/* Tile kernels of R rows by two vectors of columns, from macros that the including file defines:
 *
 *   VECTOR, WIDTH      a vector's type and bytes
 *   A_BYTES            of A that BROADCAST(address) spreads over a vector: `group` consecutive k
 *   STEP(sum, a, b)    sum += a * b, in place
 *   ADD, LOAD, STORE, ZERO
 *
 * and then TILES_6, TILES_12 or TILES_14(name, group): kernels for up to so many rows, as many as registers allow
 * (2 R accumulators, two vectors of B, one of A). A last, incomplete group of k is gathered first, so that no memory
 * beyond a row is touched (and apart from the k loop, or gcc 12 would spill inside it). Few rows leave too few chains
 * to hide the latency of STEP: there k is dealt to S sets of accumulators, which are added up at the end.
 *
 * Each kernel is a `noipa` function, and on x86 STEP is an instruction in assembly: gcc 12, given intrinsics or a
 * chance to clone, copies accumulators from register to register, runs out of them, and stores all of them in every
 * iteration. */
#ifndef PUMICE_GEMM_TILES_H
#define PUMICE_GEMM_TILES_H

#include <stdint.h>
#include <string.h>

static inline int32_t word_at(const void *address) {
    int32_t word;
    memcpy(&word, address, sizeof word);
    return word;
}

#define UNROLL _Pragma("GCC unroll 14")

/* Rows are reached from one pointer every third row: p + stride and p + 2 stride are addressing modes. */
#define AT(r, s) (p[(r) / 3] + ((r) % 3) * stride + A_BYTES * (s))

#define TILE(name, R, S)                                                                                               \
    __attribute__((noipa)) static void name##_##R(int64_t groups, const char *a, int64_t stride, const char *b,        \
                                                  char *tile, int accumulate, const char *next, int64_t next_step) {   \
        const char *p[5];                                                                                              \
        VECTOR sum[S][R][2];                                                                                           \
        UNROLL for (int i = 0; i < 5; i++) p[i] = a + (3 * i < R ? 3 * i * stride : 0);                                \
        UNROLL for (int s = 0; s < S; s++) UNROLL for (int r = 0; r < R; r++) sum[s][r][0] = sum[s][r][1] = ZERO();    \
        int64_t g = 0;                                                                                                 \
        for (; g + S <= groups; g += S) {                                                                              \
            UNROLL for (int s = 0; s < S; s++) {                                                                       \
                const VECTOR b0 = LOAD(b + 2 * WIDTH * s), b1 = LOAD(b + 2 * WIDTH * s + WIDTH);                       \
                UNROLL for (int r = 0; r < R; r++) {                                                                   \
                    const VECTOR x = BROADCAST(AT(r, s));                                                              \
                    STEP(sum[s][r][0], x, b0);                                                                         \
                    STEP(sum[s][r][1], x, b1);                                                                         \
                }                                                                                                      \
            }                                                                                                          \
            __builtin_prefetch(next, 0, 2);                                                                            \
            if (R <= 6) __builtin_prefetch(next + 64, 0, 2);                                                           \
            next += S * next_step;                                                                                     \
            b += 2 * WIDTH * S;                                                                                        \
            UNROLL for (int i = 0; i < 5; i++) p[i] += A_BYTES * S;                                                    \
        }                                                                                                              \
        for (; S > 1 && g < groups; g++) {                                                                             \
            const VECTOR b0 = LOAD(b), b1 = LOAD(b + WIDTH);                                                           \
            UNROLL for (int r = 0; r < R; r++) {                                                                       \
                const VECTOR x = BROADCAST(AT(r, 0));                                                                  \
                STEP(sum[0][r][0], x, b0);                                                                             \
                STEP(sum[0][r][1], x, b1);                                                                             \
            }                                                                                                          \
            b += 2 * WIDTH;                                                                                            \
            UNROLL for (int i = 0; i < 5; i++) p[i] += A_BYTES;                                                        \
        }                                                                                                              \
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2; v++) {                                        \
            UNROLL for (int s = 1; s < S; s++) sum[0][r][v] = ADD(sum[0][r][v], sum[s][r][v]);                         \
            char *to = tile + 2 * WIDTH * r + WIDTH * v;                                                               \
            STORE(to, accumulate ? ADD(sum[0][r][v], LOAD(to)) : sum[0][r][v]);                                        \
        }                                                                                                              \
    }

#define DISPATCH(name, group, most, ...)                                                                               \
    static void name(int rows, int64_t k, const void *a, int64_t stride, const void *panel, void *tile,                \
                     int accumulate, struct gemm_fetch fetch) {                                                        \
        typedef void (*tile_function)(int64_t, const char *, int64_t, const char *, char *, int, const char *,         \
                                      int64_t);                                                                        \
        static const tile_function functions[most] = {__VA_ARGS__};                                                    \
        const tile_function run = functions[rows - 1];                                                                 \
        const int64_t groups = k / (group), rest = k % (group) * A_BYTES / (group);                                    \
        run(groups, a, stride, panel, tile, accumulate, fetch.next, fetch.step);                                       \
        if (rest) {                                                                                                    \
            char last[(most) * A_BYTES];                                                                               \
            memset(last, 0, sizeof last);                                                                              \
            for (int r = 0; r < rows; r++)                                                                             \
                memcpy(last + A_BYTES * r, (const char *)a + r * stride + A_BYTES * groups, (size_t)rest);             \
            run(1, last, A_BYTES, (const char *)panel + 2 * WIDTH * groups, tile, 1, panel, 0);                        \
        }                                                                                                              \
    }

#define TILES_6(name, group)                                                                                          \
    TILE(name, 1, 4) TILE(name, 2, 3) TILE(name, 3, 2) TILE(name, 4, 1) TILE(name, 5, 1) TILE(name, 6, 1)              \
    DISPATCH(name, group, 6, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6)

#define TILES_FROM_4_TO_12(name)                                                                                      \
    TILE(name, 4, 2) TILE(name, 5, 2) TILE(name, 6, 2) TILE(name, 7, 1) TILE(name, 8, 1) TILE(name, 9, 1)              \
    TILE(name, 10, 1) TILE(name, 11, 1) TILE(name, 12, 1)

#define TILES_12(name, group)                                                                                         \
    TILE(name, 1, 8) TILE(name, 2, 4) TILE(name, 3, 4) TILES_FROM_4_TO_12(name)                                        \
    DISPATCH(name, group, 12, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8,          \
             name##_9, name##_10, name##_11, name##_12)

#define TILES_14(name, group)                                                                                         \
    TILE(name, 1, 8) TILE(name, 2, 4) TILE(name, 3, 4) TILES_FROM_4_TO_12(name) TILE(name, 13, 1) TILE(name, 14, 1)    \
    DISPATCH(name, group, 14, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8,          \
             name##_9, name##_10, name##_11, name##_12, name##_13, name##_14)

#endif

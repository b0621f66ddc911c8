/* AMX: 32 x 32 tiles from 2 x 2 tile registers of sums, two of A and two of B; u8 x s8 by tdpbusd, bf16 by tdpbf16ps.
 *
 * A tile register holds 16 rows of 64 bytes. The panel layout [k / group][32 columns][group] is the one that AMX wants
 * for B: a row of a B tile is `group` k of 16 columns, the next row lies 128 bytes on. A is loaded row by row from
 * where it is; the last, partial 64 bytes of its rows go through a padded copy.
 *
 * One operand stays in the first-level cache, a slice of a panel or of a tile of rows, and the other passes: a
 * streaming load keeps it from pushing the first one out, which is worth a third of the speed. */
#include <immintrin.h>
#include <string.h>

#include "base/numbers.h"
#include "base/tiles_amx.h"
#include "gemm/gemm.h"

enum { STEP_BYTES = 64, PANEL_ROW = 128, TILE_ROW = 128, MOST_ROWS = 32 };

/* Registers: 0 and 1 sums of the first 16 rows, 2 and 3 of the others; 4 and 5 A; 6 and 7 B. */
static void start(void) { _tile_loadconfig(&whole_tiles); }

static void finish(void) { _tile_release(); }

/* A step is 64 bytes of a row: 16 groups of k, 16 panel rows of B. */
static inline void fetch_for_a_step(struct gemm_fetch *fetch) {
    for (int64_t done = 0; done < 16 * fetch->step; done += 64) __builtin_prefetch(fetch->next + done, 0, 2);
    fetch->next += 16 * fetch->step;
}

#define TILES(name, group, product, load_a, load_b)                                                                    \
    static inline void name##_upper(int64_t steps, const char *a, int64_t stride, const char *b,                       \
                                    struct gemm_fetch fetch) {                                                         \
        for (; steps > 0; steps--, a += STEP_BYTES, b += 16 * PANEL_ROW) {                                             \
            load_a(4, a, stride);                                                                                      \
            load_b(6, b, PANEL_ROW);                                                                                   \
            product(0, 4, 6);                                                                                          \
            load_b(7, b + 64, PANEL_ROW);                                                                              \
            product(1, 4, 7);                                                                                          \
            fetch_for_a_step(&fetch);                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    static inline void name##_both(int64_t steps, const char *a, int64_t stride, const char *b,                        \
                                   struct gemm_fetch fetch) {                                                          \
        const char *lower = a + 16 * stride;                                                                           \
        for (; steps > 0; steps--, a += STEP_BYTES, lower += STEP_BYTES, b += 16 * PANEL_ROW) {                        \
            load_b(6, b, PANEL_ROW);                                                                                   \
            load_a(4, a, stride);                                                                                      \
            product(0, 4, 6);                                                                                          \
            load_b(7, b + 64, PANEL_ROW);                                                                              \
            product(1, 4, 7);                                                                                          \
            load_a(5, lower, stride);                                                                                  \
            product(2, 5, 6);                                                                                          \
            product(3, 5, 7);                                                                                          \
            fetch_for_a_step(&fetch);                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    static void name(int rows, int64_t k, const void *a, int64_t stride, const void *panel, void *tile,                \
                     int accumulate, struct gemm_fetch fetch) {                                                        \
        run(rows, k * (4 / (group)), a, stride, panel, tile, accumulate, fetch, name##_upper, name##_both);            \
    }

typedef void (*steps_function)(int64_t steps, const char *a, int64_t stride, const char *b, struct gemm_fetch fetch);

static inline __attribute__((always_inline)) void run(int rows, int64_t bytes, const char *a, int64_t stride,
                                                      const char *b, char *tile, int accumulate,
                                                      struct gemm_fetch fetch, steps_function upper,
                                                      steps_function both) {
    const int two = rows > 16;
    steps_function advance = two ? both : upper;
    char *lower = tile + 16 * TILE_ROW;
    if (accumulate) {
        _tile_loadd(0, tile, TILE_ROW);
        _tile_loadd(1, tile + 64, TILE_ROW);
        if (two) {
            _tile_loadd(2, lower, TILE_ROW);
            _tile_loadd(3, lower + 64, TILE_ROW);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const int64_t steps = bytes / STEP_BYTES, rest = bytes % STEP_BYTES;
    advance(steps, a, stride, b, fetch);
    if (rest) {
        char last[MOST_ROWS * STEP_BYTES] __attribute__((aligned(64)));
        for (int r = 0; r < rows; r++) {
            memcpy(last + r * STEP_BYTES, a + r * stride + steps * STEP_BYTES, (size_t)rest);
            memset(last + r * STEP_BYTES + rest, 0, (size_t)(STEP_BYTES - rest));
        }
        advance(1, last, STEP_BYTES, b + steps * 16 * PANEL_ROW, (struct gemm_fetch){b, 0});
    }
    _tile_stored(0, tile, TILE_ROW);
    _tile_stored(1, tile + 64, TILE_ROW);
    if (two) {
        _tile_stored(2, lower, TILE_ROW);
        _tile_stored(3, lower + 64, TILE_ROW);
    }
}

TILES(byte_tile, 4, _tile_dpbusd, _tile_stream_loadd, _tile_loadd)
TILES(byte_tile_held, 4, _tile_dpbusd, _tile_loadd, _tile_stream_loadd)
TILES(pair_tile, 2, _tile_dpbf16ps, _tile_stream_loadd, _tile_loadd)
TILES(pair_tile_held, 2, _tile_dpbf16ps, _tile_loadd, _tile_stream_loadd)

static struct gemm_kernel integer_kernel = {
    byte_tile, MOST_ROWS, 32, PUMICE_U8, PUMICE_S8, 4, 64, 1 << 12, .k_slice = 1024, .held = byte_tile_held,
    .row_step = 16, .whole_lines = 1, .start = start, .finish = finish};
static struct gemm_kernel bfloat_kernel = {
    pair_tile, MOST_ROWS, 32, PUMICE_BF16, PUMICE_BF16, 2, 32, 1 << 11, .k_slice = 512, .held = pair_tile_held,
    .row_step = 16, .whole_lines = 1, .start = start, .finish = finish};
static const struct gemm_kernel *integers(void) { return &integer_kernel; }
static const struct gemm_kernel *bfloats(void) { return &bfloat_kernel; }

/* Few rows keep the parent's kernels, which read the same panels. */
OVERRIDES(gemm, amx) {
    integer_kernel.of_few = table->gemm_integer();
    bfloat_kernel.of_few = table->gemm_bfloat();
    table->gemm_integer = integers;
    table->gemm_bfloat = bfloats;
}

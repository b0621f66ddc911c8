/* The definition of truth: plain loops. The compiler may vectorise them with what every machine of the architecture
 * has. */
#include <math.h>
#include <string.h>

#include "base/numbers.h"
#include "gemm/gemm.h"

enum { ROWS = 4, COLUMNS = 8 };

/* --- tiles -------------------------------------------------------------------------------------------------------- */

static void float_tile(int rows, int64_t k, const void *a, int64_t stride, const void *panel, void *tile,
                       int accumulate, struct gemm_fetch fetch) {
    float *sums = tile;
    const float *b = panel;
    if (!accumulate) memset(sums, 0, sizeof(float) * (size_t)rows * COLUMNS);
    for (int r = 0; r < rows; r++) {
        const float *row = (const float *)((const char *)a + r * stride);
        for (int64_t i = 0; i < k; i++)
            for (int c = 0; c < COLUMNS; c++) sums[r * COLUMNS + c] += row[i] * b[i * COLUMNS + c];
    }
}

static void integer_tile(int rows, int64_t k, const void *a, int64_t stride, const void *panel, void *tile,
                         int accumulate, struct gemm_fetch fetch) {
    int32_t *sums = tile;
    const int8_t *b = panel;
    if (!accumulate) memset(sums, 0, sizeof(int32_t) * (size_t)rows * COLUMNS);
    for (int r = 0; r < rows; r++) {
        const uint8_t *row = (const uint8_t *)a + r * stride;
        for (int64_t i = 0; i < k; i++)
            for (int c = 0; c < COLUMNS; c++) sums[r * COLUMNS + c] += row[i] * b[i * COLUMNS + c];
    }
}

static const struct gemm_kernel float_kernel = {float_tile, ROWS, COLUMNS, PUMICE_F32, PUMICE_F32, 1, 1, 512};
static const struct gemm_kernel bfloat_kernel = {float_tile, ROWS, COLUMNS, PUMICE_F32, PUMICE_F32,
                                                 1,          1,    512,     .rounds = 1};
static const struct gemm_kernel integer_kernel = {integer_tile, ROWS, COLUMNS, PUMICE_U8, PUMICE_S8, 1, 1, 1 << 30};

static const struct gemm_kernel *floats(void) { return &float_kernel; }
static const struct gemm_kernel *bfloats(void) { return &bfloat_kernel; }
static const struct gemm_kernel *integers(void) { return &integer_kernel; }

/* --- the epilogue ------------------------------------------------------------------------------------------------- */

static float residual_at(const struct pumice_epilogue *e, int64_t m, int64_t n) {
    int64_t at = m * e->residual_stride + n;
    switch (e->residual_type) {
    case PUMICE_F32: return ((const float *)e->residual)[at];
    case PUMICE_BF16: return bf16_to_float(((const bf16 *)e->residual)[at]);
    case PUMICE_U8: return (float)(((const uint8_t *)e->residual)[at] - e->residual_zero);
    default: return (float)(((const int8_t *)e->residual)[at] - e->residual_zero);
    }
}

/* Comparisons are written so that NaN passes. */
static float clamped(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

static float finished(const struct gemm_store *store, float v, int64_t m, int64_t n) {
    const struct pumice_epilogue *e = &store->e;
    if (e->scale) v = v * e->scale[n * e->scale_step];
    if (e->row_scale) v = v * e->row_scale[m];
    if (e->bias) v = v + e->bias[n];
    if (e->residual) v = v + residual_at(e, m, n) * e->residual_scale;
    if (store->map) gemm_activate(store, &v, 1);
    return clamped(v, store->low, store->high);
}

static int quantized(const struct gemm_store *store, float v) {
    if (store->e.divisor) v = v / store->e.divisor;
    /* NaN becomes the least value, as the vector instructions have it */
    v = v > store->floor ? v : store->floor;
    v = v > store->roof ? store->roof : v;
    int q = (int)rintf(v) + store->e.zero;
    return store->e.table ? store->e.table[q & 255] : q;
}

static void put(const struct gemm_store *store, float v, void *out, int64_t at) {
    switch (store->e.output) {
    case PUMICE_F32: ((float *)out)[at] = v; break;
    case PUMICE_BF16: ((bf16 *)out)[at] = float_to_bf16(v); break;
    default: ((uint8_t *)out)[at] = (uint8_t)quantized(store, v);
    }
}

static void store_float(const struct gemm_store *store, const float *sums, int tile_columns, int64_t m, int64_t n,
                        int rows, int columns, void *out, int64_t out_stride) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++)
            put(store, finished(store, sums[r * tile_columns + c], m + r, n + c), (char *)out + r * out_stride, c);
}

static int32_t corrected(const struct gemm_store *store, int32_t sum, int64_t m, int64_t n) {
    const struct pumice_epilogue *e = &store->e;
    uint32_t s = (uint32_t)sum;
    if (store->column_offset) s += (uint32_t)store->column_offset[n];
    if (e->row_term) s += (uint32_t)e->row_term[m] * (uint32_t)e->column_term[n];
    return (int32_t)s;
}

static void store_integer(const struct gemm_store *store, const int32_t *sums, int tile_columns, int64_t m, int64_t n,
                          int rows, int columns, void *out, int64_t out_stride) {
    for (int r = 0; r < rows; r++) {
        char *row = (char *)out + r * out_stride;
        for (int c = 0; c < columns; c++) {
            int32_t s = corrected(store, sums[r * tile_columns + c], m + r, n + c);
            if (store->e.output == PUMICE_S32)
                ((int32_t *)row)[c] = s;
            else
                put(store, finished(store, (float)s, m + r, n + c), row, c);
        }
    }
}

OVERRIDES(gemm, scalar) {
    table->gemm_float = floats;
    table->gemm_bfloat = bfloats;
    table->gemm_integer = integers;
    table->gemm_store_float = store_float;
    table->gemm_store_integer = store_integer;
}

/* The epilogue as loops over a row of a tile, for the compiler to vectorise with the flags of the including file.
 *
 * Defines store_float and store_integer; the order of operations is that of api.h, so that the bits are those of
 * scalar. */
#ifndef PUMICE_GEMM_STORE_ROWS_H
#define PUMICE_GEMM_STORE_ROWS_H

#include <math.h>
#include <string.h>

#include "base/numbers.h"
#include "gemm/gemm.h"

enum { MOST_COLUMNS = 64 };

static inline void add_residual(const struct pumice_epilogue *e, int64_t at, int columns, float *restrict v) {
    const float by = e->residual_scale;
    const int zero = e->residual_zero;
    switch (e->residual_type) {
    case PUMICE_F32:
        for (int c = 0; c < columns; c++) v[c] += ((const float *)e->residual)[at + c] * by;
        break;
    case PUMICE_BF16:
        for (int c = 0; c < columns; c++) v[c] += bf16_to_float(((const bf16 *)e->residual)[at + c]) * by;
        break;
    case PUMICE_U8:
        for (int c = 0; c < columns; c++) v[c] += (float)(((const uint8_t *)e->residual)[at + c] - zero) * by;
        break;
    default:
        for (int c = 0; c < columns; c++) v[c] += (float)(((const int8_t *)e->residual)[at + c] - zero) * by;
    }
}

static inline void finish_row(const struct gemm_store *store, int64_t m, int64_t n, int columns, float *restrict v) {
    const struct pumice_epilogue *e = &store->e;
    const float low = store->low, high = store->high;
    if (e->scale && e->scale_step)
        for (int c = 0; c < columns; c++) v[c] *= e->scale[n + c];
    else if (e->scale)
        for (int c = 0; c < columns; c++) v[c] *= e->scale[0];
    if (e->row_scale)
        for (int c = 0; c < columns; c++) v[c] *= e->row_scale[m];
    if (e->bias)
        for (int c = 0; c < columns; c++) v[c] += e->bias[n + c];
    if (e->residual) add_residual(e, m * e->residual_stride + n, columns, v);
    if (store->map) gemm_activate(store, v, columns);
    if (low > -INFINITY || high < INFINITY)
        for (int c = 0; c < columns; c++) {
            v[c] = v[c] < low ? low : v[c];
            v[c] = v[c] > high ? high : v[c];
        }
}

static inline void put_row(const struct gemm_store *store, int columns, float *restrict v, void *restrict out) {
    const struct pumice_epilogue *e = &store->e;
    if (e->output == PUMICE_F32) {
        memcpy(out, v, (size_t)columns * sizeof *v);
        return;
    }
    if (e->output == PUMICE_BF16) {
        for (int c = 0; c < columns; c++) ((bf16 *)out)[c] = float_to_bf16(v[c]);
        return;
    }
    const float floor = store->floor, roof = store->roof;
    const int zero = e->zero;
    uint8_t *bytes = out;
    if (e->divisor)
        for (int c = 0; c < columns; c++) v[c] /= e->divisor;
    for (int c = 0; c < columns; c++) {
        float q = v[c] > floor ? v[c] : floor;
        q = q > roof ? roof : q;
        bytes[c] = (uint8_t)((int)rintf(q) + zero);
    }
    if (e->table)
        for (int c = 0; c < columns; c++) bytes[c] = e->table[bytes[c]];
}

static void store_float(const struct gemm_store *store, const float *sums, int tile_columns, int64_t m, int64_t n,
                        int rows, int columns, void *out, int64_t out_stride) {
    float v[MOST_COLUMNS] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) {
        memcpy(v, sums + r * tile_columns, (size_t)columns * sizeof *v);
        finish_row(store, m + r, n, columns, v);
        put_row(store, columns, v, (char *)out + r * out_stride);
    }
}

static void store_integer(const struct gemm_store *store, const int32_t *sums, int tile_columns, int64_t m, int64_t n,
                          int rows, int columns, void *out, int64_t out_stride) {
    const struct pumice_epilogue *e = &store->e;
    uint32_t s[MOST_COLUMNS] __attribute__((aligned(64)));
    float v[MOST_COLUMNS] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) {
        char *to = (char *)out + r * out_stride;
        memcpy(s, sums + r * tile_columns, (size_t)columns * sizeof *s);
        if (store->column_offset)
            for (int c = 0; c < columns; c++) s[c] += (uint32_t)store->column_offset[n + c];
        if (e->row_term)
            for (int c = 0; c < columns; c++) s[c] += (uint32_t)e->row_term[m + r] * (uint32_t)e->column_term[n + c];
        if (e->output == PUMICE_S32) {
            memcpy(to, s, (size_t)columns * sizeof *s);
            continue;
        }
        for (int c = 0; c < columns; c++) v[c] = (float)(int32_t)s[c];
        finish_row(store, m + r, n, columns, v);
        put_row(store, columns, v, to);
    }
}

#endif

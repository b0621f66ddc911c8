/* See pack.h. Packing is bandwidth, not arithmetic: the loops below are shaped so that the compiler vectorises the
 * usual layouts (either stride 1). */
#include "gemm/pack.h"

#include <string.h>

#include "base/numbers.h"

int64_t gemm_panel_bytes(const struct gemm_kernel *kernel, int64_t k) {
    return round_up(k, kernel->k_align) * kernel->columns * pumice_type_size(kernel->b_type);
}

int gemm_shift_of_a(const struct gemm_kernel *kernel, int a_type) {
    if (kernel->a_type == PUMICE_U8 && a_type == PUMICE_S8) return 128;
    if (kernel->a_type == PUMICE_S8 && a_type == PUMICE_U8) return -128;
    return 0;
}

/* --- elements ----------------------------------------------------------------------------------------------------- */

static inline float widened(const void *data, int type, int64_t at) {
    return type == PUMICE_BF16 ? bf16_to_float(((const bf16 *)data)[at]) : ((const float *)data)[at];
}

static void round_floats(float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) values[i] = bf16_to_float(float_to_bf16(values[i]));
}

/* --- panels of B -------------------------------------------------------------------------------------------------- */

static void floats(const struct pumice_matrix *b, int64_t n, int64_t live, int columns, int rounds, float *panel) {
    int64_t down = b->row_stride, across = b->column_stride;
    if (b->type == PUMICE_F32 && across == 1) {
        const float *from = (const float *)b->data + n;
        for (int64_t k = 0; k < b->rows; k++) {
            memcpy(panel + k * columns, from + k * down, (size_t)live * sizeof *panel);
            memset(panel + k * columns + live, 0, (size_t)(columns - live) * sizeof *panel);
        }
        if (rounds) round_floats(panel, b->rows * columns);
        return;
    }
    enum { BLOCK = 16 }; /* k at a time, so that a transposed B is read by whole cache lines */
    for (int64_t k0 = 0; k0 < b->rows; k0 += BLOCK)
        for (int64_t c = 0; c < columns; c++)
            for (int64_t k = k0; k < smaller(k0 + BLOCK, b->rows); k++)
                panel[k * columns + c] = c < live ? widened(b->data, b->type, k * down + (n + c) * across) : 0;
    if (rounds) round_floats(panel, b->rows * columns);
}

static void bfloats(const struct pumice_matrix *b, int64_t n, int64_t live, int columns, int group, bf16 *panel) {
    int64_t down = b->row_stride, across = b->column_stride;
    for (int64_t k = 0; k < b->rows; k++) {
        bf16 *to = panel + k / group * columns * group + k % group;
        if (b->type == PUMICE_BF16) {
            const bf16 *from = (const bf16 *)b->data + k * down + n * across;
            for (int64_t c = 0; c < live; c++) to[c * group] = from[c * across];
        } else {
            const float *from = (const float *)b->data + k * down + n * across;
            for (int64_t c = 0; c < live; c++) to[c * group] = float_to_bf16(from[c * across]);
        }
    }
}

static void bytes(const struct pumice_matrix *b, int64_t n, int64_t live, int columns, int group, int8_t *panel) {
    int64_t down = b->row_stride, across = b->column_stride;
    const uint8_t flip = b->type == PUMICE_U8 ? 0x80 : 0;
    for (int64_t k = 0; k < b->rows; k++) {
        const uint8_t *from = (const uint8_t *)b->data + k * down + n * across;
        int8_t *to = panel + k / group * columns * group + k % group;
        for (int64_t c = 0; c < live; c++) to[c * group] = (int8_t)(from[c * across] ^ flip);
    }
}

/* Columns that are contiguous in k: whole groups of four move at once. */
static void transposed_bytes(const struct pumice_matrix *b, int64_t n, int64_t live, int columns, int8_t *panel) {
    const uint32_t flip = b->type == PUMICE_U8 ? 0x80808080u : 0;
    for (int64_t c = 0; c < live; c++) {
        const uint8_t *from = (const uint8_t *)b->data + (n + c) * b->column_stride;
        int64_t k = 0;
        for (; k + 4 <= b->rows; k += 4) {
            uint32_t word;
            memcpy(&word, from + k, 4);
            word ^= flip;
            memcpy(panel + k * columns + c * 4, &word, 4);
        }
        for (; k < b->rows; k++) panel[k / 4 * 4 * columns + c * 4 + k % 4] = (int8_t)(from[k] ^ (uint8_t)flip);
    }
}

static void shorts(const struct pumice_matrix *b, int64_t n, int64_t live, int columns, int group, int16_t *panel) {
    int64_t down = b->row_stride, across = b->column_stride;
    const uint8_t flip = b->type == PUMICE_U8 ? 0x80 : 0;
    for (int64_t k = 0; k < b->rows; k++) {
        const uint8_t *from = (const uint8_t *)b->data + k * down + n * across;
        int16_t *to = panel + k / group * columns * group + k % group;
        for (int64_t c = 0; c < live; c++) to[c * group] = (int8_t)(from[c * across] ^ flip);
    }
}

static void column_sums(const struct pumice_matrix *b, int64_t n, int64_t live, int columns, int32_t *sums) {
    const uint8_t flip = b->type == PUMICE_U8 ? 0x80 : 0;
    memset(sums, 0, (size_t)columns * sizeof *sums);
    for (int64_t k = 0; k < b->rows; k++) {
        const uint8_t *from = (const uint8_t *)b->data + k * b->row_stride + n * b->column_stride;
        for (int64_t c = 0; c < live; c++) sums[c] += (int8_t)(from[c * b->column_stride] ^ flip);
    }
}

static void transposed_sums(const struct pumice_matrix *b, int64_t n, int64_t live, int columns, int32_t *sums) {
    const uint8_t flip = b->type == PUMICE_U8 ? 0x80 : 0;
    memset(sums, 0, (size_t)columns * sizeof *sums);
    for (int64_t c = 0; c < live; c++) {
        const uint8_t *from = (const uint8_t *)b->data + (n + c) * b->column_stride;
        int32_t sum = 0;
        for (int64_t k = 0; k < b->rows; k++) sum += (int8_t)(from[k] ^ flip);
        sums[c] = sum;
    }
}

void gemm_pack_panel(const struct gemm_kernel *kernel, const struct pumice_matrix *b, int64_t number, void *panel,
                     int32_t *sums) {
    int columns = kernel->columns, group = kernel->group;
    int64_t n = number * columns, live = smaller(columns, b->columns - n);
    int transposed = b->row_stride == 1 && b->column_stride != 1;
    int64_t size = pumice_type_size(kernel->b_type),
            done = kernel->b_type == PUMICE_F32 ? b->rows : b->rows / group * group;
    /* what no element will fill: all of a narrow panel, else the last k */
    int64_t from = live < columns && kernel->b_type != PUMICE_F32 ? 0 : done * columns * size;
    memset((char *)panel + from, 0, (size_t)(gemm_panel_bytes(kernel, b->rows) - from));
    switch (kernel->b_type) {
    case PUMICE_F32: floats(b, n, live, columns, kernel->rounds, panel); break;
    case PUMICE_BF16: bfloats(b, n, live, columns, group, panel); break;
    case PUMICE_S16: shorts(b, n, live, columns, group, panel); break;
    default:
        if (transposed && group == 4)
            transposed_bytes(b, n, live, columns, panel);
        else
            bytes(b, n, live, columns, group, panel);
    }
    if (sums && transposed) transposed_sums(b, n, live, columns, sums);
    if (sums && !transposed) column_sums(b, n, live, columns, sums);
}

/* --- rows of A ---------------------------------------------------------------------------------------------------- */

static void float_row(const struct pumice_matrix *a, int64_t at, int64_t depth, float *to) {
    int64_t step = a->column_stride;
    if (a->type == PUMICE_BF16)
        for (int64_t k = 0; k < depth; k++) to[k] = bf16_to_float(((const bf16 *)a->data)[at + k * step]);
    else if (step == 1)
        memcpy(to, (const float *)a->data + at, (size_t)depth * sizeof *to);
    else
        for (int64_t k = 0; k < depth; k++) to[k] = ((const float *)a->data)[at + k * step];
}

static void bfloat_row(const struct pumice_matrix *a, int64_t at, int64_t depth, bf16 *to) {
    int64_t step = a->column_stride;
    if (a->type == PUMICE_F32)
        for (int64_t k = 0; k < depth; k++) to[k] = float_to_bf16(((const float *)a->data)[at + k * step]);
    else if (step == 1)
        memcpy(to, (const bf16 *)a->data + at, (size_t)depth * sizeof *to);
    else
        for (int64_t k = 0; k < depth; k++) to[k] = ((const bf16 *)a->data)[at + k * step];
}

static void byte_row(const struct pumice_matrix *a, int64_t at, int64_t depth, int shift, uint8_t *to) {
    int64_t step = a->column_stride;
    const uint8_t *from = (const uint8_t *)a->data + at;
    const uint8_t flip = shift ? 0x80 : 0;
    if (step == 1 && !flip)
        memcpy(to, from, (size_t)depth);
    else if (step == 1)
        for (int64_t k = 0; k < depth; k++) to[k] = from[k] ^ flip;
    else
        for (int64_t k = 0; k < depth; k++) to[k] = from[k * step] ^ flip;
}

static void short_row(const struct pumice_matrix *a, int64_t at, int64_t depth, int16_t *to) {
    int64_t step = a->column_stride;
    const uint8_t *from = (const uint8_t *)a->data + at;
    if (a->type == PUMICE_U8)
        for (int64_t k = 0; k < depth; k++) to[k] = from[k * step];
    else
        for (int64_t k = 0; k < depth; k++) to[k] = (int8_t)from[k * step];
}

/* A transposed A is read along its columns, a few rows at a time. */
static void transposed_floats(const struct pumice_matrix *a, int64_t m, int64_t rows, int64_t k, int64_t depth,
                              char *to, int64_t stride) {
    enum { BLOCK = 16 };
    const float *from = a->data;
    for (int64_t r0 = 0; r0 < rows; r0 += BLOCK)
        for (int64_t i = 0; i < depth; i++)
            for (int64_t r = r0; r < smaller(r0 + BLOCK, rows); r++)
                ((float *)(to + r * stride))[i] = from[(m + r) * a->row_stride + (k + i) * a->column_stride];
}

void gemm_pack_rows(const struct gemm_kernel *kernel, const struct pumice_matrix *a, int64_t m, int64_t rows, int64_t k,
                    int64_t depth, void *packed, int64_t stride) {
    int64_t size = pumice_type_size(kernel->a_type), padded = round_up(depth, kernel->k_align);
    int shift = gemm_shift_of_a(kernel, a->type);
    int transposed = kernel->a_type == PUMICE_F32 && a->type == PUMICE_F32 && a->column_stride != 1;
    if (transposed) transposed_floats(a, m, rows, k, depth, packed, stride);
    const int rounds = kernel->rounds && a->type == PUMICE_F32;
    for (int64_t r = 0; r < rows; r++) {
        char *to = (char *)packed + r * stride;
        int64_t at = (m + r) * a->row_stride + k * a->column_stride;
        memset(to + depth * size, 0, (size_t)((padded - depth) * size));
        switch (kernel->a_type) {
        case PUMICE_F32:
            if (!transposed) float_row(a, at, depth, (float *)to);
            if (rounds) round_floats((float *)to, depth);
            break;
        case PUMICE_BF16: bfloat_row(a, at, depth, (bf16 *)to); break;
        case PUMICE_S16: short_row(a, at, depth, (int16_t *)to); break;
        default: byte_row(a, at, depth, shift, (uint8_t *)to);
        }
    }
}

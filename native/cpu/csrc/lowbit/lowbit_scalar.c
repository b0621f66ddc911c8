/* What 4-bit products are: the definition that the other levels are tested against. */
#include <math.h>
#include <string.h>

#include "base/numbers.h"
#include "base/table.h"
#include "lowbit/finish.h"

static int code_at(const uint8_t *column, int64_t k) {
    int byte = column[k / 128 * 64 + k % 64];
    return k % 128 < 64 ? byte & 15 : byte >> 4;
}

/* Where group `g` begins. */
static int64_t group_start(const struct lowbit_weights *w, int64_t g) {
    return w->group_blocks ? smaller(g * w->group_blocks, w->blocks) * 128 : g * 32;
}

static int64_t table_at(const struct lowbit_weights *w, int64_t n, int64_t g) {
    return n * w->table_column + (w->group_blocks ? g : g / 4) * w->table_group;
}

static float dot_s8(const struct lowbit_weights *w, const int8_t *a, int64_t n) {
    const uint8_t *column = w->codes + n * w->blocks * 64;
    const float *scale = w->scale + n * w->groups;
    float total = 0;
    for (int64_t g = 0; g < w->groups; g++) {
        const int8_t *table = w->table_s8 + table_at(w, n, g);
        int32_t sum = 0;
        for (int64_t k = group_start(w, g); k < group_start(w, g + 1); k++) sum += a[k] * table[code_at(column, k)];
        total += (float)sum * scale[g];
    }
    return total;
}

static float dot_f32(const struct lowbit_weights *w, const float *a, int64_t n) {
    const uint8_t *column = w->codes + n * w->blocks * 64;
    const float *scale = w->scale + n * w->groups;
    double total = 0;
    for (int64_t g = 0; g < w->groups; g++) {
        const float *table = w->table_f32 + table_at(w, n, g);
        double sum = 0;
        for (int64_t k = group_start(w, g); k < group_start(w, g + 1); k++)
            sum += (double)a[lowbit_order(k)] * table[code_at(column, k)];
        total += sum * scale[g];
    }
    return (float)total;
}

static void products_s8(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1,
                        float *out, int64_t out_stride) {
    for (int64_t m = 0; m < rows->m; m++)
        for (int64_t n = n0; n < n1; n++)
            out[m * out_stride + n] =
                lowbit_finish(w, rows, m, n, dot_s8(w, (const int8_t *)rows->a + m * rows->stride, n), rows->scale[m]);
}

static void products_f32(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1,
                         float *out, int64_t out_stride) {
    for (int64_t m = 0; m < rows->m; m++)
        for (int64_t n = n0; n < n1; n++)
            out[m * out_stride + n] =
                lowbit_finish(w, rows, m, n, dot_f32(w, (const float *)rows->a + m * rows->stride, n), 1);
}

static float quantize_row(int8_t *q, const float *a, int64_t k, int64_t padded) {
    float most = 0;
    for (int64_t i = 0; i < k; i++) most = fabsf(a[i]) > most ? fabsf(a[i]) : most;
    if (!(most >= LOWBIT_LEAST)) most = 0;
    float inverse = most > 0 ? 127 / most : 0;
    for (int64_t i = 0; i < k; i++) {
        float level = a[i] * inverse;
        q[i] = (int8_t)rintf(level > -127 ? level < 127 ? level : 127 : -127);
    }
    memset(q + k, 0, (size_t)(padded - k));
    return most / 127;
}

static int wants_tiles(const struct lowbit_weights *w, int64_t m) { return 0; }

OVERRIDES(lowbit, scalar) {
    table->lowbit_s8 = products_s8;
    table->lowbit_wants_tiles = wants_tiles;
    table->lowbit_f32 = products_f32;
    table->lowbit_bf16 = products_f32;
    table->lowbit_quantize_row = quantize_row;
}

/* Products whose left operand is quantized on the way: each row is read once for its range and once for its values,
 * while it is in the first-level cache, and the sums leave the integer product with the row's scale. */
#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "gemm/api.h"
#include "lowbit/api.h"
#include "lowbit/dynamic.h"
#include "pool/pool.h"
#include "rows/api.h"

enum { LEAST_ELEMENTS = 32768, SIGNED_ZERO = 128 };

struct quantizing {
    const struct level *level;
    const float *a;
    int64_t m, k, a_stride, step;
    uint8_t *q;
    float *scale;               /* a row */
    struct rows_quantization all; /* the matrix's, where rows have none of their own */
};

/* Symmetric s8, stored as u8 with zero point 128, as integer products read their left operand. */
static void quantize_rows(void *context, int64_t chunk, int worker) {
    const struct quantizing *j = context;
    for (int64_t m = chunk * j->step; m < smaller(j->m, (chunk + 1) * j->step); m++) {
        uint8_t *q = j->q + m * j->k;
        j->scale[m] = j->level->table.lowbit_quantize_row((int8_t *)q, j->a + m * j->a_stride, j->k, j->k);
        for (int64_t i = 0; i < j->k; i++) q[i] ^= SIGNED_ZERO;
    }
}

static void quantize_alike(void *context, int64_t chunk, int worker) {
    const struct quantizing *j = context;
    for (int64_t m = chunk * j->step; m < smaller(j->m, (chunk + 1) * j->step); m++)
        j->level->table.rows_quantize(j->a + m * j->a_stride, j->q + m * j->k, j->k, &j->all);
}

static void choose_parameters(struct quantizing *j) {
    float range[2] = {0, 0}, of_row[2];
    for (int64_t m = 0; m < j->m && j->k; m++) {
        j->level->table.rows_range(j->a + m * j->a_stride, j->k, of_row);
        range[0] = of_row[0] < range[0] ? of_row[0] : range[0];
        range[1] = of_row[1] > range[1] ? of_row[1] : range[1];
    }
    j->all = dynamic_quantization(range);
}

int pumice_dynamic_matmul(const struct pumice_packed *b, const float *a, int64_t m, int64_t k, int64_t a_stride,
                          int per_row, const float *scale, int64_t n, int scale_step, const int32_t *b_zero,
                          const float *bias, int activation, float *out, int64_t out_stride, int threads) {
    if (!b || m < 0 || k < 0 || n < 0 || a_stride < k || out_stride < n) return PUMICE_BAD_ARGUMENT;
    const int64_t bytes = round_up(m * k, 64), scales = per_row ? m : n;
    char *memory = pumice_scratch(SCRATCH_ROWS, (size_t)(bytes + scales * (int64_t)sizeof(float)));
    if (!memory) return PUMICE_NO_MEMORY;
    struct quantizing job = {.level = pumice_level(),
                             .a = a,
                             .m = m,
                             .k = k,
                             .a_stride = a_stride,
                             .q = (uint8_t *)memory,
                             .scale = (float *)(memory + bytes),
                             .step = larger(1, LEAST_ELEMENTS / larger(k, 1))};
    struct pumice_epilogue e = {
        .output = PUMICE_F32, .activation = activation, .scale = scale, .scale_step = scale_step, .bias = bias};
    if (per_row) {
        pumice_note_run(job.level, SLOT_lowbit_quantize_row);
        e.row_scale = job.scale;
    } else {
        choose_parameters(&job);
        pumice_note_run(job.level, SLOT_rows_quantize);
        for (int64_t i = 0; i < n; i++) job.scale[i] = job.all.scale * scale[i * scale_step];
        e.scale = job.scale, e.scale_step = 1;
    }
    pumice_parallel(m * k < 2 * LEAST_ELEMENTS ? 1 : threads, (m + job.step - 1) / job.step,
                    per_row ? quantize_rows : quantize_alike, &job);
    const struct pumice_matrix left = {memory, PUMICE_U8, m, k, k, 1};
    return pumice_gemm(b, &left, per_row ? SIGNED_ZERO : job.all.zero, b_zero, &e, out, out_stride, threads);
}

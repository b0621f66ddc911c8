/* Products of many pairs of matrices: each B is packed for its one use. */
#include "base/memory.h"
#include "gemm/packed.h"
#include "pool/pool.h"

struct batch {
    int product;
    const struct pumice_matrix *a, *b;
    const int64_t *a_offsets, *b_offsets, *out_offsets;
    int32_t a_zero;
    const int32_t *b_zero;
    const struct pumice_epilogue *epilogue;
    char *out;
    int64_t out_stride;
    const struct level *level;
    _Atomic int status;
};

static struct pumice_matrix moved(const struct pumice_matrix *matrix, int64_t offset) {
    struct pumice_matrix result = *matrix;
    result.data = (const char *)matrix->data + offset * pumice_type_size(matrix->type);
    return result;
}

static void run_item(struct batch *batch, int64_t i, int threads) {
    struct pumice_matrix a = moved(batch->a, batch->a_offsets[i]), b = moved(batch->b, batch->b_offsets[i]);
    struct pumice_packed packed;
    gemm_plan_packed(&packed, batch->level, batch->product, &b);
    char *memory = pumice_scratch(SCRATCH_GEMM_B, gemm_packed_size(&packed));
    if (!memory) {
        batch->status = PUMICE_NO_MEMORY;
        return;
    }
    gemm_place_packed(&packed, memory);
    gemm_fill_packed(&packed, &b, threads);
    char *out = batch->out + batch->out_offsets[i] * pumice_type_size(batch->epilogue->output);
    int status =
        pumice_gemm(&packed, &a, batch->a_zero, batch->b_zero, batch->epilogue, out, batch->out_stride, threads);
    if (status != PUMICE_OK) batch->status = status;
}

static void run_item_alone(void *context, int64_t i, int worker) { run_item(context, i, 1); }

int pumice_gemm_batch(int product, int64_t count, const struct pumice_matrix *a, const int64_t *a_offsets,
                      const struct pumice_matrix *b, const int64_t *b_offsets, int32_t a_zero, int32_t b_zero,
                      const struct pumice_epilogue *epilogue, void *out, const int64_t *out_offsets, int64_t out_stride,
                      int threads) {
    if (a->columns != b->rows) return PUMICE_BAD_ARGUMENT;
    if (!gemm_fits(product, a->type) || !gemm_fits(product, b->type)) return PUMICE_BAD_ARGUMENT;
    int32_t *zeros = NULL;
    if (b_zero) {
        zeros = pumice_alloc((size_t)b->columns * 4);
        if (!zeros) return PUMICE_NO_MEMORY;
        for (int64_t n = 0; n < b->columns; n++) zeros[n] = b_zero;
    }
    struct batch batch = {.product = product, .a = a, .b = b, .a_zero = a_zero, .b_zero = zeros};
    batch.a_offsets = a_offsets, batch.b_offsets = b_offsets, batch.out_offsets = out_offsets;
    batch.epilogue = epilogue, batch.out = out, batch.out_stride = out_stride, batch.level = pumice_level();
    int team = pumice_team(threads);
    double macs = (double)a->rows * (double)b->columns * (double)b->rows * (double)count;
    if (macs < 3 * gemm_least_macs(product)) team = 1;
    if (count >= team)
        pumice_parallel(team, count, run_item_alone, &batch);
    else
        for (int64_t i = 0; i < count; i++) run_item(&batch, i, team);
    if (zeros) pumice_free(zeros);
    return batch.status;
}

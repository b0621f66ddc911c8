/* Steps over real numbers, element by element and row by row. */
#include <string.h>

#include "base/memory.h"
#include "pooling/api.h"
#include "runtime/steps.h"

STEP_FUNCTION(map, pumice_map_step) { return pumice_map(a->function, operands[1], operands[0], a->count, a->parameters, threads); }

STEP_FUNCTION(binary, pumice_binary_step) {
    return pumice_binary(a->operation, operands[1], a->a_steps, operands[2], a->b_steps, operands[0], a->shape, threads);
}

STEP_FUNCTION(softmax, pumice_softmax_step) {
    return pumice_softmax(operands[1], operands[0], a->rows, a->columns, a->logarithm, threads);
}

STEP_FUNCTION(layer_norm, pumice_layer_norm_step) {
    return pumice_layer_norm(operands[1], operands[0], a->rows, a->columns, a->scale, a->bias, a->epsilon, a->rms, NULL, NULL,
                             threads);
}

STEP_FUNCTION(reduce, pumice_reduce_step) {
    return pumice_reduce(a->reduction, operands[1], operands[0], a->outer, a->reduced, a->inner, threads);
}

static int is_ahead(const struct pumice_extreme_index_step *a, float x, float best) {
    if (x != x || best != best) return x != x && (best == best || a->last);
    return (a->least ? x < best : x > best) || (a->last && x == best);
}

STEP_FUNCTION(extreme_index, pumice_extreme_index_step) {
    const float *x = operands[1];
    int64_t *y = operands[0];
    for (int64_t o = 0; o < a->outer; o++, x += a->size * a->inner, y += a->inner) {
        memset(y, 0, (size_t)a->inner * sizeof *y);
        for (int64_t k = 1; k < a->size; k++)
            for (int64_t i = 0; i < a->inner; i++)
                if (is_ahead(a, x[k * a->inner + i], x[y[i] * a->inner + i])) y[i] = k;
    }
    return PUMICE_OK;
}

STEP_FUNCTION(batch_norm, pumice_batch_norm_step) {
    return pumice_batch_norm(operands[1], operands[0], a->batch, a->channels, a->inner, a->scale, a->bias, a->mean, a->var,
                             a->epsilon, threads);
}

STEP_FUNCTION(pool_f32, pumice_pool_f32_step) {
    return pumice_pool_f32(&a->shape, a->what, a->batch, operands[1], operands[0], a->counts, threads);
}

STEP_FUNCTION(pool_nhwc, pumice_pool_nhwc_step) {
    return pumice_nhwc_max_pool(&a->shape, a->batch, operands[1], operands[0], threads);
}

STEP_FUNCTION(pool_rows, pumice_pool_rows_step) {
    return pumice_pool_f32_rows(a->what, a->rows, a->columns, operands[1], operands[0], threads);
}

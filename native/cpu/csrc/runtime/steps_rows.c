/* Steps over real numbers, element by element and row by row. */
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

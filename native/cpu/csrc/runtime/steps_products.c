/* Steps that multiply: convolutions, matrix products, recurrent layers. Operands take their place in a copy of the
 * arguments, so that nothing is shared between callers. */
#include "base/memory.h"
#include "runtime/steps.h"

STEP_FUNCTION(conv_u8, pumice_conv_u8_step) {
    struct pumice_conv_u8_epilogue epilogue = a->epilogue;
    epilogue.residual = operands[2];
    return pumice_conv_u8_run(a->conv, a->batch, operands[1], operands[0], &epilogue, threads);
}

STEP_FUNCTION(conv_f32, pumice_conv_f32_step) {
    struct pumice_conv_f32_epilogue epilogue = a->epilogue;
    epilogue.residual = operands[2];
    return pumice_conv_f32_run(a->conv, a->batch, operands[1], operands[0], &epilogue, threads);
}

STEP_FUNCTION(nhwc, pumice_nhwc_step) {
    return pumice_nhwc_run(a->conv, a->batch, operands[1], a->x_steps, operands[2], operands[0], &a->epilogue, threads);
}

STEP_FUNCTION(gemm, pumice_gemm_step) {
    struct pumice_matrix left = a->a;
    struct pumice_epilogue epilogue = a->epilogue;
    left.data = operands[1], epilogue.residual = operands[2];
    return pumice_gemm(a->weights, &left, a->a_zero, a->b_zero, &epilogue, operands[0], a->y_stride, threads);
}

STEP_FUNCTION(products, pumice_products_step) {
    struct pumice_matrix left = a->a, right = a->b;
    left.data = operands[1], right.data = operands[2];
    return pumice_gemm_batch(a->product, a->count, &left, a->a_offsets, &right, a->b_offsets, a->a_zero, a->b_zero, &a->epilogue,
                             operands[0], a->y_offsets, a->y_stride, threads);
}

/* Scales of all columns for levels that share one; NULL where there is no memory. */
static const float *column_scales(const struct pumice_dynamic_step *a, float a_scale) {
    float *scales = pumice_scratch(SCRATCH_OTHER, (size_t)a->columns * sizeof *scales);
    for (int64_t n = 0; scales && n < a->columns; n++) scales[n] = a_scale * a->scale[n * a->scale_step];
    return scales;
}

STEP_FUNCTION(dynamic, pumice_dynamic_step) {
    const uint8_t *zero = operands[3];
    const struct pumice_matrix left = {operands[1], PUMICE_U8, a->rows, a->depth, a->depth, 1};
    struct pumice_epilogue epilogue = a->epilogue;
    epilogue.residual = operands[4];
    if (zero) {
        epilogue.scale = column_scales(a, *(const float *)operands[2]), epilogue.scale_step = 1;
        if (!epilogue.scale) return PUMICE_NO_MEMORY;
    } else {
        epilogue.scale = a->scale, epilogue.scale_step = a->scale_step, epilogue.row_scale = operands[2];
    }
    return pumice_gemm(a->weights, &left, zero ? *zero : 128, a->b_zero, &epilogue, operands[0], a->y_stride, threads);
}

STEP_FUNCTION(lowbit, pumice_lowbit_step) {
    return pumice_lowbit_matmul(a->weights, operands[1], a->rows, a->depth, a->bias, operands[0], a->columns, threads);
}

STEP_FUNCTION(recurrent, pumice_recurrent_step) {
    struct pumice_recurrence recurrence = a->recurrence;
    recurrence.y = operands[0], recurrence.projected = operands[1];
    recurrence.h = operands[2], recurrence.c = operands[3], recurrence.lengths = operands[4];
    return pumice_recurrent(&recurrence, 1, threads);
}

STEP_FUNCTION(recurrent_u8, pumice_recurrent_u8_step) {
    struct pumice_recurrence_u8 recurrence = a->recurrence;
    recurrence.y = operands[0], recurrence.projected = operands[1];
    recurrence.h = operands[2], recurrence.c = operands[3], recurrence.lengths = operands[4];
    return pumice_recurrent_u8(&recurrence, threads);
}

STEP_FUNCTION(recurrent_levels, pumice_recurrent_levels_step) {
    struct pumice_recurrence_u8 recurrence = a->recurrence;
    recurrence.y = operands[0], recurrence.input.levels = operands[1];
    recurrence.h = operands[2], recurrence.c = operands[3], recurrence.lengths = operands[4];
    recurrence.input.scale = operands[5], recurrence.input.zero = operands[6];
    return pumice_recurrent_u8(&recurrence, threads);
}

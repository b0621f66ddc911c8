/* Steps that move elements, or change their type. */
#include <string.h>

#include "base/memory.h"
#include "runtime/steps.h"

STEP_FUNCTION(transpose, pumice_transpose_step) {
    return pumice_transpose(operands[1], operands[0], a->size, a->axes, a->shape, a->steps, threads);
}

STEP_FUNCTION(copy, pumice_copy_step) {
    char *to = (char *)operands[0] + a->to;
    const char *from = (const char *)operands[1] + a->from;
    for (int64_t i = 0; i < a->rows; i++, to += a->to_stride, from += a->from_stride) memcpy(to, from, (size_t)a->bytes);
    return PUMICE_OK;
}

STEP_FUNCTION(fill, pumice_fill_step) {
    memset(operands[0], a->value, (size_t)a->bytes);
    return PUMICE_OK;
}

/* Element i's bytes, or NULL. */
static inline const char *slice_at(const struct pumice_gather_step *a, const char *x, const void *indices, int64_t i) {
    int64_t index = a->wide ? ((const int64_t *)indices)[i] : ((const int32_t *)indices)[i];
    if (index < 0) index += a->size;
    return index < 0 || index >= a->size ? NULL : x + index * a->bytes;
}

STEP_FUNCTION(gather, pumice_gather_step) {
    char *to = operands[0];
    for (int64_t o = 0; o < a->outer; o++) {
        const char *x = (const char *)operands[1] + o * a->size * a->bytes;
        for (int64_t i = 0; i < a->count; i++, to += a->bytes) {
            const char *from = slice_at(a, x, operands[2], i);
            if (!from) return PUMICE_BAD_ARGUMENT;
            if (a->bytes == 4) memcpy(to, from, 4); /* a move, not a call */
            else memcpy(to, from, (size_t)a->bytes);
        }
    }
    return PUMICE_OK;
}

/* --- types ------------------------------------------------------------------------------------------------------------ */

#define CAST(from, to) \
    for (int64_t i = 0; i < count; i++) ((to *)y)[i] = (to)((const from *)x)[i];
#define CAST_TO(to)                                                        \
    switch (from) {                                                        \
    case PUMICE_N_BOOL:                                                    \
    case PUMICE_N_U8: CAST(uint8_t, to) return PUMICE_OK;                  \
    case PUMICE_N_S8: CAST(int8_t, to) return PUMICE_OK;                   \
    case PUMICE_N_S32: CAST(int32_t, to) return PUMICE_OK;                 \
    case PUMICE_N_S64: CAST(int64_t, to) return PUMICE_OK;                 \
    default: return PUMICE_BAD_ARGUMENT;                                   \
    }

static int to_f32(const void *x, int from, void *y, int64_t count) { CAST_TO(float) }
static int to_s64(const void *x, int from, void *y, int64_t count) { CAST_TO(int64_t) }
static int to_s32(const void *x, int from, void *y, int64_t count) { CAST_TO(int32_t) }

STEP_FUNCTION(cast, pumice_cast_step) {
    switch (a->target) {
    case PUMICE_N_F32: return to_f32(operands[1], a->source, operands[0], a->count);
    case PUMICE_N_S64: return to_s64(operands[1], a->source, operands[0], a->count);
    case PUMICE_N_S32: return to_s32(operands[1], a->source, operands[0], a->count);
    default: return PUMICE_BAD_ARGUMENT;
    }
}

/* --- choice ----------------------------------------------------------------------------------------------------------- */

static void choose_row(const struct pumice_where_step *w, char *y, const uint8_t *c, const char *a, const char *b) {
    const int64_t size = w->size;
    for (int64_t i = 0; i < w->shape[3]; i++)
        memcpy(y + i * size, c[i * w->c_steps[3]] ? a + i * w->a_steps[3] * size : b + i * w->b_steps[3] * size, (size_t)size);
}

STEP_FUNCTION(where, pumice_where_step) {
    const int64_t *n = a->shape, size = a->size;
    char *y = operands[0];
    for (int64_t i = 0; i < n[0] * n[1] * n[2]; i++, y += n[3] * size) {
        const int64_t at[3] = {i / (n[1] * n[2]), i / n[2] % n[1], i % n[2]};
        int64_t c = 0, p = 0, q = 0;
        for (int axis = 0; axis < 3; axis++)
            c += at[axis] * a->c_steps[axis], p += at[axis] * a->a_steps[axis], q += at[axis] * a->b_steps[axis];
        choose_row(a, y, (const uint8_t *)operands[1] + c, (const char *)operands[2] + p * size, (const char *)operands[3] + q * size);
    }
    return PUMICE_OK;
}

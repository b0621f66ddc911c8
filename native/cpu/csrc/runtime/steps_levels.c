/* Steps over levels of 8 bits, and between them and real numbers. */
#include <math.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "pool/pool.h"
#include "pooling/api.h"
#include "runtime/steps.h"

static const int64_t CHUNK = 1 << 16; /* levels worth handing to another thread */

STEP_FUNCTION(pool_u8, pumice_pool_u8_step) {
    return pumice_pool_u8_max(&a->shape, a->batch, operands[1], operands[0], a->is_signed, threads);
}

STEP_FUNCTION(mean_u8, pumice_mean_u8_step) {
    const int64_t count = a->batch * a->channels;
    int32_t *sums = pumice_scratch(SCRATCH_OTHER, (size_t)count * sizeof *sums);
    if (!sums) return PUMICE_NO_MEMORY;
    const int status = pumice_pool_u8_sums(a->batch, a->positions, a->channels, operands[1], sums, a->is_signed, threads);
    if (status) return status;
    const int32_t zeros = a->zero_point * (int32_t)a->positions;
    const float least = (float)((a->is_signed ? -128 : 0) - a->result_zero_point);
    for (int64_t i = 0; i < count; i++) {
        const float sum = (float)(sums[i] - zeros);
        if (a->multiplier == 0) {
            ((float *)operands[0])[i] = sum * a->scale;
        } else {
            const float level = fminf(fmaxf(sum * a->multiplier, least), least + 255);
            ((uint8_t *)operands[0])[i] = (uint8_t)((int32_t)rintf(level) + a->result_zero_point);
        }
    }
    return PUMICE_OK;
}

/* --- element by element ----------------------------------------------------------------------------------------------- */

struct span {
    const struct level *level;
    const void *arguments;
    void *const *operands;
    int64_t count;
};

static int run_spans(pumice_task task, const void *arguments, void *const *operands, int64_t count, int slot, int threads) {
    struct span span = {pumice_level(), arguments, operands, count};
    pumice_note_run(span.level, slot);
    pumice_parallel(threads, (count + CHUNK - 1) / CHUNK, task, &span);
    return PUMICE_OK;
}

static void add_span(void *context, int64_t chunk, int worker) {
    const struct span *s = context;
    const struct pumice_add_u8_step *a = s->arguments;
    uint8_t *const *o = (uint8_t *const *)s->operands;
    const int64_t at = chunk * CHUNK;
    s->level->table.runtime_add(&a->sum, o[1] + at, o[2] + at, o[0] + at, smaller(CHUNK, s->count - at));
}

STEP_FUNCTION(add_u8, pumice_add_u8_step) { return run_spans(add_span, a, operands, a->count, SLOT_runtime_add, threads); }

static void look_up_span(void *context, int64_t chunk, int worker) {
    const struct span *s = context;
    const struct pumice_look_up_step *a = s->arguments;
    uint8_t *const *o = (uint8_t *const *)s->operands;
    const int64_t at = chunk * CHUNK;
    s->level->table.runtime_look_up(a->table, o[1] + at, o[0] + at, smaller(CHUNK, s->count - at));
}

STEP_FUNCTION(look_up, pumice_look_up_step) {
    return run_spans(look_up_span, a, operands, a->count, SLOT_runtime_look_up, threads);
}

/* --- to levels and back ----------------------------------------------------------------------------------------------- */

STEP_FUNCTION(quantize, pumice_quantize_step) {
    const int32_t low = a->is_signed ? -128 : 0;
    return pumice_quantize(operands[1], operands[0], a->is_signed, a->outer, a->axis, a->inner, a->scale, a->zero, low,
                           low + 255, threads);
}

STEP_FUNCTION(dequantize, pumice_dequantize_step) {
    return pumice_dequantize(operands[1], a->is_signed, operands[0], a->outer, a->axis, a->inner, a->scale, a->zero, threads);
}

enum { STRIP = 1024 }; /* positions quantized before they are interleaved */

struct image {
    const struct pumice_quantize_image_step *a;
    const struct level *level;
    const float *x;
    uint8_t *y;
    int64_t strips;
    int failed;
};

static void image_strip(void *context, int64_t chunk, int worker) {
    struct image *image = context;
    const struct pumice_quantize_image_step *a = image->a;
    const int32_t low = a->is_signed ? -128 : 0;
    const struct rows_quantization how = {a->scale, a->zero, low, low + 255};
    const int64_t batch = chunk / image->strips, at = chunk % image->strips * STRIP, count = smaller(STRIP, a->positions - at);
    uint8_t *planes = pumice_scratch(SCRATCH_OTHER, (size_t)(a->channels * STRIP));
    if (!planes) {
        image->failed = 1;
        return;
    }
    for (int64_t c = 0; c < a->channels; c++)
        image->level->table.rows_quantize(image->x + (batch * a->channels + c) * a->positions + at, planes + c * STRIP, count, &how);
    uint8_t *to = image->y + (batch * a->positions + at) * a->channels;
    image->level->table.runtime_interleave(planes, STRIP, to, a->channels, count);
}

STEP_FUNCTION(quantize_image, pumice_quantize_image_step) {
    struct image image = {a, pumice_level(), operands[1], operands[0], (a->positions + STRIP - 1) / STRIP, 0};
    pumice_note_run(image.level, SLOT_runtime_interleave);
    pumice_parallel(a->positions * a->channels < CHUNK / 4 ? 1 : threads, a->batch * image.strips, image_strip, &image);
    return image.failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}

struct row_pass {
    const struct pumice_quantize_rows_step *a;
    const struct level *level;
    void *const *operands;
    int64_t step;
};

static void quantize_some_rows(void *context, int64_t chunk, int worker) {
    const struct row_pass *p = context;
    const int64_t columns = p->a->columns;
    for (int64_t r = chunk * p->step; r < smaller(p->a->rows, (chunk + 1) * p->step); r++) {
        uint8_t *y = (uint8_t *)p->operands[0] + r * columns;
        const float *x = (const float *)p->operands[1] + r * columns;
        ((float *)p->operands[2])[r] = p->level->table.lowbit_quantize_row((int8_t *)y, x, columns, columns);
        for (int64_t i = 0; i < columns; i++) y[i] ^= 0x80;
    }
}

STEP_FUNCTION(quantize_rows, pumice_quantize_rows_step) {
    struct row_pass pass = {a, pumice_level(), operands, larger(1, CHUNK / 4 / a->columns)};
    pumice_note_run(pass.level, SLOT_lowbit_quantize_row);
    pumice_parallel(threads, (a->rows + pass.step - 1) / pass.step, quantize_some_rows, &pass);
    return PUMICE_OK;
}

STEP_FUNCTION(quantize_dynamic, pumice_quantize_dynamic_step) {
    float range[2] = {0, 0};
    const int status = a->count ? pumice_range(operands[1], a->count, range, threads) : PUMICE_OK;
    if (status) return status;
    const float low = range[0] < 0 ? range[0] : 0, high = range[1] > 0 ? range[1] : 0;
    float scale = (high - low) / 255;
    if (scale == 0) scale = 1;
    const int32_t zero = (int32_t)fminf(fmaxf(rintf(-low / scale), 0), 255);
    *(float *)operands[2] = scale, *(uint8_t *)operands[3] = (uint8_t)zero;
    return pumice_quantize(operands[1], operands[0], 0, 1, 1, a->count, &scale, &zero, 0, 255, threads);
}

/* Permutation of axes. Axes that stay neighbours are merged first; what remains is a copy of rows, where the last axis
 * stays, or a transposition of planes in tiles of 16 x 16, so that reads and writes both fill cache lines. */
#include <string.h>

#include "base/numbers.h"
#include "base/table.h"
#include "pool/pool.h"
#include "rows/api.h"

enum { MOST_AXES = 6, TILE = 16 };
static const int64_t LEAST_BYTES = 128 << 10; /* of a chunk */

struct transpose_job {
    const struct level *level;
    const char *in;
    char *out;
    int size;
    int axes;
    int64_t shape[MOST_AXES], steps[MOST_AXES], out_steps[MOST_AXES]; /* in elements */
    int fast;                                                         /* axis that is contiguous in the input; -1: none */
    int64_t outer, step;                                              /* planes or rows, and those of a chunk */
};

static void merge_axes(struct transpose_job *j) {
    int kept = 0;
    for (int i = 0; i < j->axes; i++) {
        if (j->shape[i] == 1) continue;
        if (kept && j->steps[kept - 1] == j->steps[i] * j->shape[i]) {
            j->shape[kept - 1] *= j->shape[i];
            j->steps[kept - 1] = j->steps[i];
        } else {
            j->shape[kept] = j->shape[i];
            j->steps[kept++] = j->steps[i];
        }
    }
    if (!kept) {
        j->shape[kept] = 1;
        j->steps[kept++] = 1;
    }
    j->axes = kept;
}

/* Offsets, in elements, of the index `at` over all axes but the last and `skipped`. */
static void offsets(const struct transpose_job *j, int64_t at, int skipped, int64_t *in, int64_t *out) {
    *in = *out = 0;
    for (int i = j->axes - 2; i >= 0; i--) {
        if (i == skipped) continue;
        const int64_t index = at % j->shape[i];
        at /= j->shape[i];
        *in += index * j->steps[i];
        *out += index * j->out_steps[i];
    }
}

#define COPY_STRIDED(type)                                                                                \
    for (int64_t i = 0; i < count; i++) ((type *)out)[i] = ((const type *)in)[i * step];

static void copy_row(char *out, const char *in, int64_t step, int64_t count, int size) {
    if (step == 1) {
        memcpy(out, in, (size_t)(count * size));
        return;
    }
    switch (size) {
    case 1: COPY_STRIDED(uint8_t) break;
    case 2: COPY_STRIDED(uint16_t) break;
    case 4: COPY_STRIDED(uint32_t) break;
    default: COPY_STRIDED(uint64_t) break;
    }
}

/* out[r][c] = in[c][r] for a plane: rows along `fast`, columns along the last axis. */
static void transpose_plane(const struct transpose_job *j, const char *in, char *out) {
    const int last = j->axes - 1;
    const int64_t rows = j->shape[j->fast], columns = j->shape[last], in_step = j->steps[last], out_step = j->out_steps[j->fast];
    for (int64_t r = 0; r < rows; r += TILE)
        for (int64_t c = 0; c < columns; c += TILE) {
            const char *from = in + (r + c * in_step) * j->size;
            char *to = out + (r * out_step + c) * j->size;
            if (j->size == 4 && r + TILE <= rows && c + TILE <= columns)
                j->level->table.rows_transpose_tile((const uint32_t *)(const void *)from, in_step, (uint32_t *)(void *)to, out_step);
            else
                for (int64_t i = 0; i < smaller(TILE, rows - r); i++)
                    copy_row(to + i * out_step * j->size, from + i * j->size, in_step, smaller(TILE, columns - c), j->size);
        }
}

static void transpose_chunk(void *context, int64_t chunk, int worker) {
    const struct transpose_job *j = context;
    const int last = j->axes - 1;
    for (int64_t i = chunk * j->step; i < smaller(j->outer, (chunk + 1) * j->step); i++) {
        int64_t from, to;
        offsets(j, i, j->fast, &from, &to);
        if (j->fast >= 0)
            transpose_plane(j, j->in + from * j->size, j->out + to * j->size);
        else
            copy_row(j->out + to * j->size, j->in + from * j->size, j->steps[last], j->shape[last], j->size);
    }
}

int pumice_transpose(const void *in, void *out, int size, int axes, const int64_t *shape, const int64_t *steps, int threads) {
    if (axes < 0 || axes > MOST_AXES || (size != 1 && size != 2 && size != 4 && size != 8)) return PUMICE_BAD_ARGUMENT;
    struct transpose_job job = {.level = pumice_level(), .in = in, .out = out, .size = size, .axes = axes, .fast = -1, .outer = 1};
    memcpy(job.shape, shape, (size_t)axes * sizeof *shape);
    memcpy(job.steps, steps, (size_t)axes * sizeof *steps);
    for (int i = 0; i < axes; i++)
        if (!shape[i]) return PUMICE_OK;
    merge_axes(&job);
    const int last = job.axes - 1;
    job.out_steps[last] = 1;
    for (int i = last; i > 0; i--) job.out_steps[i - 1] = job.out_steps[i] * job.shape[i];
    for (int i = 0; i < last; i++)
        if (job.steps[last] != 1 && job.steps[i] == 1) job.fast = i;
    for (int i = 0; i < last; i++)
        if (i != job.fast) job.outer *= job.shape[i];
    const int64_t bytes = job.shape[last] * (job.fast >= 0 ? job.shape[job.fast] : 1) * size;
    const int team = pumice_team(threads);
    job.step = larger(larger(1, LEAST_BYTES / bytes), team == 1 ? job.outer : job.outer / (team * 2));
    pumice_note_run(job.level, SLOT_rows_transpose_tile);
    pumice_parallel(threads, (job.outer + job.step - 1) / job.step, transpose_chunk, &job);
    return PUMICE_OK;
}

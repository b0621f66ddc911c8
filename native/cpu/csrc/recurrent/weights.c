#include "recurrent/weights.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "gemm/gemm.h"

static struct pumice_recurrent_weights *create(const struct level *level, int gates, int64_t hidden, int split) {
    struct pumice_recurrent_weights *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    w->level = level, w->gates = gates, w->hidden = hidden;
    w->plain = gemm_kernel_of(level, PUMICE_FLOAT);
    w->product = split ? level->table.nhwc_product() : NULL;
    w->units = w->product ? w->product->filters : w->plain->columns;
    w->rows = w->product ? w->product->pixels : w->plain->rows;
    w->depth = w->product ? round_up(hidden, w->product->channel_step) : hidden;
    w->chunks = (hidden + w->units - 1) / w->units;
    w->panel_bytes = w->depth * w->units * (int64_t)sizeof(float);
    w->panels = pumice_alloc((size_t)(w->chunks * gates * w->panel_bytes));
    if (w->panels) return w;
    free(w);
    return NULL;
}

/* R's part of a panel, [depth][units], zero beyond the edges. */
static void gather(const struct pumice_recurrent_weights *w, const float *r, int64_t chunk, int64_t gate, float *rows) {
    const int64_t first = chunk * w->units, live = smaller(w->units, w->hidden - first);
    memset(rows, 0, (size_t)w->panel_bytes);
    for (int64_t u = 0; u < live; u++)
        for (int64_t k = 0; k < w->hidden; k++) rows[k * w->units + u] = r[(gate * w->hidden + first + u) * w->hidden + k];
}

int pumice_recurrent_pack(struct pumice_recurrent_weights **packed, const float *r, int gates, int64_t hidden, int split) {
    *packed = NULL;
    if (gates < 3 || gates > 4 || hidden < 1) return PUMICE_BAD_ARGUMENT;
    struct pumice_recurrent_weights *w = create(pumice_level(), gates, hidden, split);
    if (!w) return PUMICE_NO_MEMORY;
    float *rows = pumice_scratch(SCRATCH_GEMM_B, (size_t)w->panel_bytes);
    if (!rows) {
        pumice_recurrent_free(w);
        return PUMICE_NO_MEMORY;
    }
    for (int64_t i = 0; i < w->chunks * gates; i++) {
        gather(w, r, i / gates, i % gates, rows);
        if (w->product) w->product->pack(w->panels + i * w->panel_bytes, rows, w->depth);
        else memcpy(w->panels + i * w->panel_bytes, rows, (size_t)w->panel_bytes);
    }
    *packed = w;
    return PUMICE_OK;
}

struct pumice_recurrent_weights *recurrent_unsplit(const struct pumice_recurrent_weights *packed) {
    struct pumice_recurrent_weights *w = create(packed->level, packed->gates, packed->hidden, 0);
    float *rows = pumice_scratch(SCRATCH_GEMM_B, (size_t)packed->panel_bytes);
    if (w && rows && w->units == packed->units) {
        for (int64_t i = 0; i < w->chunks * w->gates; i++) {
            packed->product->unpack(rows, packed->panels + i * packed->panel_bytes, packed->depth);
            memcpy(w->panels + i * w->panel_bytes, rows, (size_t)w->panel_bytes);
        }
        return w;
    }
    pumice_recurrent_free(w);
    return NULL;
}

void pumice_recurrent_free(struct pumice_recurrent_weights *packed) {
    if (packed) pumice_free(packed->panels);
    free(packed);
}

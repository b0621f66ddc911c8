#include "recurrent/gates.h"

#include <stdlib.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "gemm/pack.h"

static int64_t columns_of(const struct pumice_gates *p) { return p->chunks * p->gates * p->units; }

/* The column of R that a dealt one comes from, or -1. */
static int64_t source(const struct pumice_gates *p, int64_t column) {
    const int64_t unit = column / (p->gates * p->units) * p->units + column % p->units, gate = column / p->units % p->gates;
    return unit < p->hidden ? gate * p->hidden + unit : -1;
}

static void deal_columns(const struct pumice_gates *p, const struct pumice_matrix *r, uint8_t *dealt) {
    const uint8_t *from = r->data;
    const int64_t columns = columns_of(p);
    for (int64_t c = 0; c < columns; c++) {
        const int64_t n = source(p, c);
        for (int64_t k = 0; k < p->rows; k++)
            dealt[k * columns + c] = n < 0 ? 0 : from[k * r->row_stride + n * r->column_stride];
    }
}

static void deal_parameters(struct pumice_gates *p, const float *scale, int scale_step, const int32_t *zero) {
    int any = 0;
    for (int64_t c = 0; c < columns_of(p); c++) {
        const int64_t n = source(p, c);
        p->scale[c] = n < 0 ? 0 : scale[n * scale_step];
        p->zeros[c] = n < 0 ? 0 : (float)((zero ? zero[n] : 0) - p->flip);
        any |= p->zeros[c] != 0;
    }
    if (!any) p->zeros = NULL;
}

/* Places everything in one allocation, its address in `panels`. */
static int place(struct pumice_gates *p) {
    const int64_t weights = round_up(p->chunks * p->gates * p->panel_bytes, 64), each = round_up(columns_of(p) * 4, 64);
    char *memory = pumice_alloc((size_t)(weights + 3 * each));
    p->panels = memory;
    if (!memory) return PUMICE_NO_MEMORY;
    p->sums = (float *)(void *)(memory + weights);
    p->zeros = (float *)(void *)(memory + weights + each);
    p->scale = (float *)(void *)(memory + weights + 2 * each);
    return PUMICE_OK;
}

static struct pumice_gates *create(const struct pumice_matrix *r, int gates) {
    struct pumice_gates *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->level = pumice_level(), p->kernel = gemm_kernel_of(p->level, PUMICE_INTEGER);
    p->gates = gates, p->rows = r->rows, p->hidden = r->columns / gates, p->flip = r->type == PUMICE_U8 ? 128 : 0;
    p->depth = round_up(p->rows, p->kernel->k_align), p->units = p->kernel->columns;
    p->chunks = (p->hidden + p->units - 1) / p->units, p->panel_bytes = gemm_panel_bytes(p->kernel, p->rows);
    if (place(p) == PUMICE_OK) return p;
    free(p);
    return NULL;
}

int pumice_gates_pack(struct pumice_gates **packed, const struct pumice_matrix *r, int gates, const float *scale,
                      int scale_step, const int32_t *zero) {
    *packed = NULL;
    if (gates < 3 || gates > 4 || r->rows < 1 || r->columns < 1 || r->columns % gates) return PUMICE_BAD_ARGUMENT;
    if (r->type != PUMICE_S8 && r->type != PUMICE_U8) return PUMICE_BAD_ARGUMENT;
    struct pumice_gates *p = create(r, gates);
    uint8_t *dealt = p ? pumice_alloc((size_t)(p->rows * columns_of(p))) : NULL;
    if (!dealt) {
        pumice_gates_free(p);
        return PUMICE_NO_MEMORY;
    }
    deal_columns(p, r, dealt);
    deal_parameters(p, scale, scale_step, zero);
    const struct pumice_matrix b = {dealt, r->type, p->rows, columns_of(p), columns_of(p), 1};
    for (int64_t i = 0; i < p->chunks * gates; i++) {
        int32_t sums[RECURRENT_UNITS];
        gemm_pack_panel(p->kernel, &b, i, p->panels + i * p->panel_bytes, sums);
        for (int64_t u = 0; u < p->units; u++) p->sums[i * p->units + u] = (float)sums[u];
    }
    pumice_free(dealt);
    *packed = p;
    return PUMICE_OK;
}

void pumice_gates_free(struct pumice_gates *packed) {
    if (packed) pumice_free(packed->panels);
    free(packed);
}

int64_t pumice_gates_bytes(const struct pumice_gates *packed) {
    return packed->chunks * packed->gates * packed->panel_bytes + 3 * columns_of(packed) * (int64_t)sizeof(int32_t);
}

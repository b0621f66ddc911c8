/* Packing, and packed weights that lie in memory of others. */
#include "gemm/packed.h"

#include <stdlib.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "gemm/pack.h"
#include "pool/pool.h"

static const double LEAST_WEIGHTS = 1e5; /* that are worth another thread */

const struct gemm_kernel *gemm_kernel_of(const struct level *level, int product) {
    switch (product) {
    case PUMICE_FLOAT: return RUN(level, gemm_float)();
    case PUMICE_BFLOAT: return RUN(level, gemm_bfloat)();
    default: return RUN(level, gemm_integer)();
    }
}

struct packing {
    struct pumice_packed *packed;
    const struct pumice_matrix *b;
};

static void pack_chunk(void *context, int64_t panel, int worker) {
    const struct packing *p = context;
    struct pumice_packed *packed = p->packed;
    int32_t *sums = packed->sums ? packed->sums + panel * packed->kernel->columns : NULL;
    gemm_pack_panel(packed->kernel, p->b, panel, packed->data + panel * packed->panel_bytes, sums);
}

int gemm_fits(int product, int type) {
    int bytes = type == PUMICE_U8 || type == PUMICE_S8;
    return product == PUMICE_INTEGER ? bytes : type == PUMICE_F32 || type == PUMICE_BF16;
}

double gemm_least_macs(int product) {
    static const double least[] = {1.5e6, 2e6, 6e6};
    return least[product];
}

void gemm_plan_packed(struct pumice_packed *packed, const struct level *level, int product,
                      const struct pumice_matrix *b) {
    packed->level = level, packed->kernel = gemm_kernel_of(level, product);
    packed->product = product, packed->b_type = b->type;
    packed->k = b->rows, packed->n = b->columns;
    packed->panels = (b->columns + packed->kernel->columns - 1) / packed->kernel->columns;
    packed->panel_bytes = gemm_panel_bytes(packed->kernel, b->rows);
}

static size_t bytes_of_sums(const struct pumice_packed *packed) {
    if (packed->product != PUMICE_INTEGER) return 0;
    return (size_t)round_up(packed->panels * packed->kernel->columns * 4, 64);
}

void gemm_place_packed(struct pumice_packed *packed, char *memory) {
    size_t sums = bytes_of_sums(packed);
    packed->sums = sums ? (int32_t *)memory : NULL;
    packed->data = memory + sums;
}

size_t gemm_packed_size(const struct pumice_packed *packed) {
    return bytes_of_sums(packed) + (size_t)(packed->panels * packed->panel_bytes);
}

void gemm_fill_packed(struct pumice_packed *packed, const struct pumice_matrix *b, int threads) {
    struct packing packing = {packed, b};
    pumice_parallel(threads, packed->panels, pack_chunk, &packing);
}

int pumice_pack(struct pumice_packed **result, int product, const struct pumice_matrix *b, int threads) {
    *result = NULL;
    if (product < PUMICE_FLOAT || product > PUMICE_INTEGER || !gemm_fits(product, b->type)) return PUMICE_BAD_ARGUMENT;
    struct pumice_packed *packed = calloc(1, sizeof *packed);
    if (!packed) return PUMICE_NO_MEMORY;
    gemm_plan_packed(packed, pumice_level(), product, b);
    char *memory = pumice_alloc(gemm_packed_size(packed));
    if (!memory) {
        free(packed);
        return PUMICE_NO_MEMORY;
    }
    gemm_place_packed(packed, memory);
    gemm_fill_packed(packed, b, (double)b->rows * (double)b->columns < LEAST_WEIGHTS ? 1 : threads);
    *result = packed;
    return PUMICE_OK;
}

void pumice_packed_free(struct pumice_packed *packed) {
    if (!packed) return;
    pumice_free(packed->sums ? (char *)packed->sums : packed->data);
    free(packed);
}

struct gemm_description gemm_describe(const struct pumice_packed *packed, const struct level **level) {
    *level = packed->level;
    return (struct gemm_description){packed->product, packed->b_type, packed->k, packed->n};
}

const void *gemm_packed_memory(const struct pumice_packed *packed) {
    return packed->sums ? (const void *)packed->sums : packed->data;
}

struct pumice_packed *gemm_map(const struct gemm_description *description, const struct level *level,
                               const void *memory) {
    const struct pumice_matrix b = {NULL, (int)description->b_type, description->k, description->n, 0, 0};
    const int product = (int)description->product;
    if (product < PUMICE_FLOAT || product > PUMICE_INTEGER || b.rows < 0 || b.columns < 0) return NULL;
    struct pumice_packed *packed = calloc(1, sizeof *packed);
    if (!packed) return NULL;
    gemm_plan_packed(packed, level, product, &b);
    gemm_place_packed(packed, (char *)memory);
    return packed;
}

int64_t pumice_packed_bytes(const struct pumice_packed *packed) { return (int64_t)gemm_packed_size(packed); }

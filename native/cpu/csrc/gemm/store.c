/* Makes epilogues ready: what follows from the fields is worked out once a call. */
#include <math.h>
#include <string.h>

#include "gemm/gemm.h"
#include "rows/api.h"

static int known(const struct pumice_epilogue *e, int integer) {
    if (e->output < PUMICE_F32 || e->output > PUMICE_S32 || (e->output == PUMICE_S32 && !integer)) return 0;
    if (e->activation < PUMICE_NO_ACTIVATION || e->activation > PUMICE_SIGMOID) return 0;
    return !e->residual || (e->residual_type >= PUMICE_F32 && e->residual_type <= PUMICE_S8);
}

int gemm_prepare_store(struct gemm_store *store, const struct pumice_epilogue *epilogue, const int32_t *column_offset,
                       int integer, const struct level *level) {
    memset(store, 0, sizeof *store);
    const struct pumice_epilogue *e = epilogue;
    if (!known(e, integer)) return PUMICE_BAD_ARGUMENT;
    store->e = *e;
    store->column_offset = column_offset;
    store->low = e->activation == PUMICE_CLIP ? e->low : -INFINITY;
    store->high = e->activation == PUMICE_CLIP ? e->high : INFINITY;
    if (e->output == PUMICE_U8 || e->output == PUMICE_S8) {
        int least = e->output == PUMICE_U8 ? 0 : -128;
        store->floor = (float)(least - e->zero), store->roof = (float)(least + 255 - e->zero);
    }
    if (e->activation >= PUMICE_GELU) {
        static const int functions[] = {PUMICE_F_GELU, PUMICE_F_SILU, PUMICE_F_TANH, PUMICE_F_SIGMOID};
        store->map = level->table.rows_map, store->function = functions[e->activation - PUMICE_GELU];
    }
    if (e->divisor == 1) store->e.divisor = 0;
    store->simple = !e->row_term && !e->row_scale && !e->residual && !store->map && !store->e.divisor && !e->table;
    return PUMICE_OK;
}

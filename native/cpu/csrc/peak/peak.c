#include "base/table.h"
#include "gemm/api.h"
#include "peak/api.h"
#include "pool/pool.h"

struct run {
    int64_t (*body)(int64_t);
    int64_t repeats;
    _Atomic int64_t operations;
};

static void run_body(void *context, int64_t chunk, int worker) {
    struct run *run = context;
    run->operations += run->body(run->repeats) * run->repeats;
}

int64_t pumice_peak(int product, int64_t repeats, int threads) {
    const struct kernel_table *table = &pumice_level()->table;
    struct run run = {product == PUMICE_FLOAT    ? table->peak_float
                      : product == PUMICE_BFLOAT ? table->peak_bfloat
                                                 : table->peak_integer,
                      repeats, 0};
    threads = pumice_team(threads);
    pumice_parallel(threads, threads, run_body, &run);
    return run.operations;
}

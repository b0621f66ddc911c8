#include "base/table.h"

enum { CHAINS = 8 };

static int64_t floats(int64_t repeats) {
    volatile float seed = 1e-9f;
    float sum[CHAINS] = {0}, x = seed;
    for (int64_t i = 0; i < repeats; i++)
        for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * x + x;
    for (int c = 0; c < CHAINS; c++) seed = sum[c];
    return 2 * CHAINS;
}

static int64_t integers(int64_t repeats) {
    volatile int seed = 3;
    uint32_t sum[CHAINS] = {0}, x = (uint32_t)seed;
    for (int64_t i = 0; i < repeats; i++)
        for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * x + x;
    for (int c = 0; c < CHAINS; c++) seed = (int)sum[c];
    return 2 * CHAINS;
}

OVERRIDES(peak, scalar) {
    table->peak_float = floats;
    table->peak_bfloat = floats;
    table->peak_integer = integers;
}

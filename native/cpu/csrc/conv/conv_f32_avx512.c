/* Float convolution: 8 filters x 48 pixels in 24 registers of sums. */

enum { ROWS = 8, RUN = 7 };
#include "base/table.h"
#define CONV_OWN_STORE
#include "conv/f32_tile.h"

/* vcompressps puts the outputs among 16 pixels side by side. */
static __attribute__((noipa)) void store_compressed(float *y, int64_t filter_step, const float *tile, int filters,
                                                    const struct conv_f32_runs *runs) {
    some mask[3];
    int place[4] = {0};
    for (int v = 0; v < 3; v++) {
        mask[v] = (some)(runs->mask >> (v * LANES));
        place[v + 1] = place[v] + __builtin_popcount(mask[v]);
    }
    for (int f = 0; f < filters; f++, tile += WIDTH, y += filter_step)
        for (int v = 0; v < 3; v++)
            STORE_SOME(y + place[v], _mm512_maskz_compress_ps(mask[v], LOAD(tile + v * LANES)),
                       SOME(place[v + 1] - place[v]));
}

OVERRIDES(conv_f32, avx512) {
    fill(table);
    table->conv_f32_store = store_compressed;
}

/* Attention: softmax(scale Q K + mask) V, head by head, scores never leaving the cache. */
#ifndef PUMICE_ATTENTION_API_H
#define PUMICE_ATTENTION_API_H

#include <stdint.h>

/* Steps are in elements along batch, head, row and column of an operand; 0 repeats it. Columns of `key` are keys, rows of
 * `value` too. */
struct pumice_attention {
    int64_t batch, heads, queries, keys, depth, value_depth;
    const float *query, *key, *value, *mask; /* mask: NULL for none */
    int64_t query_steps[4], key_steps[4], value_steps[4], mask_steps[4], out_steps[4]; /* of `out` the last is 1 */
    float scale;
    float *out;
};
int pumice_attention_run(const struct pumice_attention *attention, int threads);

#endif

/* The arithmetic peak of a core, for benchmarks. */
#ifndef PUMICE_PEAK_API_H
#define PUMICE_PEAK_API_H

#include <stdint.h>

/* Runs `repeats` times the multiply-adds that a product (enum pumice_product) is made of at the level in force, on
 * registers alone and on each of `threads` threads. Returns the operations done by all of them together. */
int64_t pumice_peak(int product, int64_t repeats, int threads);

#endif

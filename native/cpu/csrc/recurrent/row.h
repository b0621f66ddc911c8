/* One row by the panels of three or four gates side by side, so that a broadcast of the row serves all of them. From macros of
 * the including file:
 *
 *   VECTOR, ADD, ZERO
 *   BROADCAST(word)          four bytes of the row, a group of k
 *   ADD_PRODUCT(sum, a, b)   sum += a * the vector at b, in place
 *
 * Even and odd groups of k have accumulators of their own: chains enough to hide the latency of a product. */
#ifndef PUMICE_RECURRENT_ROW_H
#define PUMICE_RECURRENT_ROW_H

#include <immintrin.h>
#include <string.h>

#include "base/table.h"

enum { GROUP_BYTES = 2 * 64, WORD = 4 };

static inline int32_t word_at(const char *address) {
    int32_t word;
    memcpy(&word, address, sizeof word);
    return word;
}

/* An address that stays one: gcc would keep one for every product, more than there are registers. */
static inline const char *hidden(const char *address) {
    __asm__("" : "+r"(address));
    return address;
}

#define UNROLL _Pragma("GCC unroll 4")
#define EVERY(gates) UNROLL for (int g = 0; g < gates; g++) UNROLL for (int v = 0; v < 2; v++)
#define ROW(name, gates)                                                                                            \
    __attribute__((noipa)) static void name(const char *a, int64_t groups, const char *panels, int64_t panel_bytes, \
                                            char *sums, int64_t sums_bytes) {                                       \
        VECTOR even[gates][2], odd[gates][2];                                                                       \
        const char *at[gates];                                                                                      \
        UNROLL for (int g = 0; g < gates; g++) at[g] = hidden(panels + g * panel_bytes);                            \
        EVERY(gates) even[g][v] = odd[g][v] = ZERO();                                                               \
        int64_t k = 0;                                                                                              \
        for (; k + 2 <= groups; k += 2) {                                                                           \
            const VECTOR first = BROADCAST(word_at(a + k * WORD)), second = BROADCAST(word_at(a + k * WORD + WORD)); \
            EVERY(gates) {                                                                                          \
                ADD_PRODUCT(even[g][v], first, at[g] + GROUP_BYTES * k + 64 * v);                                   \
                ADD_PRODUCT(odd[g][v], second, at[g] + GROUP_BYTES * k + 64 * v + GROUP_BYTES);                     \
            }                                                                                                       \
        }                                                                                                           \
        if (k < groups) {                                                                                           \
            const VECTOR last = BROADCAST(word_at(a + k * WORD));                                                   \
            EVERY(gates) ADD_PRODUCT(even[g][v], last, at[g] + GROUP_BYTES * k + 64 * v);                           \
        }                                                                                                           \
        EVERY(gates) {                                                                                              \
            const VECTOR sum = ADD(even[g][v], odd[g][v]);                                                          \
            memcpy(sums + g * sums_bytes + 64 * v, &sum, sizeof sum);                                               \
        }                                                                                                           \
    }

#define ROWS(lstm_row, gru_row)                                                                                      \
    static void row(const void *a, int64_t groups, const char *panels, int64_t panel_bytes, int gates, void *sums,  \
                    int64_t sums_bytes) {                                                                           \
        (gates == 4 ? lstm_row : gru_row)(a, groups, panels, panel_bytes, sums, sums_bytes);                        \
    }                                                                                                               \
    static recurrent_row found(void) { return row; }

#endif

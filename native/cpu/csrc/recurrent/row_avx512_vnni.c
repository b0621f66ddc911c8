/* One row of levels with VNNI. */
#include "recurrent/row.h"

#define VECTOR __m512i
#define ADD(x, y) _mm512_add_epi32(x, y)
#define ZERO() _mm512_setzero_si512()
#define BROADCAST(word) _mm512_set1_epi32(word)
#define ADD_PRODUCT(sum, a, b) \
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "m"(*(const __m512i *)(const void *)(b)))
ROW(lstm_levels, 4)
ROW(gru_levels, 3)
ROWS(lstm_levels, gru_levels)

OVERRIDES(row, avx512_vnni) { table->recurrent_row_u8 = found; }

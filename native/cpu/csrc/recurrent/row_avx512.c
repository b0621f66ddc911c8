/* One row of float32 with AVX-512. */
#include "recurrent/row.h"

#define VECTOR __m512
#define ADD(x, y) _mm512_add_ps(x, y)
#define ZERO() _mm512_setzero_ps()
#define BROADCAST(word) _mm512_castsi512_ps(_mm512_set1_epi32(word))
#define ADD_PRODUCT(sum, a, b) \
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "m"(*(const __m512 *)(const void *)(b)))
ROW(lstm_floats, 4)
ROW(gru_floats, 3)
ROWS(lstm_floats, gru_floats)

OVERRIDES(row, avx512) { table->recurrent_row_f32 = found; }

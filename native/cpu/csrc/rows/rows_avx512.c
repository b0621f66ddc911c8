/* Rows with AVX-512, sixteen elements at a time. */
#include "rows/vector_avx512.h"

#include "rows/kernels.h"

/* Four rounds of exchanges between rows at distances 8, 4, 2 and 1. */
static void transpose_tile(const uint32_t *in, int64_t in_step, uint32_t *out, int64_t out_step) {
    __m512i a[16], b[16];
    for (int r = 0; r < 16; r++) a[r] = _mm512_loadu_si512(in + r * in_step);
    for (int r = 0; r < 16; r += 2) {
        b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
        b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
    for (int r = 0; r < 16; r += 4) {
        a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
        a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
        a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
        a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    for (int c = 0; c < 4; c++) { /* a[4 g + c]: columns c, c + 4, c + 8, c + 12 of rows 4 g to 4 g + 3 */
        const __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        const __m512i low2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88), high2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(out + c * out_step, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(out + (c + 8) * out_step, _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_storeu_si512(out + (c + 4) * out_step, _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(out + (c + 12) * out_step, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}

OVERRIDES(rows, avx512) {
    ROWS_KERNELS(table)
    table->rows_transpose_tile = transpose_tile;
}

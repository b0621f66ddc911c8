/* AVX-512: 14 x 32 tiles of f32 (28 accumulators, 2 of B, 1 broadcast of A), of 16-bit integer pairs where there is no
 * VNNI, and the epilogues.
 *
 * Every k loop is a `noipa` function of its own that leaves its sums in the tile buffer: with the epilogue in the same
 * function gcc 12 stores all accumulators in every iteration. */
#include <immintrin.h>

#include "base/numbers.h"
#include "gemm/gemm.h"
#include "gemm/tiles.h"

/* --- f32 ---------------------------------------------------------------------------------------------------------- */

#define VECTOR __m512
#define WIDTH 64
#define A_BYTES 4
#define STEP(sum, a, b) __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#define ADD(x, y) _mm512_add_ps(x, y)
#define BROADCAST(address) _mm512_set1_ps(*(const float *)(address))
#define LOAD(address) _mm512_loadu_ps(address)
#define STORE(address, x) _mm512_store_ps(address, x)
#define ZERO() _mm512_setzero_ps()
TILES_14(float_tile, 1)
#undef VECTOR
#undef STEP
#undef ADD
#undef BROADCAST
#undef LOAD
#undef STORE
#undef ZERO

static const struct gemm_kernel float_kernel = {float_tile, 14, 32, PUMICE_F32, PUMICE_F32, 1, 1, 2048};
static const struct gemm_kernel bfloat_kernel = {float_tile, 14, 32, PUMICE_F32, PUMICE_F32, 1, 1, 2048, .rounds = 1};
static const struct gemm_kernel *floats(void) { return &float_kernel; }
static const struct gemm_kernel *bfloats(void) { return &bfloat_kernel; }

/* --- integers by vpmaddwd: exact, where vpmaddubsw would saturate ------------------------------------------------- */

#define VECTOR __m512i
#define STEP(sum, a, b)                                                                              \
    do {                                                                                             \
        VECTOR products;                                                                             \
        __asm__("vpmaddwd %2, %1, %0" : "=v"(products) : "v"(a), "v"(b));                            \
        __asm__("vpaddd %1, %0, %0" : "+v"(sum) : "v"(products));                                    \
    } while (0)
#define ADD(x, y) _mm512_add_epi32(x, y)
#define BROADCAST(address) _mm512_set1_epi32(word_at(address))
#define LOAD(address) _mm512_loadu_si512(address)
#define STORE(address, x) _mm512_store_si512(address, x)
#define ZERO() _mm512_setzero_si512()
TILES_14(pair_tile, 2)

static const struct gemm_kernel integer_kernel = {pair_tile, 14, 32, PUMICE_S16, PUMICE_S16, 2, 2, 1 << 12};
static const struct gemm_kernel *integers(void) { return &integer_kernel; }

/* --- the epilogue ------------------------------------------------------------------------------------------------- */

static inline __m512 residual_of(const struct pumice_epilogue *e, int64_t at, __mmask16 live) {
    __m512i bits;
    switch (e->residual_type) {
    case PUMICE_F32: return _mm512_maskz_loadu_ps(live, (const float *)e->residual + at);
    case PUMICE_BF16:
        bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, (const bf16 *)e->residual + at));
        return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    case PUMICE_U8: bits = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(live, (const uint8_t *)e->residual + at)); break;
    default: bits = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(live, (const int8_t *)e->residual + at));
    }
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(bits, _mm512_set1_epi32(e->residual_zero)));
}

/* As float_to_bf16: vcvtneps2bf16 would flush denormals. */
static inline __m256i bf16_of(__m512 v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
    __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet));
}

static inline __m128i looked_up(const uint8_t *table, __m128i index) {
    const __m512i *rows = (const void *)table;
    __m512i i = _mm512_castsi128_si512(index);
    __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(rows), i, _mm512_loadu_si512(rows + 1));
    __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(rows + 2), i, _mm512_loadu_si512(rows + 3));
    return _mm512_castsi512_si128(_mm512_mask_mov_epi8(low, _mm512_movepi8_mask(i), high));
}

/* What does not change from row to row of 16 columns. */
struct column {
    __mmask16 live;
    __m512i offset, term;
    __m512 scale, bias;
};

static inline struct column column_at(const struct gemm_store *store, int64_t n, int live) {
    const struct pumice_epilogue *e = &store->e;
    struct column c;
    c.live = live >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (live > 0 ? live : 0)) - 1);
    c.offset =
        store->column_offset ? _mm512_maskz_loadu_epi32(c.live, store->column_offset + n) : _mm512_setzero_si512();
    c.term = e->row_term ? _mm512_maskz_loadu_epi32(c.live, e->column_term + n) : _mm512_setzero_si512();
    c.scale = !e->scale        ? _mm512_set1_ps(1)
              : e->scale_step ? _mm512_maskz_loadu_ps(c.live, e->scale + n)
                              : _mm512_set1_ps(*e->scale);
    c.bias = e->bias ? _mm512_maskz_loadu_ps(c.live, e->bias + n) : _mm512_setzero_ps();
    return c;
}

static inline __attribute__((always_inline)) __m512i corrected(const struct gemm_store *store, const struct column *c,
                                                               __m512i s, int64_t m, const int integer,
                                                               const int simple) {
    if (!integer) return s;
    s = _mm512_add_epi32(s, c->offset);
    if (simple || !store->e.row_term) return s;
    return _mm512_add_epi32(s, _mm512_mullo_epi32(_mm512_set1_epi32(store->e.row_term[m]), c->term));
}

static inline __attribute__((always_inline)) __m512 value_of(const struct gemm_store *store, const struct column *c,
                                                             __m512i s, int64_t m, int64_t n, const int integer,
                                                             const int simple) {
    const struct pumice_epilogue *e = &store->e;
    __m512 v = integer ? _mm512_cvtepi32_ps(s) : _mm512_castsi512_ps(s);
    if (e->scale) v = _mm512_mul_ps(v, c->scale);
    if (!simple && e->row_scale) v = _mm512_mul_ps(v, _mm512_set1_ps(e->row_scale[m]));
    if (e->bias) v = _mm512_add_ps(v, c->bias);
    if (!simple && e->residual) {
        __m512 r = residual_of(e, m * e->residual_stride + n, c->live);
        v = _mm512_add_ps(v, _mm512_mul_ps(r, _mm512_set1_ps(e->residual_scale)));
    }
    return v;
}

/* Where one operand is NaN the second is returned. */
static inline __m512 clamped(const struct gemm_store *store, __m512 v) {
    return _mm512_min_ps(_mm512_set1_ps(store->high), _mm512_max_ps(_mm512_set1_ps(store->low), v));
}

static inline __attribute__((always_inline)) void put(const struct gemm_store *store, const struct column *c, __m512 v,
                                                      char *out, const int output, const int simple) {
    const struct pumice_epilogue *e = &store->e;
    if (output == PUMICE_F32) {
        _mm512_mask_storeu_ps(out, c->live, v);
    } else if (output == PUMICE_BF16) {
        _mm256_mask_storeu_epi16(out, c->live, bf16_of(v));
    } else {
        if (!simple && e->divisor) v = _mm512_div_ps(v, _mm512_set1_ps(e->divisor));
        v = _mm512_max_ps(v, _mm512_set1_ps(store->floor));
        v = _mm512_min_ps(v, _mm512_set1_ps(store->roof));
        __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(e->zero));
        __m128i bytes = _mm512_cvtepi32_epi8(q);
        if (!simple && e->table) bytes = looked_up(e->table, bytes);
        _mm_mask_storeu_epi8(out, c->live, bytes);
    }
}

static inline __attribute__((always_inline)) void store_tile(const struct gemm_store *store, const void *sums,
                                                             int tile_columns, int64_t m, int64_t n, int rows,
                                                             int columns, char *out, int64_t out_stride,
                                                             const int integer, const int output, const int simple) {
    const int size = output == PUMICE_F32 || output == PUMICE_S32 ? 4 : output == PUMICE_BF16 ? 2 : 1;
    float values[32 * 32] __attribute__((aligned(64))); /* before an activation, which takes them all at once */
    if (!simple && store->map) {
        if (columns <= 16) memset(values, 0, sizeof values);
        for (int from = 0; from < columns; from += 16) {
            const struct column c = column_at(store, n + from, columns - from);
            const int32_t *tile = (const int32_t *)sums + from;
            for (int r = 0; r < rows; r++, tile += tile_columns) {
                __m512i s = corrected(store, &c, _mm512_loadu_si512(tile), m + r, integer, simple);
                _mm512_store_ps(values + 32 * r + from, value_of(store, &c, s, m + r, n + from, integer, simple));
            }
        }
        gemm_activate(store, values, 32 * rows);
    }
    for (int from = 0; from < columns; from += 16) {
        const struct column c = column_at(store, n + from, columns - from);
        const int32_t *tile = (const int32_t *)sums + from;
        char *to = out + from * size;
        for (int r = 0; r < rows; r++, tile += tile_columns, to += out_stride) {
            if (!simple && store->map) {
                put(store, &c, _mm512_load_ps(values + 32 * r + from), to, output, simple);
                continue;
            }
            __m512i s = corrected(store, &c, _mm512_loadu_si512(tile), m + r, integer, simple);
            if (output == PUMICE_S32)
                _mm512_mask_storeu_epi32(to, c.live, s);
            else
                put(store, &c, clamped(store, value_of(store, &c, s, m + r, n + from, integer, simple)), to, output,
                    simple);
        }
    }
}

#define STORE_KIND(integer, output)                                                                                  \
    if (store->simple)                                                                                               \
        store_tile(store, sums, tile_columns, m, n, rows, columns, out, out_stride, integer, output, 1);             \
    else                                                                                                             \
        store_tile(store, sums, tile_columns, m, n, rows, columns, out, out_stride, integer, output, 0);             \
    break

static void store_float(const struct gemm_store *store, const float *sums, int tile_columns, int64_t m, int64_t n,
                        int rows, int columns, void *out, int64_t out_stride) {
    switch (store->e.output) {
    case PUMICE_F32: STORE_KIND(0, PUMICE_F32);
    case PUMICE_BF16: STORE_KIND(0, PUMICE_BF16);
    default: STORE_KIND(0, PUMICE_U8);
    }
}

static void store_integer(const struct gemm_store *store, const int32_t *sums, int tile_columns, int64_t m, int64_t n,
                          int rows, int columns, void *out, int64_t out_stride) {
    switch (store->e.output) {
    case PUMICE_F32: STORE_KIND(1, PUMICE_F32);
    case PUMICE_BF16: STORE_KIND(1, PUMICE_BF16);
    case PUMICE_S32: STORE_KIND(1, PUMICE_S32);
    default: STORE_KIND(1, PUMICE_U8);
    }
}

OVERRIDES(gemm, avx512) {
    table->gemm_float = floats;
    table->gemm_bfloat = bfloats;
    table->gemm_integer = integers;
    table->gemm_store_float = store_float;
    table->gemm_store_integer = store_integer;
}

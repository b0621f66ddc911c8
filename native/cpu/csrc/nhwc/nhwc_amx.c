/* Float products from bfloat16 tiles: x = x1 + x2 + e with bfloat16 x1, x2 and |e| <= 2^-17 |x|, so that
 *
 *     x w = x1 w1 + x1 w2 + x2 w1 + an error of 2^-16 |x w| at most
 *
 * summed in float32: three products where the tiles are sixteen times as fast as float32's multiply-add. Of a pixel and of
 * a filter the two parts of 32 channels lie side by side: 64 bytes x1, 64 bytes x2. Denormal numbers count as zero, and
 * infinite ones give NaN. */
#include <immintrin.h>
#include <string.h>

#include "base/table.h"
#include "base/tiles_amx.h"

enum {
    PIXELS = 32,
    FILTERS = 32,
    CHANNELS = 32,
    PART = 64,
    BOTH = 2 * PART,
    TILE_BYTES = 1024,
    TILE_ROW = 128,
    SLICE = 8
};

static void start(void) { _tile_loadconfig(&whole_tiles); }
static void finish(void) { _tile_release(); }

/* What rounding to bfloat16 leaves. */
static inline __m512 rest(__m512 x, __m256i rounded) {
    return _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
}

/* The largest bfloat16 instead of what is larger, so that rounding does not make it infinite; NaN stays. */
static inline __m512 in_range(__m512 x) {
    const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F7F0000));
    return _mm512_min_ps(most, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), most), x));
}

/* 32 numbers as two rows of bfloat16; with `bound` also those that bfloat16 has not the range for. */
static inline __attribute__((always_inline)) void split(char *to, char *rests, __m512 low, __m512 high,
                                                        const int bound) {
    const __m512i first =
        (__m512i)(bound ? _mm512_cvtne2ps_pbh(in_range(high), in_range(low)) : _mm512_cvtne2ps_pbh(high, low));
    const __m512 low_rest = rest(low, _mm512_castsi512_si256(first));
    const __m512 high_rest = rest(high, _mm512_extracti64x4_epi64(first, 1));
    _mm512_storeu_si512(to, first);
    _mm512_storeu_si512(rests, (__m512i)_mm512_cvtne2ps_pbh(high_rest, low_rest));
}

/* Numbers side by side; what a step of 32 gives lies `to_step` after that of the one before. */
static inline __attribute__((always_inline)) void split_all(char *to, char *rests, const int to_step, const float *from,
                                                            int64_t count) {
    for (; count >= CHANNELS; count -= CHANNELS, from += CHANNELS, to += to_step, rests += to_step)
        split(to, rests, _mm512_loadu_ps(from), _mm512_loadu_ps(from + 16), 0);
    if (count <= 0) return;
    const uint32_t mask = (1u << count) - 1;
    split(to, rests, _mm512_maskz_loadu_ps((__mmask16)mask, from),
          _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), from + 16), 0);
}

static void split_row(char *first, char *second, const float *from, int64_t count) {
    split_all(first, second, PART, from, count);
}

static void convert(char *to, int64_t to_step, const float *from, int64_t from_step, int64_t pixels, int64_t count) {
    for (int64_t i = 0; i < pixels; i++, to += to_step, from += from_step) split_all(to, to + PART, BOTH, from, count);
}

/* Tiles of 16 pairs of channels x 16 filters: two of first parts, two of second ones, for every 32 channels. Of 16 filters
 * the two channels of a pair are split at once, and then take turns. */
static void pack(char *panel, const float *rows, int64_t depth) {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    char parts[BOTH];
    for (int64_t k = 0; k < depth; k += 2, rows += 2 * FILTERS)
        for (int half = 0; half < 2; half++) {
            split(parts, parts + PART, _mm512_loadu_ps(rows + 16 * half), _mm512_loadu_ps(rows + FILTERS + 16 * half), 1);
            char *to = panel + (k / CHANNELS * 4 + half) * TILE_BYTES + k % CHANNELS / 2 * PART;
            for (int part = 0; part < 2; part++, to += 2 * TILE_BYTES)
                _mm512_storeu_si512(to, _mm512_permutexvar_epi16(pairs, _mm512_loadu_si512(parts + part * PART)));
        }
}

static float widened(uint16_t part) {
    const uint32_t bits = (uint32_t)part << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void unpack(float *rows, const char *panel, int64_t depth) {
    for (int64_t k = 0; k < depth; k++, rows += FILTERS) {
        const char *block = panel + k / CHANNELS * 4 * TILE_BYTES;
        for (int f = 0; f < FILTERS; f++) {
            const int64_t at = k % CHANNELS / 2 * 32 + f % 16 * 2 + k % 2;
            const uint16_t *first = (const uint16_t *)(const void *)(block + f / 16 * TILE_BYTES);
            rows[f] = widened(first[at]) + widened(first[at + TILE_BYTES]);
        }
    }
}

enum passing { PIXELS_PASS, PANELS_PASS, NOTHING_PASSES };

#define LOAD_PIXELS(number, from)                                                \
    do {                                                                         \
        if (passing == PIXELS_PASS) _tile_stream_loadd(number, from, a_step);    \
        else _tile_loadd(number, from, a_step);                                  \
    } while (0)
#define LOAD_FILTERS(number, from)                                               \
    do {                                                                         \
        if (passing == PANELS_PASS) _tile_stream_loadd(number, from, 64);        \
        else _tile_loadd(number, from, 64);                                      \
    } while (0)

/* Tiles 0 to 3 are sums, 4 and 5 pixels, 6 and 7 filters; the small products come first. Either the panel's slice stays in
 * the first-level cache and pixels pass by, or these stay (and their steps follow each other) and panels pass: the
 * streaming load keeps what passes from pushing out what stays. Where pixels share their numbers, both stay. */
static inline __attribute__((always_inline)) void dots(const int two, const enum passing passing,
                                                       const char *a, int64_t a_step, int64_t part,
                                                       const int64_t *offset, int64_t steps, const char *panel,
                                                       float *tile, int accumulate) {
    if (accumulate) {
        _tile_loadd(0, tile, TILE_ROW);
        _tile_loadd(1, tile + 16, TILE_ROW);
        if (two) _tile_loadd(2, tile + 16 * FILTERS, TILE_ROW);
        if (two) _tile_loadd(3, tile + 16 * FILTERS + 16, TILE_ROW);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if (two) _tile_zero(2);
        if (two) _tile_zero(3);
    }
    for (int64_t s = 0; s < steps; s++, panel += 4 * TILE_BYTES) {
        const char *upper = a + (passing == PANELS_PASS ? s * BOTH : offset[s]), *lower = upper + 16 * a_step;
        LOAD_FILTERS(6, panel);
        LOAD_PIXELS(4, upper + part);
        LOAD_FILTERS(7, panel + TILE_BYTES);
        if (two) LOAD_PIXELS(5, lower + part);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (two) _tile_dpbf16ps(2, 5, 6);
        if (two) _tile_dpbf16ps(3, 5, 7);
        LOAD_PIXELS(4, upper);
        if (two) LOAD_PIXELS(5, lower);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (two) _tile_dpbf16ps(2, 5, 6);
        if (two) _tile_dpbf16ps(3, 5, 7);
        LOAD_FILTERS(6, panel + 2 * TILE_BYTES);
        LOAD_FILTERS(7, panel + 3 * TILE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (two) _tile_dpbf16ps(2, 5, 6);
        if (two) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, tile, TILE_ROW);
    _tile_stored(1, tile + 16, TILE_ROW);
    if (two) _tile_stored(2, tile + 16 * FILTERS, TILE_ROW);
    if (two) _tile_stored(3, tile + 16 * FILTERS + 16, TILE_ROW);
}

static __attribute__((noipa)) void tile_32(const char *a, int64_t a_step, int64_t part, const int64_t *offset,
                                           int64_t steps, const char *panel, float *tile, int accumulate) {
    dots(1, PIXELS_PASS, a, a_step, part, offset, steps, panel, tile, accumulate);
}

static __attribute__((noipa)) void tile_16(const char *a, int64_t a_step, int64_t part, const int64_t *offset,
                                           int64_t steps, const char *panel, float *tile, int accumulate) {
    dots(0, PIXELS_PASS, a, a_step, part, offset, steps, panel, tile, accumulate);
}

static __attribute__((noipa)) void overlapping_32(const char *a, int64_t a_step, int64_t part, const int64_t *offset,
                                                  int64_t steps, const char *panel, float *tile, int accumulate) {
    dots(1, NOTHING_PASSES, a, a_step, part, offset, steps, panel, tile, accumulate);
}

static void tile(int pixels, const char *a, int64_t a_step, int64_t part, const int64_t *offset, int64_t steps,
                 const char *panel, float *tile, int accumulate) {
    (pixels <= 16 ? tile_16 : a_step < BOTH ? overlapping_32 : tile_32)(a, a_step, part, offset, steps, panel, tile,
                                                                        accumulate);
}

/* Two tiles of 16 pixels each, from the one of number `sum` on, whose sums take turns. */
#define TAKE_PAIR(sum, next)                                                         \
    do {                                                                             \
        const char *upper = a + offset[s] + 16 * sum * a_step, *lower = upper + 16 * a_step; \
        _tile_loadd(4, upper + part, a_step);                                        \
        if (tiles > next) _tile_loadd(5, lower + part, a_step);                      \
        _tile_dpbf16ps(sum, 4, 6);                                                   \
        if (tiles > next) _tile_dpbf16ps(next, 5, 6);                                \
        _tile_loadd(4, upper, a_step);                                               \
        if (tiles > next) _tile_loadd(5, lower, a_step);                             \
        _tile_dpbf16ps(sum, 4, 6);                                                   \
        if (tiles > next) _tile_dpbf16ps(next, 5, 6);                                \
        _tile_dpbf16ps(sum, 4, 7);                                                   \
        if (tiles > next) _tile_dpbf16ps(next, 5, 7);                                \
    } while (0)

/* The first half of a panel's filters by `tiles` times 16 pixels, whose sums are tiles 0 to 3. */
static inline __attribute__((always_inline)) void half_dots(const int tiles, const char *a, int64_t a_step, int64_t part,
                                                            const int64_t *offset, int64_t steps, const char *panel,
                                                            float *tile, int accumulate) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (accumulate) {
        _tile_loadd(0, tile, TILE_ROW);
        if (tiles > 1) _tile_loadd(1, tile + 16 * FILTERS, TILE_ROW);
        if (tiles > 2) _tile_loadd(2, tile + 32 * FILTERS, TILE_ROW);
        if (tiles > 3) _tile_loadd(3, tile + 48 * FILTERS, TILE_ROW);
    }
    for (int64_t s = 0; s < steps; s++, panel += 4 * TILE_BYTES) {
        _tile_loadd(6, panel, 64);
        _tile_loadd(7, panel + 2 * TILE_BYTES, 64);
        TAKE_PAIR(0, 1);
        if (tiles > 2) TAKE_PAIR(2, 3);
    }
    _tile_stored(0, tile, TILE_ROW);
    if (tiles > 1) _tile_stored(1, tile + 16 * FILTERS, TILE_ROW);
    if (tiles > 2) _tile_stored(2, tile + 32 * FILTERS, TILE_ROW);
    if (tiles > 3) _tile_stored(3, tile + 48 * FILTERS, TILE_ROW);
}

#define HALF(tiles)                                                                                                 \
    static __attribute__((noipa)) void half_##tiles(const char *a, int64_t a_step, int64_t part, const int64_t *offset, \
                                                    int64_t steps, const char *panel, float *tile, int accumulate) {    \
        half_dots(tiles, a, a_step, part, offset, steps, panel, tile, accumulate);                                  \
    }
HALF(1)
HALF(2)
HALF(3)
HALF(4)

static void half_tile(int pixels, const char *a, int64_t a_step, int64_t part, const int64_t *offset, int64_t steps,
                      const char *panel, float *tile, int accumulate) {
    (pixels > 48 ? half_4 : pixels > 32 ? half_3 : pixels > 16 ? half_2 : half_1)(a, a_step, part, offset, steps, panel,
                                                                                  tile, accumulate);
}

/* As many as 16 pixels x two panels: a tile of one panel has but two sums, each of which waits for itself. The order of a
 * sum is that of `dots`. */
static __attribute__((noipa)) void two_panels(const char *a, int64_t a_step, int64_t steps, const char *panel,
                                              const char *other, float *tiles) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; s++, a += BOTH, panel += 4 * TILE_BYTES, other += 4 * TILE_BYTES) {
        _tile_loadd(4, a + PART, a_step);
        _tile_loadd(5, a, a_step);
        _tile_stream_loadd(6, panel, 64);
        _tile_stream_loadd(7, panel + TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(0, 5, 6);
        _tile_dpbf16ps(1, 5, 7);
        _tile_stream_loadd(6, other, 64);
        _tile_stream_loadd(7, other + TILE_BYTES, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_stream_loadd(6, panel + 2 * TILE_BYTES, 64);
        _tile_stream_loadd(7, panel + 3 * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 5, 6);
        _tile_dpbf16ps(1, 5, 7);
        _tile_stream_loadd(6, other + 2 * TILE_BYTES, 64);
        _tile_stream_loadd(7, other + 3 * TILE_BYTES, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    float *second = tiles + PIXELS * FILTERS;
    _tile_stored(0, tiles, TILE_ROW);
    _tile_stored(1, tiles + 16, TILE_ROW);
    _tile_stored(2, second, TILE_ROW);
    _tile_stored(3, second + 16, TILE_ROW);
}

static __attribute__((noipa)) void one_panel(const char *a, int64_t a_step, int64_t steps, const char *panel, float *tile) {
    dots(1, PANELS_PASS, a, a_step, PART, NULL, steps, panel, tile, 0);
}

static void held(int pixels, const char *a, int64_t a_step, int64_t steps, const char *panel, int64_t panel_bytes, int panels,
                 float *tiles) {
    if (pixels > 16) {
        for (int i = 0; i < panels; i++)
            one_panel(a, a_step, steps, panel + i * panel_bytes, tiles + i * PIXELS * FILTERS);
        return;
    }
    for (int i = 0; i < panels; i += 2) { /* an odd last one is taken twice */
        const char *first = panel + i * panel_bytes, *second = i + 1 < panels ? first + panel_bytes : first;
        two_panels(a, a_step, steps, first, second, tiles + i * PIXELS * FILTERS);
    }
}

static const struct nhwc_product *product(void) {
    static const struct nhwc_product split_product = {
        .pixels = PIXELS,
        .filters = FILTERS,
        .half_pixels = 2 * PIXELS,
        .channel_step = CHANNELS,
        .slice = SLICE,
        .part = PART,
        .convert = convert,
        .split = split_row,
        .pack = pack,
        .unpack = unpack,
        .tile = tile,
        .half = half_tile,
        .held = held,
        .start = start,
        .finish = finish,
    };
    return &split_product;
}

OVERRIDES(nhwc, amx) { table->nhwc_product = product; }

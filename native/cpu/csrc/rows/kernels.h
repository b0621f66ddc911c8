/* The kernels of rows/, written once over the vector operations of one level: maps, normalisation, reductions,
 * quantization, recurrent cells. Included by rows_<level>.c after vector_<level>.h; ROWS_KERNELS(table) fills the slots.
 *
 * Loops take whole vectors and then one partial vector, so that no element is read or written outside its array. */
#ifndef PUMICE_ROWS_KERNELS_H
#define PUMICE_ROWS_KERNELS_H

#include "base/numbers.h"
#include "base/table.h"
#include "rows/functions.h"

/* --- maps --------------------------------------------------------------------------------------------------------- */

#define MAP(name, parameters_used, result)                                                             \
    static void map_##name(const float *in, float *out, int64_t count, const float *p) {               \
        parameters_used                                                                                \
        int64_t i = 0;                                                                                 \
        for (; i + LANES <= count; i += LANES) {                                                       \
            const vf x = load(in + i);                                                                 \
            store(out + i, result);                                                                    \
        }                                                                                              \
        if (i < count) {                                                                               \
            const vf x = load_some(in + i, count - i);                                                 \
            store_some(out + i, result, count - i);                                                    \
        }                                                                                              \
    }
#define NOTHING
#define ALPHA const vf alpha = all(p[0]);
#define ALPHA_BETA const vf alpha = all(p[0]), beta = all(p[1]);
#define AFFINE const vf alpha = all(p[0]), beta = all(p[1]), centre = all(p[2]);

INLINE vf unit_clamp(vf x) { return least(all(1), most(all(0), x)); }

MAP(exp, NOTHING, exp_of(x))
MAP(log, NOTHING, log_of(x))
MAP(tanh, NOTHING, tanh_of(x))
MAP(sigmoid, NOTHING, sigmoid_of(x))
MAP(erf, NOTHING, erf_of(x))
MAP(gelu, NOTHING, gelu_of(x))
MAP(gelu_tanh, NOTHING, gelu_tanh_of(x))
MAP(silu, ALPHA, silu_of(x, alpha))
MAP(hard_sigmoid, ALPHA_BETA, unit_clamp(add(mul(alpha, x), beta)))
MAP(hard_swish, NOTHING, mul(x, unit_clamp(add(mul(all(1.0f / 6), x), all(0.5f)))))
MAP(relu, NOTHING, most(all(0), x))
MAP(clip, ALPHA_BETA, least(beta, most(alpha, x)))
MAP(leaky_relu, ALPHA, choose(below(x, all(0)), mul(alpha, x), x))
MAP(affine, AFFINE, add(mul(sub(x, centre), alpha), beta))
MAP(sqrt, NOTHING, root(x))
MAP(reciprocal, NOTHING, divide(all(1), x))

static void map(int function, const float *in, float *out, int64_t count, const float *p) {
    static void (*const maps[])(const float *, float *, int64_t, const float *) = {
        [PUMICE_F_EXP] = map_exp,
        [PUMICE_F_LOG] = map_log,
        [PUMICE_F_TANH] = map_tanh,
        [PUMICE_F_SIGMOID] = map_sigmoid,
        [PUMICE_F_ERF] = map_erf,
        [PUMICE_F_GELU] = map_gelu,
        [PUMICE_F_GELU_TANH] = map_gelu_tanh,
        [PUMICE_F_SILU] = map_silu,
        [PUMICE_F_HARD_SIGMOID] = map_hard_sigmoid,
        [PUMICE_F_HARD_SWISH] = map_hard_swish,
        [PUMICE_F_RELU] = map_relu,
        [PUMICE_F_CLIP] = map_clip,
        [PUMICE_F_LEAKY_RELU] = map_leaky_relu,
        [PUMICE_F_AFFINE] = map_affine,
        [PUMICE_F_SQRT] = map_sqrt,
        [PUMICE_F_RECIPROCAL] = map_reciprocal,
    };
    maps[function](in, out, count, p);
}

/* --- two operands ------------------------------------------------------------------------------------------------- */

INLINE vf operand(const float *p, int64_t step, int64_t i) { return step ? load(p + i) : all(*p); }
INLINE vf operand_some(const float *p, int64_t step, int64_t i, int64_t count) {
    return step ? load_some(p + i, count) : all(*p);
}

#define BINARY(name)                                                                                               \
    INLINE void binary_steps_##name(const float *a, const int64_t a_step, const float *b, const int64_t b_step,    \
                                    float *out, int64_t count) {                                                   \
        int64_t i = 0;                                                                                             \
        for (; i + LANES <= count; i += LANES) store(out + i, name(operand(a, a_step, i), operand(b, b_step, i))); \
        if (i < count) {                                                                                           \
            const vf x = operand_some(a, a_step, i, count - i), y = operand_some(b, b_step, i, count - i);         \
            store_some(out + i, name(x, y), count - i);                                                            \
        }                                                                                                          \
    }                                                                                                              \
    static void binary_##name(const float *a, int64_t a_step, const float *b, int64_t b_step, float *out,          \
                              int64_t count) {                                                                     \
        if (a_step && b_step)                                                                                      \
            binary_steps_##name(a, 1, b, 1, out, count);                                                           \
        else if (a_step)                                                                                           \
            binary_steps_##name(a, 1, b, 0, out, count);                                                           \
        else if (b_step)                                                                                           \
            binary_steps_##name(a, 0, b, 1, out, count);                                                           \
        else                                                                                                       \
            binary_steps_##name(a, 0, b, 0, out, count);                                                           \
    }
BINARY(add)
BINARY(sub)
BINARY(mul)
BINARY(divide)

static void binary(int operation, const float *a, int64_t a_step, const float *b, int64_t b_step, float *out, int64_t count) {
    switch (operation) {
    case PUMICE_ADD: binary_add(a, a_step, b, b_step, out, count); break;
    case PUMICE_SUB: binary_sub(a, a_step, b, b_step, out, count); break;
    case PUMICE_MUL: binary_mul(a, a_step, b, b_step, out, count); break;
    default: binary_divide(a, a_step, b, b_step, out, count); break;
    }
}

/* --- rows: reductions --------------------------------------------------------------------------------------------- */

/* Sums of a row are taken in blocks that lanes add up, and over the blocks in double. */
enum { SUM_BLOCK = 2048 };

#define BLOCK_SUM_OF(name, term)                                               \
    static float name(const float *in, int64_t count, float centre) {          \
        const vf middle = all(centre);                                         \
        vf s0 = all(0), s1 = s0, s2 = s0, s3 = s0;                             \
        int64_t i = 0;                                                         \
        for (; i + 4 * LANES <= count; i += 4 * LANES) {                       \
            vf x = sub(load(in + i), middle);                                  \
            s0 = term(x, s0);                                                  \
            x = sub(load(in + i + LANES), middle);                             \
            s1 = term(x, s1);                                                  \
            x = sub(load(in + i + 2 * LANES), middle);                         \
            s2 = term(x, s2);                                                  \
            x = sub(load(in + i + 3 * LANES), middle);                         \
            s3 = term(x, s3);                                                  \
        }                                                                      \
        for (; i + LANES <= count; i += LANES) {                               \
            const vf x = sub(load(in + i), middle);                            \
            s0 = term(x, s0);                                                  \
        }                                                                      \
        float rest = 0;                                                        \
        for (; i < count; i++) rest += scalar_##term(in[i] - centre);          \
        return sum_of(add(add(s0, s1), add(s2, s3))) + rest;                   \
    }
#define plain(x, s) add(x, s)
#define squared(x, s) fma_(x, x, s)
INLINE float scalar_plain(float x) { return x; }
INLINE float scalar_squared(float x) { return x * x; }
BLOCK_SUM_OF(block_sum, plain)
BLOCK_SUM_OF(block_squares, squared)

static double row_sum(const float *in, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i += SUM_BLOCK) sum += block_sum(in + i, smaller(SUM_BLOCK, count - i), 0);
    return sum;
}

/* Of the differences from `centre`. */
static double row_squares(const float *in, int64_t count, float centre) {
    double sum = 0;
    for (int64_t i = 0; i < count; i += SUM_BLOCK) sum += block_squares(in + i, smaller(SUM_BLOCK, count - i), centre);
    return sum;
}

/* The extreme, and NaN if there is one: `better` alone would lose it. */
#define ROW_EXTREME(name, better, across, worst)                                  \
    static float name(const float *in, int64_t count) {                           \
        vf best = all(worst), nan = all(0);                                       \
        int64_t i = 0;                                                            \
        for (; i + LANES <= count; i += LANES) {                                  \
            const vf x = load(in + i);                                            \
            best = better(x, best);                                               \
            nan = choose(equal(x, x), nan, x);                                    \
        }                                                                         \
        float result = across(best), bad = sum_of(nan);                           \
        for (; i < count; i++) {                                                  \
            if (in[i] != in[i]) bad = in[i];                                      \
            if (across == most_of ? in[i] > result : in[i] < result) result = in[i]; \
        }                                                                         \
        return bad == bad ? result : bad;                                         \
    }
ROW_EXTREME(row_most, most, most_of, -INFINITY)
ROW_EXTREME(row_least, least, least_of, INFINITY)

static float reduce(int reduction, const float *in, int64_t count) {
    switch (reduction) {
    case PUMICE_SUM: return (float)row_sum(in, count);
    case PUMICE_MEAN: return (float)(row_sum(in, count) / (double)count);
    case PUMICE_MAX: return row_most(in, count);
    case PUMICE_MIN: return row_least(in, count);
    default: return (float)row_squares(in, count, 0);
    }
}

static void range_of(const float *in, int64_t count, float *range) {
    range[0] = row_least(in, count);
    range[1] = row_most(in, count);
}

INLINE vf most_or_nan(vf acc, vf x) { return choose(equal(acc, acc), most(acc, x), acc); }
INLINE vf least_or_nan(vf acc, vf x) { return choose(equal(acc, acc), least(acc, x), acc); }
INLINE vf add_square(vf acc, vf x) { return fma_(x, x, acc); }

#define FOLD(name, step)                                                                 \
    static void name(float *acc, const float *in, int64_t count) {                       \
        int64_t i = 0;                                                                   \
        for (; i + LANES <= count; i += LANES) store(acc + i, step(load(acc + i), load(in + i))); \
        if (i < count) {                                                                 \
            const vf x = load_some(acc + i, count - i), y = load_some(in + i, count - i); \
            store_some(acc + i, step(x, y), count - i);                                  \
        }                                                                                \
    }
FOLD(fold_add, add)
FOLD(fold_most, most_or_nan)
FOLD(fold_least, least_or_nan)
FOLD(fold_square, add_square)

static void fold(int reduction, float *acc, const float *in, int64_t count) {
    switch (reduction) {
    case PUMICE_MAX: fold_most(acc, in, count); break;
    case PUMICE_MIN: fold_least(acc, in, count); break;
    case PUMICE_SUM_SQUARE: fold_square(acc, in, count); break;
    default: fold_add(acc, in, count); break;
    }
}

/* --- rows: normalisation ------------------------------------------------------------------------------------------ */

/* The greatest value; NaN are passed over, as they show in the sum of the exponentials. */
INLINE float peak_of(const float *in, int64_t count) {
    vf p0 = all(-INFINITY), p1 = p0;
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        p0 = most(load(in + i), p0);
        p1 = most(load(in + i + LANES), p1);
    }
    for (; i + LANES <= count; i += LANES) p0 = most(load(in + i), p0);
    float peak = most_of(most(p0, p1));
    for (; i < count; i++) peak = in[i] > peak ? in[i] : peak;
    return peak;
}

/* exp(in - peak) to out (unless NULL), and their sum. */
INLINE float block_exponentials(const float *in, float *out, int64_t columns, float peak) {
    const vf top = all(peak);
    vf s0 = all(0), s1 = s0;
    int64_t i = 0;
    for (; i + 2 * LANES <= columns; i += 2 * LANES) {
        const vf e0 = exp_of_negative(sub(load(in + i), top)), e1 = exp_of_negative(sub(load(in + i + LANES), top));
        if (out) store(out + i, e0);
        if (out) store(out + i + LANES, e1);
        s0 = add(s0, e0);
        s1 = add(s1, e1);
    }
    float rest = 0;
    for (; i < columns; i += LANES) {
        const int64_t count = smaller(LANES, columns - i);
        const vf e = exp_of_negative(sub(load_some(in + i, count), top));
        float part[LANES];
        store(part, e);
        if (out) store_some(out + i, e, count);
        for (int64_t j = 0; j < count; j++) rest += part[j];
    }
    return sum_of(add(s0, s1)) + rest;
}

INLINE float exponentials(const float *in, float *out, int64_t columns, float peak) {
    double sum = 0;
    for (int64_t i = 0; i < columns; i += SUM_BLOCK)
        sum += block_exponentials(in + i, out ? out + i : NULL, smaller(SUM_BLOCK, columns - i), peak);
    return (float)sum;
}

static void softmax(const float *in, float *out, int64_t columns, int logarithm) {
    const float peak = peak_of(in, columns);
    if (logarithm) {
        const float total = exponentials(in, NULL, columns, peak), parameters[] = {1, -logf(total), peak};
        map_affine(in, out, columns, parameters);
        return;
    }
    const float inverse = 1 / exponentials(in, out, columns, peak);
    binary_mul(out, 1, &inverse, 0, out, columns);
}

static void layer_norm(const float *in, float *out, int64_t columns, const float *scale, const float *bias, float epsilon,
                       int rms, float *mean, float *inverse) {
    const float centre = rms ? 0 : (float)(row_sum(in, columns) / (double)columns);
    const float variance = (float)(row_squares(in, columns, centre) / (double)columns);
    const float factor = 1 / sqrtf(variance + epsilon);
    if (mean) *mean = centre;
    if (inverse) *inverse = factor;
    const vf middle = all(centre), f = all(factor);
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) {
        const vf y = mul(mul(sub(load(in + i), middle), f), load(scale + i));
        store(out + i, bias ? add(y, load(bias + i)) : y);
    }
    if (i < columns) {
        const int64_t count = columns - i;
        const vf y = mul(mul(sub(load_some(in + i, count), middle), f), load_some(scale + i, count));
        store_some(out + i, bias ? add(y, load_some(bias + i, count)) : y, count);
    }
}

/* --- quantization ------------------------------------------------------------------------------------------------- */

/* Divisors for which the products below neither overflow nor lose bits. */
static const float LEAST_DIVISOR = 1e-30f, GREATEST_DIVISOR = 1e30f;

/* Round(x / scale) without a division: two corrections by exact remainders give the correctly rounded quotient. x is
 * clamped first, to what the extreme values stand for; NaN becomes the lowest. */
INLINE vi quantized(vf x, vf scale, vf inverse, vi zero, vf low, vf high) {
    x = least(most(x, mul(low, scale)), mul(high, scale));
    const vf guess = mul(x, inverse), better = fma_(fnma(guess, scale, x), inverse, guess);
    return add_i(to_int(fma_(fnma(better, scale, x), inverse, better)), zero);
}

INLINE vi quantized_by_division(vf x, vf scale, vf inverse, vi zero, vf low, vf high) {
    return add_i(to_int(least(most(nearest(divide(x, scale)), low), high)), zero);
}

#define QUANTIZE_ROW(name, one)                                                                               \
    static void name(const float *in, uint8_t *out, int64_t count, const struct rows_quantization *p) {       \
        const vf scale = all(p->scale), inverse = all(1 / p->scale);                                          \
        const vf low = all((float)(p->low - p->zero)), high = all((float)(p->high - p->zero));                \
        const vi zero = all_i(p->zero);                                                                       \
        int64_t i = 0;                                                                                        \
        for (; i + LANES <= count; i += LANES) store_8(out + i, one(load(in + i), scale, inverse, zero, low, high)); \
        if (i < count) {                                                                                      \
            uint8_t part[LANES];                                                                              \
            store_8(part, one(load_some(in + i, count - i), scale, inverse, zero, low, high));                \
            memcpy(out + i, part, (size_t)(count - i));                                                       \
        }                                                                                                     \
    }
QUANTIZE_ROW(quantize_fast, quantized)
QUANTIZE_ROW(quantize_any, quantized_by_division)

static void quantize(const float *in, void *out, int64_t count, const struct rows_quantization *p) {
    if (p->scale >= LEAST_DIVISOR && p->scale <= GREATEST_DIVISOR)
        quantize_fast(in, out, count, p);
    else
        quantize_any(in, out, count, p);
}

INLINE vf dequantized(vi q, vi zero, vf scale) { return mul(to_float(sub_i(q, zero)), scale); }

static void dequantize(const void *in, int stored, float *out, int64_t count, float scale, int32_t zero) {
    const vf s = all(scale);
    const vi z = all_i(zero);
    int64_t i = 0;
    if (stored)
        for (; i + LANES <= count; i += LANES) store(out + i, dequantized(load_s8((const int8_t *)in + i), z, s));
    else
        for (; i + LANES <= count; i += LANES) store(out + i, dequantized(load_u8((const uint8_t *)in + i), z, s));
    for (; i < count; i++) {
        const int32_t q = stored ? ((const int8_t *)in)[i] : ((const uint8_t *)in)[i];
        out[i] = (float)(q - zero) * scale;
    }
}

/* --- nearest centroid --------------------------------------------------------------------------------------------- */

/* A vector of points at a time, one coordinate after the other; points of several coordinates are gathered first. */
static void nearest_centroid(const float *points, int64_t count, int64_t width, const float *centroids, int64_t clusters,
                             int32_t *assigned) {
    float lanes[LANES];
    int32_t found[LANES];
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = smaller(LANES, count - i);
        vf best = all(INFINITY);
        vi index = all_i(0);
        for (int64_t c = 0; c < clusters; c++) {
            vf distance = all(0);
            for (int64_t d = 0; d < width; d++) {
                vf x;
                if (width == 1 && some == LANES) {
                    x = load(points + i);
                } else {
                    for (int64_t l = 0; l < LANES; l++) lanes[l] = l < some ? points[(i + l) * width + d] : 0;
                    x = load(lanes);
                }
                const vf gap = sub(x, all(centroids[c * width + d]));
                distance = add(distance, mul(gap, gap));
            }
            const vm closer = below(distance, best);
            best = choose(closer, distance, best);
            index = choose_i(closer, all_i((int32_t)c), index);
        }
        store_i(found, index);
        memcpy(assigned + i, found, (size_t)some * sizeof *found);
    }
}

/* --- recurrence --------------------------------------------------------------------------------------------------- */

INLINE vf gate(const struct rows_gates *gates, int number, int64_t i, int64_t some) {
    const vf sum = part(gates->sums + number * gates->sums_step + i, some);
    return gates->added ? add(sum, part(gates->added + number * gates->added_step + i, some)) : sum;
}

/* A gate's peephole looks at the cell. */
INLINE vf looking(const struct rows_gates *gates, vf sum, int number, vf cell, int64_t i, int64_t some) {
    if (!gates->peepholes) return sum;
    return add(sum, mul(part(gates->peepholes + number * gates->peephole_step + i, some), cell));
}

static void lstm_cell(const struct rows_gates *gates, float *c, float *h, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = smaller(LANES, count - i);
        const vf old = part(c + i, some);
        const vf in = looking(gates, gate(gates, 0, i, some), 0, old, i, some);
        const vf keep = looking(gates, gate(gates, 2, i, some), 2, old, i, some);
        const vf kept = mul(old, reciprocal(add(all(1), decay_of(keep))));
        const vf cell = add(kept, gated(in, gate(gates, 3, i, some)));
        const vf out = looking(gates, gate(gates, 1, i, some), 1, cell, i, some);
        put(c + i, cell, some);
        put(h + i, gated(out, cell), some);
    }
}

static void lstm_trace(float *gates, const float *c, float *c_after, float *h, int64_t hidden) {
    for (int64_t i = 0; i < hidden; i += LANES) {
        const int64_t some = smaller(LANES, hidden - i);
        const vf in = sigmoid_of(part(gates + i, some)), out = sigmoid_of(part(gates + hidden + i, some));
        const vf keep = sigmoid_of(part(gates + 2 * hidden + i, some)), fresh = tanh_of(part(gates + 3 * hidden + i, some));
        const vf cell = add(mul(keep, part(c + i, some)), mul(in, fresh));
        put(gates + i, in, some);
        put(gates + hidden + i, out, some);
        put(gates + 2 * hidden + i, keep, some);
        put(gates + 3 * hidden + i, fresh, some);
        put(c_after + i, cell, some);
        put(h + i, mul(out, tanh_of(cell)), some);
    }
}

/* y (1 - y), the slope of a sigmoid whose value is y. */
INLINE vf sigmoid_slope(vf y) { return mul(y, sub(all(1), y)); }

static void lstm_gradient(float *gates, const float *c, const float *c_after, const float *dh, float *dc, int64_t hidden) {
    for (int64_t i = 0; i < hidden; i += LANES) {
        const int64_t some = smaller(LANES, hidden - i);
        const vf in = part(gates + i, some), out = part(gates + hidden + i, some);
        const vf keep = part(gates + 2 * hidden + i, some), fresh = part(gates + 3 * hidden + i, some);
        const vf shown = tanh_of(part(c_after + i, some)), given = part(dh + i, some);
        const vf cell = add(part(dc + i, some), mul(mul(given, out), sub(all(1), mul(shown, shown))));
        put(gates + i, mul(mul(cell, fresh), sigmoid_slope(in)), some);
        put(gates + hidden + i, mul(mul(given, shown), sigmoid_slope(out)), some);
        put(gates + 2 * hidden + i, mul(mul(cell, part(c + i, some)), sigmoid_slope(keep)), some);
        put(gates + 3 * hidden + i, mul(mul(cell, in), sub(all(1), mul(fresh, fresh))), some);
        put(dc + i, mul(cell, keep), some);
    }
}

static void gru_reset(const struct rows_gates *gates, const float *x, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = smaller(LANES, count - i);
        put(out + i, mul(sigmoid_of(gate(gates, 1, i, some)), part(x + i, some)), some);
    }
}

static void gru_cell(const struct rows_gates *gates, const float *candidate, const float *fed, float *h, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = smaller(LANES, count - i);
        const vf z = sigmoid_of(gate(gates, 0, i, some));
        const vf n = tanh_of(add(part(candidate + i, some), part(fed + i, some)));
        put(h + i, add(mul(sub(all(1), z), n), mul(z, part(h + i, some))), some);
    }
}

#define ROWS_KERNELS(table)                      \
    table->rows_map = map;                       \
    table->rows_binary = binary;                 \
    table->rows_softmax = softmax;               \
    table->rows_layer_norm = layer_norm;         \
    table->rows_reduce = reduce;                 \
    table->rows_fold = fold;                     \
    table->rows_quantize = quantize;             \
    table->rows_dequantize = dequantize;         \
    table->rows_range = range_of;                \
    table->rows_nearest = nearest_centroid;      \
    table->rows_lstm_cell = lstm_cell;           \
    table->rows_lstm_trace = lstm_trace;         \
    table->rows_lstm_gradient = lstm_gradient;   \
    table->rows_gru_reset = gru_reset;           \
    table->rows_gru_cell = gru_cell;

#endif

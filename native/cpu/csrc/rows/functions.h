/* Elementary functions of a vector of f32, written once for every level: a reduction to a small interval, a polynomial,
 * and the way back. Errors against exact results, in units in the last place, as measured over samples of all f32:
 *
 *   exp 1   log 1   tanh 2   sigmoid 3   erf 1   gelu 4   silu 4
 *
 * Where tables of 32 floats can be looked up (AVX-512), tanh and gelu take polynomials of pieces.h; gelu's
 * error is then below 4e-14 where x is below -7, and its result zero below -7.75.
 *
 * The approximation of GELU by tanh loses more where it is tiny: its argument to exp is large there, and rounded.
 * NaN gives NaN, infinities and results too large or small give what IEEE 754 says. The polynomials of exp, log and erf
 * are minimax fits in the form of N. Juffa's published ones, as is tanh's near zero; gelu's is explained where it
 * stands. */
#ifndef PUMICE_ROWS_FUNCTIONS_H
#define PUMICE_ROWS_FUNCTIONS_H

/* Included after one of vector_<level>.h. */

/* A whole vector, or its first lanes. */
INLINE vf part(const float *p, int64_t some) { return some == LANES ? load(p) : load_some(p, some); }
INLINE void put(float *p, vf v, int64_t some) {
    if (some == LANES)
        store(p, v);
    else
        store_some(p, v, some);
}

INLINE vf magnitude(vf x) { return from_bits(and_i(bits(x), all_i(0x7fffffff))); }
INLINE vf with_sign_of(vf size, vf sign) { return from_bits(or_i(bits(size), and_i(bits(sign), all_i(INT32_MIN)))); }

INLINE vf minus_magnitude(vf x) { return from_bits(or_i(bits(x), all_i(INT32_MIN))); }

#define TANH_END 10.0f /* from 9.1 on it is 1 */

/* 1 + r + r^2 (...) for |r| up to ln 2 / 2. */
INLINE vf exp_near_zero(vf r) {
    vf p = fma_(all(1.37805939e-3f), r, all(8.37312452e-3f));
    p = fma_(p, r, all(4.16695364e-2f));
    p = fma_(p, r, all(1.66664720e-1f));
    p = fma_(p, r, all(4.99999851e-1f));
    p = fma_(p, r, all(1));
    return fma_(p, r, all(1));
}

#define EXP2_1 0.693147203f
#define EXP2_2 0.240226478f
#define EXP2_3 0.0555033117f
#define EXP2_4 0.00961844282f
#define EXP2_5 0.00133994188f
#define EXP2_6 0.000153529162f

/* 2^r for |r| up to 1/2. */
INLINE vf exp2_near_zero(vf r) {
    vf p = fma_(all(EXP2_6), r, all(EXP2_5));
    p = fma_(p, r, all(EXP2_4));
    p = fma_(p, r, all(EXP2_3));
    p = fma_(p, r, all(EXP2_2));
    p = fma_(p, r, all(EXP2_1));
    return fma_(p, r, all(1));
}

/* exp(x + low) = p 2^n for a `low` that is far smaller than x: x = n ln 2 + r, p = exp r = 1 + r + r^2 (...). Returns p, so
 * that it can be multiplied before 2^n may make it denormal. */
INLINE vf exp_parts(vf x, vf low, vf *n) {
    *n = nearest(mul(x, all(1.44269502f)));
    const vf r = add(fnma(*n, all(1.42860677e-6f), fnma(*n, all(6.93145752e-1f), x)), low);
    return exp_near_zero(r);
}

/* The same without `low`, for x from -150 up to 89. */
INLINE vf exp_of_moderate(vf x) {
    const vf n = nearest(mul(x, all(1.44269502f)));
    return scale_by(exp_near_zero(fnma(n, all(1.42860677e-6f), fnma(n, all(6.93145752e-1f), x))), n);
}

INLINE vf exp_of_negative(vf x) { return exp_of_moderate(most(all(-150.0f), x)); }

INLINE vf exp_of(vf x) { return exp_of_negative(least(all(89.0f), x)); }

/* x = 2^e m with m from 2/3 to 4/3. */
INLINE vf log_of(vf x) {
    const vm tiny = below(x, all(1.17549435e-38f));
    const vf scaled = choose(tiny, mul(x, all(8388608)), x);
    const vi whole = and_i(sub_i(bits(scaled), all_i(0x3f2aaaab)), all_i((int32_t)0xff800000));
    const vf e = fma_(to_float(whole), all(1.19209290e-7f), choose(tiny, all(-23), all(0)));
    const vf m = sub(from_bits(sub_i(bits(scaled), whole)), all(1)), s = mul(m, m);
    vf r = fma_(all(-0.130187988f), s, all(-0.121489584f)), t = fma_(all(0.140889585f), s, all(0.139809534f));
    r = fma_(r, s, all(-0.166845024f));
    t = fma_(t, s, all(0.200120345f));
    r = fma_(r, s, all(-0.249996200f));
    r = fma_(t, m, r);
    r = fma_(r, m, all(0.333331972f));
    r = fma_(r, m, all(-0.5f));
    r = fma_(r, s, m);
    r = fma_(e, all(0.693147182f), r);
    r = choose(below(x, all(INFINITY)), r, add(x, x)); /* infinity and NaN */
    r = choose(equal(x, all(0)), all(-INFINITY), r);
    return choose(below(x, all(0)), all(NAN), r);
}

/* 1 / (1 + exp(-|x|)), times exp(-|x|) for negative x. */
INLINE vf sigmoid_of(vf x) {
    const vf e = exp_of_negative(minus_magnitude(x));
    return mul(choose(below(x, all(0)), e, all(1)), reciprocal(add(all(1), e)));
}

/* exp(-x) for sums of gates: with a relative error of 1.5e-7 + |x| 2^-24, and never beyond 2^60, so that the product of two
 * is finite. The polynomial is the best of its degree that is 1 at 0. */
INLINE vf decay_of(vf x) {
    const vf y = least(all(60), most(all(-60), mul(x, all(-1.44269502f)))), n = nearest(y), r = sub(y, n);
    vf p = fma_(all(1.32647296e-3f), r, all(9.67151299e-3f));
    p = fma_(p, r, all(5.55073358e-2f));
    p = fma_(p, r, all(2.40222424e-1f));
    p = fma_(p, r, all(6.93147004e-1f));
    return scale_by(fma_(p, r, all(1)), n);
}

/* sigmoid(x) tanh(y), by one division. */
INLINE vf gated(vf x, vf y) {
    const vf e = decay_of(add(y, y));
    return mul(sub(all(1), e), reciprocal(mul(add(all(1), decay_of(x)), add(all(1), e))));
}

/* x sigmoid(alpha x); a negative x is multiplied before the exponential may become denormal. */
INLINE vf silu_of(vf x, vf alpha) {
    const vf y = mul(alpha, x), size = most(all(-150.0f), minus_magnitude(y));
    vf n;
    const vf p = exp_parts(size, all(0), &n);
    const vf negative = choose(below(all(-150.0f), size), scale_by(mul(x, p), n), mul(x, all(0)));
    return mul(choose(below(y, all(0)), negative, x), reciprocal(add(all(1), scale_by(p, n))));
}

#ifdef TABLES_OF_32

#include "rows/pieces.h"

/* c[0] + c[1] t + ... of the lane's piece. */
INLINE vf in_piece(const float (*c)[32], int degree, vi piece, vf t) {
    vf p = look_up(c[degree], piece);
    for (int i = degree - 1; i >= 0; i--) p = fma_(p, t, look_up(c[i], piece));
    return p;
}

INLINE vf tanh_of(vf x) {
    const vf a = least(all(0x1.fffffep+3f), magnitude(x));
    const vi piece = most_i(all_i(0), sub_i(exponent_and_two_bits(a), all_i(0x3d800000 >> 21))); /* from 1/16 on */
    return with_sign_of(in_piece(tanh_pieces, 5, piece, sub(a, look_up(tanh_middle[0], piece))), x);
}

#else

/* An odd polynomial near zero, 1 - 2 / (exp(2 |x|) + 1) elsewhere. */
INLINE vf tanh_of(vf x) {
    const vf a = least(all(TANH_END), magnitude(x)), s = mul(x, x);
    vf near = fma_(all(1.57394409e-2f), s, all(-5.23025580e-2f));
    near = fma_(near, s, all(1.33152470e-1f));
    near = fma_(near, s, all(-3.33327681e-1f));
    near = fma_(mul(near, s), x, x);
    const vf far = fnma(all(2), reciprocal(add(exp_of_moderate(add(a, a)), all(1))), all(1));
    return choose(below(all(0.55f), a), with_sign_of(far, x), near);
}

#endif

/* An odd polynomial near zero, 1 - exp(polynomial) elsewhere. */
INLINE vf erf_of(vf x) {
    const vf a = magnitude(x), s = mul(x, x);
    vf near = fma_(all(-5.96761703e-4f), s, all(4.99119423e-3f));
    near = fma_(near, s, all(-2.67681349e-2f));
    near = fma_(near, s, all(1.12819925e-1f));
    near = fma_(near, s, all(-3.76125336e-1f));
    near = fma_(near, s, all(1.28379166e-1f));
    near = fma_(near, x, x);
    const vf t = least(all(4), a), square = mul(t, t);
    vf far = fma_(all(-1.72853470e-5f), t, all(3.83197126e-4f));
    far = fma_(far, square, fma_(all(-3.88396438e-3f), t, all(2.42546219e-2f)));
    far = fma_(far, t, all(-1.06777877e-1f));
    far = fma_(far, t, all(-6.34846687e-1f));
    far = fma_(far, t, all(-1.28717512e-1f));
    far = fma_(far, t, sub(all(0), t));
    far = sub(all(1), exp_of_moderate(far));
    return choose(below(all(0.921875f), a), with_sign_of(far, x), near);
}

#ifdef TABLES_OF_32

/* max(x, 0) - |x| Q(|x|), where Q(u) = 1 - Phi(u): so the tail of negative x keeps its relative precision. */
INLINE vf gelu_of(vf x) {
    const vf u = least(all(0x1.fffffep+2f), magnitude(x)), n = nearest(fms(u, all(4), all(0.5f)));
    const vf t = fnma(n, all(0.25f), sub(u, all(0.125f)));
    return fnma(u, in_piece(normal_tail, 7, to_int(n), t), most(all(0), x));
}

#else

#define HALF_LOG2_E 0.721347511f
#define HALF_LOG2_E_REST 9.62981517e-09f
/* x Phi(x) = max(x, 0) - |x| Q(|x|), where Q(u) = 1 - Phi(u) = exp(-u^2 / 2) t S(t - 0.6) with t = 4 / (4 + u) and a
 * polynomial S fitted to 9e-9: so the tail of negative x keeps its relative precision. The exponential is taken to base
 * 2, u^2 log2(e) / 2 = n - r, with what u * u and the constant lose by rounding given to r; and what is missing in a
 * first guess of t goes into t. */
INLINE vf gelu_of(vf x) {
    const vf u = least(all(14.5f), magnitude(x)), square = mul(u, u), lost = fms(u, u, square);
    const vf guess = reciprocal_guess(add(all(4), u)), missing = fnma(guess, u, fnma(guess, all(4), all(1)));
    const vf quarter = fma_(guess, missing, guess), q = fma_(all(4), quarter, all(-0.6f));
    vf p = fma_(all(0x1.14bbe2p-4f), q, all(0x1.b51e3cp-4f)); /* 4 S */
    p = fma_(p, q, all(-0x1.1e7f6cp-3f));
    p = fma_(p, q, all(-0x1.6342bep-2f));
    p = fma_(p, q, all(0x1.130b62p-4f));
    p = fma_(p, q, all(0x1.0be89ep-0f));
    p = fma_(p, q, all(0x1.e5ceaep-0f));
    p = fma_(p, q, all(0x1.073246p+1f));
    p = fma_(p, q, all(0x1.930160p-0f));
    const vf s = fma_(p, q, all(0x1.c9b2a0p-1f));
    const vf n = nearest(mul(square, all(-HALF_LOG2_E)));
    const vf r = fnma(all(HALF_LOG2_E_REST), square, fnma(all(HALF_LOG2_E), lost, fnms(all(HALF_LOG2_E), square, n)));
    /* The product of three with what its factors and multiplications lose by rounding; 1 + still is what t lacks. */
    const vf e = exp2_near_zero(r), ut = mul(u, quarter), still = fnma(quarter, u, fnma(quarter, all(4), all(1)));
    const vf uts = mul(ut, s), product = mul(uts, e), lost_ut = fma_(ut, still, fms(u, quarter, ut));
    const vf lost_s = fma_(p, mul(all(4), mul(quarter, still)), fma_(p, q, sub(all(0x1.c9b2a0p-1f), s)));
    const vf lost_uts = fma_(ut, lost_s, fma_(lost_ut, s, fms(ut, s, uts)));
    const vf tail = scale_by(add(product, fma_(lost_uts, e, fms(uts, e, product))), n);
    return sub(most(all(0), x), tail);
}

#endif

/* x / (1 + exp(-2 c)), c = sqrt(2 / pi) (x + 0.044715 x^3): Gelu's approximation by tanh. */
INLINE vf gelu_tanh_of(vf x) {
    const vf inner = mul(mul(x, all(1.5957691f)), fma_(mul(x, x), all(0.044715f), all(1)));
    return mul(x, sigmoid_of(inner));
}

#endif

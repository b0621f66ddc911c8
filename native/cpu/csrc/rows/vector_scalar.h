/* The vector operations of rows/, one lane wide: the readable definition of each. */
#ifndef PUMICE_ROWS_VECTOR_H
#define PUMICE_ROWS_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 1
typedef float vf;
typedef int32_t vi;
typedef int vm;

#define INLINE static inline __attribute__((always_inline))

/* `count` lanes, 1 to LANES; the others are zero, or not stored. */
INLINE vf load(const float *p) { return *p; }
INLINE vf load_some(const float *p, int64_t count) { return *p; }
INLINE void store(float *p, vf v) { *p = v; }
INLINE void store_some(float *p, vf v, int64_t count) { *p = v; }
INLINE vf all(float x) { return x; }
INLINE vi all_i(int32_t x) { return x; }

INLINE vf add(vf a, vf b) { return a + b; }
INLINE vf sub(vf a, vf b) { return a - b; }
INLINE vf mul(vf a, vf b) { return a * b; }
INLINE vf divide(vf a, vf b) { return a / b; }
INLINE vf fma_(vf a, vf b, vf c) { return fmaf(a, b, c); }   /* a b + c */
INLINE vf fnma(vf a, vf b, vf c) { return fmaf(-a, b, c); } /* c - a b */
INLINE vf fms(vf a, vf b, vf c) { return fmaf(a, b, -c); }   /* a b - c */
INLINE vf fnms(vf a, vf b, vf c) { return fmaf(-a, b, -c); } /* -a b - c */
INLINE vf root(vf a) { return sqrtf(a); }
/* b where either is NaN. */
INLINE vf least(vf a, vf b) { return a < b ? a : b; }
INLINE vf most(vf a, vf b) { return a > b ? a : b; }
INLINE vf nearest(vf a) { return rintf(a); }
/* 1 / a to 13 bits at least. */
INLINE vf reciprocal_guess(vf a) { return 1 / a; }
/* 1 / a to one unit in the last place, for finite a from 2^-100 to 2^100; faster than a division where there is a way. */
INLINE vf reciprocal(vf a) { return 1 / a; }

INLINE vi bits(vf a) {
    vi r;
    memcpy(&r, &a, sizeof r);
    return r;
}
INLINE vf from_bits(vi a) {
    vf r;
    memcpy(&r, &a, sizeof r);
    return r;
}
/* Nearest even; INT32_MIN for what has no such integer. */
INLINE vi to_int(vf a) { return a >= -2147483648.0f && a < 2147483648.0f ? (int32_t)rintf(a) : INT32_MIN; }
INLINE vf to_float(vi a) { return (float)a; }
INLINE vi add_i(vi a, vi b) { return (int32_t)((uint32_t)a + (uint32_t)b); }
INLINE vi sub_i(vi a, vi b) { return (int32_t)((uint32_t)a - (uint32_t)b); }
INLINE vi and_i(vi a, vi b) { return a & b; }
INLINE vi or_i(vi a, vi b) { return a | b; }

INLINE vm below(vf a, vf b) { return a < b; }
INLINE vm equal(vf a, vf b) { return a == b; }
INLINE vf choose(vm m, vf yes, vf no) { return m ? yes : no; }
INLINE vi choose_i(vm m, vi yes, vi no) { return m ? yes : no; }

/* a 2^n for integral n from -252 to 252, denormal results rounded once more at most. */
INLINE vf power_of_two(int32_t n) { return from_bits((int32_t)((uint32_t)(n + 127) << 23)); }
INLINE vf scale_by(vf a, vf n) {
    const int32_t whole = n == n ? to_int(n) : 0, half = whole / 2;
    return a * power_of_two(half) * power_of_two(whole - half);
}

INLINE float sum_of(vf a) { return a; }
INLINE float most_of(vf a) { return a; }
INLINE float least_of(vf a) { return a; }

/* Whole vectors of narrow integers. */
INLINE vi load_u8(const uint8_t *p) { return *p; }
INLINE vi load_s8(const int8_t *p) { return *p; }
INLINE void store_8(void *p, vi v) { *(uint8_t *)p = (uint8_t)v; } /* the low byte of each lane */
INLINE vi load_i(const int32_t *p) { return *p; }
INLINE void store_i(int32_t *p, vi v) { *p = v; }

#endif

/* What the table says about matrix products. */
#ifndef PUMICE_GEMM_TYPES_H
#define PUMICE_GEMM_TYPES_H

#include <stddef.h>
#include <stdint.h>

#include "gemm/api.h"

/* tile[r][c] (+)= sum over k of a[r][k] * panel[k][c], for r below `rows`, 1 to the kernel's most in its steps.
 *
 * `a` has its rows `a_stride` bytes apart; `panel` is laid out [k / group][columns][group] and zero beyond k; `tile`
 * has the kernel's `columns` and is 64-byte aligned, of f32 or s32. */
struct gemm_fetch { /* memory to bring into the second-level cache meanwhile: `step` bytes a group of k */
    const char *next;
    int64_t step;
};
typedef void (*gemm_tile)(int rows, int64_t k, const void *a, int64_t a_stride, const void *panel, void *tile,
                          int accumulate, struct gemm_fetch fetch);

struct gemm_kernel {
    gemm_tile tile;
    int rows, columns;  /* of the largest tile */
    int a_type, b_type; /* elements as the kernel reads them: enum pumice_type */
    int group;          /* consecutive k of a column in the panel */
    int k_align;        /* panels are padded to a multiple of this many k, a multiple of group */
    int k_block; /* k are summed in blocks of this many, a multiple of k_align: of A, for the second-level cache */
    int k_slice;        /* and within them of this many, of a panel, for the first-level cache; 0: no slices */
    gemm_tile held;     /* `tile` for when A's slice stays in that cache and panels pass it; NULL: they never do */
    int row_step;       /* tiles have a multiple of this many rows: A's last ones are copied and padded; 0 is 1 */
    int whole_lines;    /* A is loaded 64 bytes at a time: worth gathering where rows do not begin on cache lines */
    int rounds;         /* f32 operands are rounded to bf16 as they are packed, so that a bfloat product is one */
    const struct gemm_kernel *of_few; /* one that reads the same panels, for products of `few_rows` rows or less */
    int few_rows;                     /* of the kernel of few */
    void (*start)(void), (*finish)(void); /* around the tiles of a chunk, on its thread; NULL: nothing to do */
};

/* The epilogue, made ready: what a store kernel reads. Pointers are at column 0 of the matrix. */
struct gemm_store {
    struct pumice_epilogue e;
    const int32_t *column_offset; /* e.offset and what zero points come to; NULL: none */
    void (*map)(int function, const float *in, float *out, int64_t count, const float *parameters);
    int function; /* of map: activations that are no clamp; map is NULL where there is none */
    float low, high;   /* clamp of v before the division */
    float floor, roof; /* clamp of the quantized value, its zero point not yet added */
    int simple;        /* only column_offset, scale, bias, clamp and zero matter */
};

#endif

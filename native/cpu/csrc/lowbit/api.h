/* Products with weights of four bits, decoded in registers through tables of 16 entries. */
#ifndef PUMICE_LOWBIT_API_H
#define PUMICE_LOWBIT_API_H

#include <stdint.h>

enum pumice_table_type {
    PUMICE_TABLE_S8 = 0,   /* rows are quantized to s8 with a scale each; integer sums within a group */
    PUMICE_TABLE_BF16 = 1, /* rows are rounded to bf16, summed in f32 */
    PUMICE_TABLE_F32 = 2,  /* f32 throughout */
};

/* The weight of code c at (k, n) is (table[c] - offset) * scale, with the table, scale and offset of column n and of
 * the group that k is in. */
struct pumice_codebook {
    const uint8_t *codes; /* [n][k], 0 to 15 */
    int64_t n, k;
    int32_t type;             /* enum pumice_table_type */
    const void *table;        /* s8 or f32; 16 entries a table */
    int64_t table_column;     /* entries from one column's table to the next; 0: all columns share them */
    int64_t table_group;      /* entries from one group's table to the next; 0: all groups share them */
    int64_t group;            /* k of a group: 32, 64 or a multiple of 128; k itself or more: one group. Tables that
                               * differ by group need 128 at least */
    const float *scale;       /* [n][groups], groups = ceil(k / group) */
    const float *offset;      /* [n][groups] or NULL, in units of the table */
};

struct pumice_lowbit;
int pumice_lowbit_pack(struct pumice_lowbit **packed, const struct pumice_codebook *codebook, int threads);
void pumice_lowbit_free(struct pumice_lowbit *packed);
int64_t pumice_lowbit_bytes(const struct pumice_lowbit *packed);

/* out[m][n] = sum over k of a[m][k] * weight(k, n) + bias[n]; bias may be NULL, rows of a and out are strided. */
int pumice_lowbit_matmul(const struct pumice_lowbit *packed, const float *a, int64_t m, int64_t a_stride,
                         const float *bias, float *out, int64_t out_stride, int threads);

/* q[m][k] = round_to_even(a / scale[m]), scale[m] = max |a[m]| / 127 (0 for a row of zeros): the symmetric s8 of each
 * row. */
int pumice_quantize_rows(const float *a, int64_t m, int64_t k, int64_t a_stride, int8_t *q, float *scale, int threads);

/* out = activation((sum over k of q[m][k] (b[k][n] - b_zero[n])) * a_scale * scale[n * scale_step] + bias[n]), where q
 * is `a` quantized on the way: per row, symmetric s8 with a_scale = max |row| / 127; else by ONNX's
 * DynamicQuantizeLinear, one u8 scale and zero point for the matrix. `b` is packed for integer products; b_zero and
 * bias may be NULL; activation is PUMICE_NO_ACTIVATION, _GELU, _SILU, _TANH or _SIGMOID. */
struct pumice_packed;
int pumice_dynamic_matmul(const struct pumice_packed *b, const float *a, int64_t m, int64_t k, int64_t a_stride,
                          int per_row, const float *scale, int64_t n, int scale_step, const int32_t *b_zero,
                          const float *bias, int activation, float *out, int64_t out_stride, int threads);

#endif

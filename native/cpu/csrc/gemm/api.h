/* Matrix products: out = epilogue(A B). A is read in place where its rows are contiguous; B is packed once. */
#ifndef PUMICE_GEMM_API_H
#define PUMICE_GEMM_API_H

#include <stdint.h>

enum pumice_type {
    PUMICE_F32 = 0,
    PUMICE_BF16 = 1,
    PUMICE_U8 = 2,
    PUMICE_S8 = 3,
    PUMICE_S32 = 4,
    PUMICE_S16 = 5, /* inside kernels only */
};

/* What the products are and how they are summed. */
enum pumice_product {
    PUMICE_FLOAT = 0,   /* f32 (or bf16 operands widened), summed in f32 */
    PUMICE_BFLOAT = 1,  /* operands rounded to bf16, summed in f32 */
    PUMICE_INTEGER = 2, /* 8 bits by 8 bits, summed in s32, exact: k up to 65,000 */
};

struct pumice_matrix {
    const void *data;
    int32_t type; /* enum pumice_type */
    int64_t rows, columns;
    int64_t row_stride, column_stride; /* in elements; either may be anything but is at least 0 */
};

/* What happens to a sum on its way out, in this order. Zeroed fields do nothing, but for `output`.
 *
 *   integer products:  s = sum + offset[n] + row_term[m] * column_term[n]     (wraps)
 *   v = (float)s * scale[n * scale_step] * row_scale[m] + bias[n]
 *   v = v + ((float)(residual[m][n] - residual_zero)) * residual_scale
 *   v = activation(v)
 *   f32, bf16:  v          s32:  s itself
 *   u8, s8:     table[clamp(round_to_even(v / divisor) + zero)]
 *
 * Everything is rounded after each operation, so that all levels give the same bits. */
struct pumice_epilogue {
    int32_t output; /* enum pumice_type: F32, BF16, U8, S8, or S32 for integer products */
    int32_t activation; /* enum pumice_activation */
    const int32_t *offset;
    const int32_t *row_term, *column_term;
    const float *scale; /* NULL: 1 */
    int32_t scale_step; /* 1: one scale a column; 0: scale[0] for all */
    const float *row_scale;
    const float *bias;
    const void *residual; /* rows of residual_stride elements; stride 0 repeats one row */
    int64_t residual_stride;
    int32_t residual_type; /* F32, BF16, U8, S8 */
    int32_t residual_zero;
    float residual_scale;
    float low, high; /* of PUMICE_CLIP */
    float divisor;   /* 0: 1 */
    int32_t zero;
    const uint8_t *table; /* 256 results by the bits of the quantized value; NULL: the value itself */
};

enum pumice_activation {
    PUMICE_NO_ACTIVATION = 0,
    PUMICE_CLIP = 1,    /* ReLU is low = 0, high = infinity */
    PUMICE_GELU = 2,    /* x/2 (1 + erf(x / sqrt 2)) */
    PUMICE_SILU = 3,    /* x / (1 + exp(-x)) */
    PUMICE_TANH = 4,
    PUMICE_SIGMOID = 5,
};

/* B, rearranged for the level in force, which its products then use. Integer products take B as s8 or u8. */
struct pumice_packed;
int pumice_pack(struct pumice_packed **packed, int product, const struct pumice_matrix *b, int threads);
void pumice_packed_free(struct pumice_packed *packed);
int64_t pumice_packed_bytes(const struct pumice_packed *packed);

/* out[m][n] = epilogue(sum over k of (a[m][k] - a_zero) * (b[k][n] - b_zero[n])).
 *
 * Zero points count for integer products only; b_zero is one value a column or NULL for none. `out` rows are out_stride
 * elements apart and must not overlap an operand. */
int pumice_gemm(const struct pumice_packed *b, const struct pumice_matrix *a, int32_t a_zero, const int32_t *b_zero,
                const struct pumice_epilogue *epilogue, void *out, int64_t out_stride, int threads);

/* `count` products of matrices that differ in where they begin: a.data + a_offsets[i] elements and so on. B is packed
 * on the way. */
int pumice_gemm_batch(int product, int64_t count, const struct pumice_matrix *a, const int64_t *a_offsets,
                      const struct pumice_matrix *b, const int64_t *b_offsets, int32_t a_zero, int32_t b_zero,
                      const struct pumice_epilogue *epilogue, void *out, const int64_t *out_offsets, int64_t out_stride,
                      int threads);

#endif

/* LSTM and GRU layers on f32, and over 8-bit weights. */
#ifndef PUMICE_RECURRENT_API_H
#define PUMICE_RECURRENT_API_H

#include <stdint.h>

/* R (gates * hidden, hidden), contiguous, packed for pumice_recurrent: four gates are an LSTM's, three a GRU's, in ONNX's
 * order. Those that `split` are multiplied as nhwc/ multiplies split operands, where the level does so. */
struct pumice_recurrent_weights;
int pumice_recurrent_pack(struct pumice_recurrent_weights **packed, const float *r, int gates, int64_t hidden,
                          int split);
void pumice_recurrent_free(struct pumice_recurrent_weights *packed);

/* One direction of an LSTM (gates i, o, f, c) or GRU (z, r, h), as ONNX defines them with sigmoid and tanh.
 *
 * `projected` [time][batch][gates * hidden] is W x + b for all steps. h [batch][hidden] and an LSTM's c hold the state before
 * and after; y is [time][batch][hidden] with y_stride elements from step to step. lengths may be NULL; rows that are over
 * keep their state and give zeros. */
struct pumice_recurrence {
    const struct pumice_recurrent_weights *weights;
    int32_t linear_before_reset, reverse;
    int64_t time, batch, y_stride;
    const float *projected;
    const float *inner_bias; /* GRU, linear_before_reset: Rb of the candidate, [hidden]; else NULL */
    const float *peepholes;  /* LSTM: [3][hidden] for i, o, f; else NULL */
    const int32_t *lengths;
    float *h, *c, *y;
};
/* `count` directions of one layer, 1 or 2, at the same time. */
int pumice_recurrent(const struct pumice_recurrence *directions, int count, int threads);

/* A matrix of an LSTM (gates i, o, f, c) or a GRU (z, r, h) in 8 bits, packed so that the sums of all gates of some units
 * come together. `r` is [hidden][gates * hidden], or W with a row for each input, s8 or u8; its columns have a scale each
 * (scale_step 1) or share one (0), and zero points or NULL. */
struct pumice_matrix;
struct pumice_gates;
int pumice_gates_pack(struct pumice_gates **packed, const struct pumice_matrix *r, int gates, const float *scale,
                      int scale_step, const int32_t *zero);
void pumice_gates_free(struct pumice_gates *packed);
int64_t pumice_gates_bytes(const struct pumice_gates *packed);

/* What the sums over a layer's inputs are made of at each step: W, what multiplies it and b. */
struct pumice_recurrent_input {
    const struct pumice_gates *weights;
    const uint8_t *levels; /* [time][batch][inputs] */
    const float *scale;    /* of all levels, with `zero`; or [time][batch], zero NULL: it is 128 */
    const uint8_t *zero;
    const float *bias; /* [gates * hidden] or NULL */
};

/* One direction of such a layer, with sigmoid and tanh as ONNX's defaults have them; a GRU resets after its product
 * (linear_before_reset). At every step the hidden state becomes levels: by_row, symmetric with a scale for each row;
 * else by ONNX's DynamicQuantizeLinear, one scale and zero point for the batch. Cell and hidden state stay f32.
 *
 * `projected` [time][batch][gates * hidden] is W x + b for all steps; or NULL, and `input` says what it is made of.
 * h [batch][hidden] and c hold the state before and after; y is [time][batch][hidden] with y_stride elements from step to
 * step. Rows that are shorter by `lengths` (or NULL) keep their last state, and their outputs beyond it are zero. */
struct pumice_recurrence_u8 {
    const struct pumice_gates *recurrent;
    int32_t reverse, by_row;
    int64_t time, batch, y_stride;
    const float *projected;
    struct pumice_recurrent_input input;
    const float *inner_bias; /* GRU: Rb of the candidate, [hidden], or NULL */
    const float *peepholes;  /* LSTM: [3][hidden] for i, o, f, or NULL */
    const int32_t *lengths;
    float *h, *c, *y;
};
int pumice_recurrent_u8(const struct pumice_recurrence_u8 *recurrence, int threads);

struct pumice_packed;
struct pumice_nhwc;
/* The gradient of one direction of an LSTM without peepholes and lengths: runs it forward again, then back.
 *
 * `projected` as above; `recurrent` is R^T packed (k = hidden, n = 4 hidden), `back` is R (k = 4 hidden,
 * n = hidden). `gates` [time][batch][4 hidden] receives the gradient of the gates' sums and `states` [time + 1][batch]
 * [hidden] the states, that before each step at its place in order of the steps; `cells` is scratch of the same size. The
 * first ones of both hold the first state. dy is [time][batch][hidden], dy_stride apart, in order of time; dh and dc are
 * the gradients of the last states and become those of the first. */
struct pumice_lstm_gradient {
    int32_t reverse;
    int64_t time, batch, hidden, dy_stride;
    const float *projected, *dy;
    const struct pumice_packed *recurrent, *back;
    const struct pumice_nhwc *split, *split_back; /* the same for pumice_nhwc_run, or NULL */
    float *gates, *states, *cells, *dh, *dc;
};
int pumice_lstm_gradient(const struct pumice_lstm_gradient *gradient, int threads);

#endif

/* From integer sums of gates to the next state, written once over the vector operations of one level; included by
 * cells_<level>.c after rows/vector_<level>.h. */
#ifndef PUMICE_RECURRENT_CELLS_H
#define PUMICE_RECURRENT_CELLS_H

#include "base/numbers.h"
#include "base/table.h"
#include "rows/functions.h"

/* What a gate's integers stand for, plus `more`: exact up to 2^24, and rounded three times. */
INLINE vf gate_sum(const struct recurrent_sums *s, int64_t gate, vf more, int64_t i) {
    const int64_t at = gate * s->units + i;
    vf sum = fnma(all(s->zero), load(s->columns + at), to_float(load_i(s->sums + gate * s->sums_step + i)));
    if (s->zeros) sum = fnma(all(s->sum), load(s->zeros + at), sum);
    return fma_(sum, mul(load(s->scale + at), all(s->row_scale)), more);
}

INLINE vf added(const struct recurrent_sums *s, int64_t gate, int64_t i, int64_t some) {
    const vf more = s->added ? part(s->added + gate * s->added_step + i, some) : all(0);
    return s->input ? gate_sum(s->input, gate, more, i) : more;
}

/* A gate's peephole looks at the cell. */
INLINE vf peeping(const struct recurrent_units *u, int64_t gate, vf cell, vf sum, int64_t i, int64_t some) {
    return u->extra ? add(sum, mul(part(u->extra + gate * u->extra_step + i, some), cell)) : sum;
}

INLINE void put_state(const struct recurrent_units *u, vf h, int64_t i, int64_t some) {
    put(u->h + i, h, some);
    put(u->y + i, h, some);
    put(u->low + i, least(h, part(u->low + i, some)), some);
    put(u->high + i, most(h, part(u->high + i, some)), some);
}

INLINE void lstm_lanes(const struct recurrent_sums *s, const struct recurrent_units *u, int64_t i, const int64_t some) {
    const vf old = part(u->c + i, some);
    const vf in = peeping(u, 0, old, gate_sum(s, 0, added(s, 0, i, some), i), i, some);
    const vf keep = peeping(u, 2, old, gate_sum(s, 2, added(s, 2, i, some), i), i, some);
    const vf kept = mul(old, reciprocal(add(all(1), decay_of(keep))));
    const vf cell = add(kept, gated(in, gate_sum(s, 3, added(s, 3, i, some), i)));
    const vf out = peeping(u, 1, cell, gate_sum(s, 1, added(s, 1, i, some), i), i, some);
    put(u->c + i, cell, some);
    put_state(u, gated(out, cell), i, some);
}

/* h = (1 - sigmoid(z)) tanh(n) + sigmoid(z) h by one division. */
INLINE vf gru_state(vf z, vf n, vf h) {
    const vf e = decay_of(z), f = decay_of(add(n, n)), one = add(all(1), f);
    return mul(fma_(e, sub(all(1), f), mul(h, one)), reciprocal(mul(add(all(1), e), one)));
}

INLINE void gru_lanes(const struct recurrent_sums *s, const struct recurrent_units *u, int64_t i, const int64_t some) {
    const vf inner = u->extra ? part(u->extra + i, some) : all(0);
    const vf reset = reciprocal(add(all(1), decay_of(gate_sum(s, 1, added(s, 1, i, some), i))));
    const vf fed = fma_(reset, gate_sum(s, 2, inner, i), added(s, 2, i, some));
    put_state(u, gru_state(gate_sum(s, 0, added(s, 0, i, some), i), fed, part(u->h + i, some)), i, some);
}

/* Whole vectors know that they are whole. */
#define CELL(name)                                                                                              \
    static void name(const struct recurrent_sums *s, const struct recurrent_units *u, int64_t count) {          \
        int64_t i = 0;                                                                                          \
        for (; i + LANES <= count; i += LANES) name##_lanes(s, u, i, LANES);                                    \
        if (i < count) name##_lanes(s, u, i, count - i);                                                        \
    }
CELL(lstm)
CELL(gru)

#define CELLS_KERNELS(table) table->recurrent_lstm_u8 = lstm, table->recurrent_gru_u8 = gru;

#endif

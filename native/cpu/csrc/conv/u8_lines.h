/* 8-bit depthwise 3x3 convolution with vpdpbusd from bytes to levels in registers, of one width. The including file
 * defines, beside LANES, QUAD and `struct bounds`,
 *
 *     V(operation)    the intrinsic of that name
 *     LINE(name)      `name` at this width: `vector` and `mask` are types
 *     WIDE            channels of four registers; weights and sums of fewer than QUAD are the lower halves of registers
 *     PART(v)         what there is of a register of 512 bits
 *
 * Columns are interleaved once and kept in registers for the three windows that see them; weights are read where they
 * are used. Of two rows of results one below the other, four rows of the image are interleaved, and the lower result
 * has its weights a byte higher. */

struct LINE(quad) {
    LINE(vector) v[4];
};

ALWAYS LINE(vector) LINE(first_of)(const int channels, const uint8_t *p) {
    if (channels >= WIDE) return V(loadu_epi8)(p);
    return V(maskz_loadu_epi8)((LINE(mask))((1ull << channels) - 1), p);
}

/* The rows of a column as INTERLEAVE has them. */
ALWAYS struct LINE(quad) LINE(interleaved)(const int channels, const uint8_t *const *row) {
    const LINE(vector) a = LINE(first_of)(channels, row[0]), b = LINE(first_of)(channels, row[1]);
    const LINE(vector) c = LINE(first_of)(channels, row[2]), d = LINE(first_of)(channels, row[3]);
    const LINE(vector) ab = V(unpacklo_epi8)(a, b), AB = V(unpackhi_epi8)(a, b);
    const LINE(vector) cd = V(unpacklo_epi8)(c, d), CD = V(unpackhi_epi8)(c, d);
    return (struct LINE(quad)){{V(unpacklo_epi16)(ab, cd), V(unpackhi_epi16)(ab, cd), V(unpacklo_epi16)(AB, CD),
                                V(unpackhi_epi16)(AB, CD)}};
}

/* As `packed`. */
ALWAYS LINE(vector) LINE(bytes_of)(const int plain, const LINE(vector) *level, const struct bounds *bounds) {
    const LINE(vector) low = V(adds_epi16)(V(packs_epi32)(level[0], level[1]), PART(bounds->zero_point));
    const LINE(vector) high = V(adds_epi16)(V(packs_epi32)(level[2], level[3]), PART(bounds->zero_point));
    const LINE(vector) bytes = V(packus_epi16)(low, high);
    if (plain) return bytes;
    return V(xor_epi32)(V(min_epu8)(V(max_epu8)(bytes, PART(bounds->low)), PART(bounds->high)), PART(bounds->flip));
}

ALWAYS void LINE(levels_of_lines)(const int stride, const int lines, const int plain, const int channels,
                                  uint8_t *restrict out, const struct conv_u8_line *line) {
    const struct bounds bounds = bounds_of(line->how);
    const float *multiplier = line->how->multiplier;
    const int32_t *bias = line->bias;
    const int64_t columns = line->columns, column = line->column, count = line->count, out_stride = line->out_stride;
    const LINE(vector) absent = V(set1_epi8)((char)line->border);
    const struct LINE(quad) border = {{absent, absent, absent, absent}};
    const uint8_t *row[4] = {line->rows[0], line->rows[1], line->rows[2], line->rows[lines + 1]};
    _Alignas(64) int8_t lower[12 * QUAD];
    const int8_t *weights[2] = {line->weights, lower};
    for (int i = 0; lines == 2 && i < 12; i++)
        V(storeu_epi8)(lower + i * QUAD, V(slli_epi32)(V(loadu_epi8)(line->weights + i * QUAD), 8));
    int64_t at = -line->before;
#define COLUMN(quad)                                                                                                   \
    if (at < 0 || at >= columns) {                                                                                     \
        quad = border;                                                                                                 \
    } else {                                                                                                           \
        quad = LINE(interleaved)(channels, (const uint8_t *const[]){row[0], row[1], row[2], row[3]});                  \
        row[0] += column, row[1] += column, row[2] += column, row[3] += column;                                        \
    }                                                                                                                  \
    at++;
    struct LINE(quad) first, second = border, third;
    COLUMN(first)
    if (stride == 1) { COLUMN(second) }
    for (int64_t i = 0; i < count; i++, out += out_stride) {
        if (stride == 2) { COLUMN(second) }
        COLUMN(third)
        _Pragma("GCC unroll 2") for (int l = 0; l < lines; l++) {
            LINE(vector) level[4];
            _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) {
                const int8_t *w = weights[l] + v * LANES * 4;
                LINE(vector) sum = V(loadu_epi32)(bias + v * LANES);
                sum = V(dpbusd_epi32)(sum, first.v[v], V(loadu_epi8)(w));
                sum = V(dpbusd_epi32)(sum, second.v[v], V(loadu_epi8)(w + 4 * QUAD));
                sum = V(dpbusd_epi32)(sum, third.v[v], V(loadu_epi8)(w + 8 * QUAD));
                level[v] = V(cvtps_epi32)(V(mul_ps)(V(cvtepi32_ps)(sum), V(loadu_ps)(multiplier + v * LANES)));
            }
            const LINE(vector) bytes = LINE(bytes_of)(plain, level, &bounds);
            if (channels >= WIDE) V(storeu_epi8)(out + l * line->below, bytes);
            else V(mask_storeu_epi8)(out + l * line->below, (LINE(mask))((1ull << channels) - 1), bytes);
        }
        first = stride == 1 ? second : third;
        second = third;
    }
#undef COLUMN
}

#define LINES(stride, lines)                                                                                           \
    static __attribute__((noipa)) void LINE(lines_##stride##_##lines)(uint8_t *out, const struct conv_u8_line *line) { \
        const int plain = bounds_of(line->how).plain, n = line->channels;                                              \
        if (n >= WIDE && plain) LINE(levels_of_lines)(stride, lines, 1, WIDE, out, line);                              \
        else if (n >= WIDE) LINE(levels_of_lines)(stride, lines, 0, WIDE, out, line);                                  \
        else LINE(levels_of_lines)(stride, lines, 0, n, out, line);                                                    \
    }
LINES(1, 1) LINES(1, 2) LINES(2, 1)

static void LINE(depthwise)(uint8_t *out, const struct conv_u8_line *line) {
    (line->stride == 2   ? LINE(lines_2_1)
     : line->lines == 2 ? LINE(lines_1_2)
                        : LINE(lines_1_1))(out, line);
}

#undef LINES
#undef V
#undef LINE
#undef WIDE
#undef PART

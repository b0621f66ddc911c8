/* Packed weights as bytes that can be mapped back: a head, the record itself, then what it points to, each on a line of
 * its own. Bound to the build, and to the level that packed them. */
#include <stdlib.h>
#include <string.h>

#include "base/numbers.h"
#include "conv/conv_u8.h"
#include "gemm/gemm.h"
#include "nhwc/nhwc.h"
#include "runtime/api.h"

enum { LINE = 64, MOST_PARTS = 4 };

struct head {
    int32_t kind, level;
    int64_t bytes; /* of the whole image */
};

/* The record and what it points to. */
struct parts {
    const void *from[MOST_PARTS];
    int64_t bytes[MOST_PARTS], at[MOST_PARTS], end;
    int count;
};

static void add(struct parts *parts, const void *from, int64_t bytes) {
    if (!parts->count) parts->end = round_up(sizeof(struct head), LINE);
    parts->from[parts->count] = from, parts->bytes[parts->count] = bytes, parts->at[parts->count++] = parts->end;
    parts->end = round_up(parts->end + bytes, LINE);
}

/* --- kinds -------------------------------------------------------------------------------------------------------- */

static struct parts parts_of_u8(const struct pumice_conv_u8 *conv, const struct pumice_conv_u8 *record) {
    const int64_t filters = conv->depthwise ? conv->depthwise_form.channels : conv->form.filters;
    const int64_t panels = conv->depthwise ? conv->panels : conv->shape.groups * conv->panels;
    const int64_t weights =
        conv->depthwise ? conv_u8_depthwise_bytes(conv) : conv->packed_segments * conv->packed_depth * filters;
    struct parts parts = {.count = 0};
    add(&parts, record, sizeof *record);
    add(&parts, conv->offset, conv->segments * conv->parts * (int64_t)sizeof *conv->offset);
    add(&parts, conv->bias, panels * filters * (int64_t)sizeof *conv->bias);
    add(&parts, conv->weights, panels * weights);
    return parts;
}

static struct parts parts_of_nhwc(const struct pumice_nhwc *conv, const struct pumice_nhwc *record) {
    struct parts parts = {.count = 0};
    add(&parts, record, sizeof *record);
    add(&parts, conv->weights, nhwc_weight_bytes(conv));
    return parts;
}

static struct parts parts_of_matrix(const struct pumice_packed *packed, const struct gemm_description *record) {
    struct parts parts = {.count = 0};
    add(&parts, record, sizeof *record);
    add(&parts, gemm_packed_memory(packed), pumice_packed_bytes(packed));
    return parts;
}

/* A record without addresses, which are nobody else's business. */
union record {
    struct pumice_conv_u8 u8;
    struct pumice_nhwc nhwc;
    struct gemm_description matrix;
};

static struct parts parts_of(int kind, const void *packed, union record *record, const struct level **level) {
    memset(record, 0, sizeof *record);
    if (kind == PUMICE_IMAGE_CONV_U8) {
        const struct pumice_conv_u8 *conv = packed;
        record->u8 = *conv, *level = conv->level;
        record->u8.level = NULL, record->u8.depthwise_form.order = NULL, record->u8.form.fetching = NULL;
        record->u8.offset = NULL, record->u8.weights = NULL, record->u8.bias = NULL;
        return parts_of_u8(conv, &record->u8);
    }
    if (kind == PUMICE_IMAGE_NHWC) {
        const struct pumice_nhwc *conv = packed;
        record->nhwc = *conv, *level = conv->level;
        record->nhwc.level = NULL, record->nhwc.product = NULL, record->nhwc.plain = NULL, record->nhwc.weights = NULL;
        return parts_of_nhwc(conv, &record->nhwc);
    }
    record->matrix = gemm_describe(packed, level);
    return parts_of_matrix(packed, &record->matrix);
}

int64_t pumice_image_bytes(int kind, const void *packed) {
    union record record;
    const struct level *level;
    return parts_of(kind, packed, &record, &level).end;
}

void pumice_image_write(int kind, const void *packed, void *image) {
    union record record;
    const struct level *level;
    const struct parts parts = parts_of(kind, packed, &record, &level);
    const struct head head = {kind, pumice_level_number(level), parts.end};
    memset(image, 0, (size_t)parts.end);
    memcpy(image, &head, sizeof head);
    for (int i = 0; i < parts.count; i++)
        memcpy((char *)image + parts.at[i], parts.from[i], (size_t)parts.bytes[i]);
}

/* --- mapping ------------------------------------------------------------------------------------------------------ */

static void *map_u8(const char *image, const struct level *level, int64_t bytes) {
    struct pumice_conv_u8 *conv = malloc(sizeof *conv);
    if (!conv) return NULL;
    memcpy(conv, image + round_up(sizeof(struct head), LINE), sizeof *conv);
    conv->level = level;
    if (conv->depthwise) conv->depthwise_form = level->table.conv_u8_depthwise_form();
    else conv->form = conv->deep ? level->table.conv_u8_deep_form() : level->table.conv_u8_form();
    const struct parts parts = parts_of_u8(conv, conv);
    conv->offset = (int64_t *)(void *)(image + parts.at[1]);
    conv->bias = (int32_t *)(void *)(image + parts.at[2]);
    conv->weights = (int8_t *)(image + parts.at[3]);
    if (parts.end == bytes) return conv;
    free(conv);
    return NULL;
}

static void *map_nhwc(const char *image, const struct level *level, int64_t bytes) {
    struct pumice_nhwc *conv = malloc(sizeof *conv);
    if (!conv) return NULL;
    memcpy(conv, image + round_up(sizeof(struct head), LINE), sizeof *conv);
    conv->level = level, conv->plain = gemm_kernel_of(level, PUMICE_FLOAT);
    conv->product = conv->splits ? level->table.nhwc_product() : NULL;
    const struct parts parts = parts_of_nhwc(conv, conv);
    conv->weights = (char *)image + parts.at[1];
    if (parts.end == bytes) return conv;
    free(conv);
    return NULL;
}

static void *map_matrix(const char *image, const struct level *level, int64_t bytes) {
    struct gemm_description record;
    const int64_t at = round_up(sizeof(struct head), LINE), memory = at + round_up(sizeof record, LINE);
    memcpy(&record, image + at, sizeof record);
    struct pumice_packed *packed = gemm_map(&record, level, image + memory);
    if (!packed || memory + round_up(pumice_packed_bytes(packed), LINE) == bytes) return packed;
    free(packed);
    return NULL;
}

void *pumice_image_map(int kind, const void *image, int64_t bytes) {
    static const struct {
        void *(*map)(const char *image, const struct level *level, int64_t bytes);
        int64_t record;
    } kinds[] = {{map_u8, sizeof(struct pumice_conv_u8)},
                 {map_nhwc, sizeof(struct pumice_nhwc)},
                 {map_matrix, sizeof(struct gemm_description)}};
    struct head head;
    if (kind < 0 || kind > PUMICE_IMAGE_MATRIX || bytes < LINE + kinds[kind].record) return NULL;
    memcpy(&head, image, sizeof head);
    const struct level *level = pumice_level_of(head.level);
    return head.kind == kind && head.bytes == bytes && level ? kinds[kind].map(image, level, bytes) : NULL;
}

void pumice_image_unmap(void *packed) { free(packed); }

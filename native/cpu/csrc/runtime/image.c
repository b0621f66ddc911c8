/* A packed convolution as bytes that can be mapped back: the record itself, then what it points to. Bound to the build
 * and the level that packed it. */
#include <stdlib.h>
#include <string.h>

#include "base/numbers.h"
#include "conv/conv_u8.h"
#include "runtime/api.h"

enum { LINE = 64 };

struct parts {
    int64_t offset, bias, weights, end; /* where each begins */
    int64_t offsets, biases, bytes;     /* their sizes, in bytes */
};

static struct parts parts_of(const struct pumice_conv_u8 *conv) {
    const int64_t filters = conv->depthwise ? conv->depthwise_form.channels : conv->form.filters;
    const int64_t panels = conv->depthwise ? conv->panels : conv->shape.groups * conv->panels;
    struct parts p = {.offset = round_up(sizeof *conv, LINE)};
    p.offsets = conv->segments * conv->parts * (int64_t)sizeof *conv->offset;
    p.biases = panels * filters * (int64_t)sizeof *conv->bias;
    p.bytes = panels * (conv->depthwise ? conv_u8_depthwise_bytes(conv) : conv->packed_segments * conv->packed_depth * filters);
    p.bias = round_up(p.offset + p.offsets, LINE);
    p.weights = round_up(p.bias + p.biases, LINE);
    p.end = round_up(p.weights + p.bytes, LINE);
    return p;
}

int64_t pumice_conv_u8_image_bytes(const struct pumice_conv_u8 *conv) { return parts_of(conv).end; }

void pumice_conv_u8_write_image(const struct pumice_conv_u8 *conv, void *image) {
    const struct parts p = parts_of(conv);
    char *to = image;
    struct pumice_conv_u8 record = *conv;
    record.level = NULL, record.depthwise_form.order = NULL, record.offset = NULL, record.weights = NULL, record.bias = NULL;
    memset(to, 0, (size_t)p.end);
    memcpy(to, &record, sizeof record);
    memcpy(to + p.offset, conv->offset, (size_t)p.offsets);
    memcpy(to + p.bias, conv->bias, (size_t)p.biases);
    memcpy(to + p.weights, conv->weights, (size_t)p.bytes);
}

struct pumice_conv_u8 *pumice_conv_u8_map_image(const void *image, int64_t bytes) {
    struct pumice_conv_u8 *conv = bytes < (int64_t)sizeof *conv ? NULL : malloc(sizeof *conv);
    if (!conv) return NULL;
    memcpy(conv, image, sizeof *conv);
    conv->level = pumice_level();
    if (conv->depthwise) conv->depthwise_form = conv->level->table.conv_u8_depthwise_form();
    const struct parts p = parts_of(conv);
    if (p.end != bytes) {
        free(conv);
        return NULL;
    }
    conv->offset = (int64_t *)((char *)image + p.offset);
    conv->bias = (int32_t *)((char *)image + p.bias);
    conv->weights = (int8_t *)((char *)image + p.weights);
    return conv;
}

void pumice_conv_u8_unmap(struct pumice_conv_u8 *conv) { free(conv); }

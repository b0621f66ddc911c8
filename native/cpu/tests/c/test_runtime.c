/* Programs: the steps that have kernels of their own at every level, in memory that ends where the operands do; order,
 * failures, several callers of one program, weights mapped from bytes, and many programs made and freed. */
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "check.h"
#include "runtime/api.h"

static const int counts[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 130, 1025, 70001};
enum { COUNTS = sizeof counts / sizeof *counts };

static uint8_t *bytes(int count) {
    uint8_t *memory = room((size_t)count);
    for (int i = 0; i < count; i++) memory[i] = (uint8_t)draw();
    return memory;
}

/* A program of one step over places 0 to count - 1, run at once. */
static int run_one(const char *kind, const void *arguments, void *const *places, int count, int threads) {
    const int32_t numbers[] = {0, 1, 2, 3, 4};
    struct pumice_program *program = pumice_program_create(1);
    int status = pumice_program_add(program, pumice_step_kind(kind), numbers, count, arguments);
    if (status == PUMICE_OK) status = pumice_program_run(program, places, 0, 1, threads, NULL);
    pumice_program_free(program);
    return status;
}

static int level_of(const uint8_t *x, int i, int is_signed) { return is_signed ? (int8_t)x[i] : x[i]; }

static void test_add(const char *level, int count, int is_signed) {
    uint8_t *a = bytes(count), *b = bytes(count), *y = bytes(count);
    const struct pumice_add_u8_step add = {count, {is_signed, 0.625f, 0.4375f, is_signed ? -3.5f : 2.5f}};
    void *places[] = {y, a, b};
    CHECK(run_one("add_u8", &add, places, 3, 2) == PUMICE_OK, "%s", level);
    for (int i = 0; i < count; i++) {
        const float sum = fmaf((float)level_of(a, i, is_signed), add.sum.by_a, fmaf((float)level_of(b, i, is_signed), add.sum.by_b, add.sum.offset));
        const float low = is_signed ? -128 : 0, bounded = fminf(fmaxf(sum, low), low + 255);
        CHECK(level_of(y, i, is_signed) == (int)rintf(bounded), "%s: sum %d of %d", level, i, count);
    }
    void *in_place[] = {a, a, b};
    run_one("add_u8", &add, in_place, 3, 1);
    CHECK(memcmp(a, y, (size_t)count) == 0, "%s: in place, %d", level, count);
    free(a), free(b), free(y);
}

static void test_image(const char *level, int positions, int channels) {
    const struct pumice_quantize_image_step image = {2, channels, positions, 0.03125f, 100, 0};
    const int count = 2 * channels * positions;
    float *x = room((size_t)count * sizeof *x);
    for (int i = 0; i < count; i++) x[i] = draw_float() * 4;
    uint8_t *y = bytes(count);
    void *places[] = {y, x};
    CHECK(run_one("quantize_image", &image, places, 2, 2) == PUMICE_OK, "%s", level);
    for (int i = 0; i < count; i++) {
        const int n = i / (channels * positions), p = i / channels % positions, c = i % channels;
        const float at = x[(n * channels + c) * positions + p];
        CHECK(y[i] == (int)fminf(fmaxf(rintf(at / image.scale) + 100, 0), 255), "%s: %d of %d", level, i, count);
    }
    free(x), free(y);
}

static void test_rows(const char *level, int columns) {
    const struct pumice_quantize_rows_step rows = {3, columns};
    float *x = room((size_t)(3 * columns) * sizeof *x), scale[3];
    for (int i = 0; i < 3 * columns; i++) x[i] = draw_float();
    uint8_t *y = bytes(3 * columns);
    void *places[] = {y, x, scale};
    CHECK(run_one("quantize_rows", &rows, places, 3, 2) == PUMICE_OK, "%s", level);
    for (int i = 0; i < 3 * columns; i++)
        CHECK(fabsf((float)(y[i] - 128) * scale[i / columns] - x[i]) <= 0.51f * scale[i / columns], "%s: %d", level, i);
    free(x), free(y);
}

static void test_failures(void) {
    const float table[] = {1, 2, 3};
    const int64_t good[] = {-1, 0}, bad[] = {0, 3};
    float y[2] = {0};
    const struct pumice_gather_step gather = {1, 3, sizeof(float), 2, 1};
    void *places[] = {y, (void *)table, (void *)good};
    CHECK(run_one("gather", &gather, places, 3, 1) == PUMICE_OK && y[0] == 3 && y[1] == 1, "negative indices");
    places[2] = (void *)bad;
    CHECK(run_one("gather", &gather, places, 3, 1) == PUMICE_BAD_ARGUMENT, "an index out of range");
    CHECK(pumice_step_kind("no such step") == -1, "an unknown step");
    struct pumice_program *program = pumice_program_create(1);
    const int32_t numbers[] = {0, 1, 2};
    CHECK(pumice_program_add(program, -1, numbers, 1, &gather) == PUMICE_BAD_ARGUMENT, "no kind");
    CHECK(pumice_program_add(program, pumice_step_kind("gather"), numbers, 3, &gather) == PUMICE_OK, "room for one");
    CHECK(pumice_program_add(program, pumice_step_kind("gather"), numbers, 3, &gather) == PUMICE_BAD_ARGUMENT, "and no more");
    CHECK(pumice_program_run(program, places, 0, 2, 1, NULL) == PUMICE_BAD_ARGUMENT, "a step that is not there");
    pumice_program_free(program);
    pumice_program_free(NULL);
}

/* --- callers -------------------------------------------------------------------------------------------------------- */

enum { WIDTH = 5000, CALLERS = 4, CALLS = 50 };
static struct pumice_program *shared;

static void *call(void *argument) {
    const float own = (float)(intptr_t)argument;
    float *x = room(WIDTH * sizeof *x), *y = room(WIDTH * sizeof *y);
    void *places[] = {x, y};
    for (int i = 0; i < CALLS; i++) {
        for (int n = 0; n < WIDTH; n++) x[n] = own;
        CHECK(pumice_program_run(shared, places, 0, 2, 2, NULL) == PUMICE_OK, "a caller");
        CHECK(y[0] == own * 4 + 3 && y[WIDTH - 1] == own * 4 + 3, "%g", y[0]);
    }
    free(x), free(y);
    return NULL;
}

/* y = 2 x + 1, then y = 2 y + 1 in place. */
static void test_callers(void) {
    const struct pumice_map_step map = {PUMICE_F_AFFINE, WIDTH, {2, 1, 0}};
    const int32_t first[] = {1, 0}, second[] = {1, 1};
    shared = pumice_program_create(2);
    pumice_program_add(shared, pumice_step_kind("map"), first, 2, &map);
    pumice_program_add(shared, pumice_step_kind("map"), second, 2, &map);
    pthread_t callers[CALLERS];
    for (intptr_t i = 0; i < CALLERS; i++) pthread_create(&callers[i], NULL, call, (void *)i);
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    pumice_program_free(shared);
}

/* --- weights in memory of their own ---------------------------------------------------------------------------------- */

enum { CHANNELS = 5, FILTERS = 7, SIDE = 6, PIXELS = SIDE * SIDE, CYCLES = 10000 };
static const struct pumice_conv_shape SHAPE = {
    .channels = CHANNELS, .filters = FILTERS, .groups = 1, .size = {1, SIDE, SIDE}, .kernel = {1, 3, 3},
    .stride = {1, 1, 1}, .dilation = {1, 1, 1}, .before = {0, 1, 1}, .output = {1, SIDE, SIDE}};

/* The image of packed weights, which are freed. */
static void *taken(int kind, void *packed, void (*release)(void *), int64_t *count) {
    *count = pumice_image_bytes(kind, packed);
    void *image = NULL;
    if (posix_memalign(&image, 64, (size_t)*count)) exit(2);
    pumice_image_write(kind, packed, image);
    release(packed);
    return image;
}

static void free_nhwc(void *packed) { pumice_nhwc_free(packed); }
static void free_matrix(void *packed) { pumice_packed_free(packed); }

/* Maps an image in a program of one step, whose arguments hold the weights at their beginning. */
static void run_image(const char *level, int kind, const char *step, void *image, int64_t count, void *arguments,
                      const float *x, const float *want, int results) {
    float *y = room((size_t)results * sizeof *y);
    void *weights = pumice_image_map(kind, image, count), *places[] = {y, (void *)x, NULL};
    CHECK(weights, "%s: %s", level, step);
    memcpy(arguments, &weights, sizeof weights);
    CHECK(run_one(step, arguments, places, 2, 1) == PUMICE_OK, "%s: %s", level, step);
    CHECK(!memcmp(y, want, (size_t)results * sizeof *y), "%s: %s", level, step);
    pumice_image_unmap(weights);
    CHECK(!pumice_image_map(kind, image, count - 64) && !pumice_image_map(kind + 1, image, count), "%s", level);
    free(y);
}

static void test_images(const char *level) {
    float x[CHANNELS * PIXELS], w[FILTERS * CHANNELS * 9], y[FILTERS * PIXELS];
    for (int i = 0; i < CHANNELS * PIXELS; i++) x[i] = draw_float();
    for (int i = 0; i < FILTERS * CHANNELS * 9; i++) w[i] = draw_float();
    const int64_t steps[] = {CHANNELS * 9, 9, 1};
    struct pumice_nhwc_step nhwc = {.batch = 1, .x_steps = {0, 1, SIDE * CHANNELS, CHANNELS},
                                    .epilogue = {.function = -1, .low = -1, .high = 1}};
    struct pumice_nhwc *conv = pumice_nhwc_create(&SHAPE, w, steps, NULL, 1);
    CHECK(pumice_nhwc_run(conv, 1, x, nhwc.x_steps, NULL, y, &nhwc.epilogue, 1) == PUMICE_OK, "%s", level);
    int64_t count;
    void *image = taken(PUMICE_IMAGE_NHWC, conv, free_nhwc, &count);
    run_image(level, PUMICE_IMAGE_NHWC, "nhwc", image, count, &nhwc, x, y, FILTERS * PIXELS);
    free(image);

    const struct pumice_matrix b = {w, PUMICE_F32, CHANNELS, FILTERS, FILTERS, 1};
    struct pumice_gemm_step gemm = {.a = {x, PUMICE_F32, PIXELS, CHANNELS, CHANNELS, 1},
                                    .epilogue = {.output = PUMICE_F32}, .y_stride = FILTERS};
    struct pumice_packed *matrix;
    CHECK(pumice_pack(&matrix, PUMICE_FLOAT, &b, 1) == PUMICE_OK, "%s", level);
    CHECK(pumice_gemm(matrix, &gemm.a, 0, NULL, &gemm.epilogue, y, FILTERS, 1) == PUMICE_OK, "%s", level);
    image = taken(PUMICE_IMAGE_MATRIX, matrix, free_matrix, &count);
    run_image(level, PUMICE_IMAGE_MATRIX, "gemm", image, count, &gemm, x, y, FILTERS * PIXELS);
    free(image);
}

/* Whatever is made is freed: a leak of a byte a cycle is one that the sanitizer tells. */
static void test_cycles(void) {
    float x[CHANNELS * PIXELS] = {1}, w[FILTERS * CHANNELS * 9] = {1}, y[FILTERS * PIXELS];
    const int64_t steps[] = {CHANNELS * 9, 9, 1};
    void *places[] = {y, x, NULL};
    for (int i = 0; i < CYCLES; i++) {
        struct pumice_nhwc_step nhwc = {.batch = 1, .x_steps = {0, 1, SIDE * CHANNELS, CHANNELS},
                                        .epilogue = {.function = -1, .low = -1, .high = 1}};
        struct pumice_nhwc *conv = pumice_nhwc_create(&SHAPE, w, steps, NULL, 1);
        nhwc.conv = conv;
        CHECK(run_one("nhwc", &nhwc, places, 2, 1) == PUMICE_OK, "cycle %d", i);
        pumice_nhwc_free(conv);
    }
}

int main(void) {
    EVERY_LEVEL(level) {
        for (int i = 0; i < COUNTS; i++) test_add(level, counts[i], i % 2);
        for (int i = 0; i < COUNTS - 1; i++)
            for (int channels = 1; channels < 6; channels++) test_image(level, counts[i], channels);
        for (int i = 0; i < COUNTS - 1; i++) test_rows(level, counts[i]);
        test_images(level);
    }
    pumice_use_level("");
    test_failures();
    test_callers();
    test_cycles();
    return summary("runtime");
}

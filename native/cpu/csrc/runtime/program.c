/* The program itself: steps in the order they run. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/steps.h"

enum { MOST_OPERANDS = 7 };

struct kind {
    const char *name;
    step_function run;
    size_t bytes; /* of its arguments */
};

#define STEP(name) {#name, step_##name, sizeof(struct pumice_##name##_step)},
static const struct kind kinds[] = {
#include "runtime/steps.def"
};
#undef STEP
enum { KINDS = sizeof kinds / sizeof *kinds };

struct step {
    const struct kind *kind;
    void *arguments;
    int32_t places[MOST_OPERANDS];
    int threads; /* at most, or 0 */
};

struct pumice_program {
    int64_t count, room;
    struct step steps[];
};

int pumice_step_kind(const char *name) {
    for (int i = 0; i < KINDS; i++)
        if (strcmp(kinds[i].name, name) == 0) return i;
    return -1;
}

struct pumice_program *pumice_program_create(int64_t steps) {
    if (steps < 0) return NULL;
    struct pumice_program *program = calloc(1, sizeof *program + (size_t)steps * sizeof *program->steps);
    if (program) program->room = steps;
    return program;
}

void pumice_program_free(struct pumice_program *program) {
    if (!program) return;
    for (int64_t i = 0; i < program->count; i++) free(program->steps[i].arguments);
    free(program);
}

int pumice_program_add(struct pumice_program *program, int kind, const int32_t *places, int count, const void *arguments) {
    if (kind < 0 || kind >= KINDS || count < 1 || count > MOST_OPERANDS || program->count == program->room) return PUMICE_BAD_ARGUMENT;
    struct step *step = &program->steps[program->count];
    step->kind = &kinds[kind];
    step->arguments = malloc(step->kind->bytes);
    if (!step->arguments) return PUMICE_NO_MEMORY;
    memcpy(step->arguments, arguments, step->kind->bytes);
    for (int i = 0; i < MOST_OPERANDS; i++) step->places[i] = i < count ? places[i] : -1;
    program->count++;
    return PUMICE_OK;
}

void pumice_program_limit(struct pumice_program *program, int64_t step, int threads) {
    if (step >= 0 && step < program->count) program->steps[step].threads = threads;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static int run_step(const struct step *step, void *const *places, int threads) {
    void *operands[MOST_OPERANDS];
    for (int i = 0; i < MOST_OPERANDS; i++) operands[i] = step->places[i] < 0 ? NULL : places[step->places[i]];
    return step->kind->run(step->arguments, operands, step->threads ? step->threads : threads);
}

int pumice_program_run(const struct pumice_program *program, void *const *places, int64_t first, int64_t last, int threads,
                       int64_t *nanoseconds) {
    if (first < 0 || last > program->count) return PUMICE_BAD_ARGUMENT;
    int status = PUMICE_OK;
    for (int64_t i = first; i < last && status == PUMICE_OK; i++) {
        const int64_t began = nanoseconds ? now() : 0;
        status = run_step(&program->steps[i], places, threads);
        if (nanoseconds) nanoseconds[i] = now() - began;
    }
    return status;
}

/* What the functions of steps share. */
#ifndef PUMICE_RUNTIME_STEPS_H
#define PUMICE_RUNTIME_STEPS_H

#include "base/api.h"
#include "runtime/api.h"

/* `operands` in the order that api.h names them; NULL for an absent one. */
typedef int (*step_function)(const void *arguments, void *const *operands, int threads);

#define STEP(name) int step_##name(const void *arguments, void *const *operands, int threads);
#include "runtime/steps.def"
#undef STEP

/* Opens the definition of a step's function, with its arguments as `a`. */
#define STEP_FUNCTION(name, type)                                                             \
    static int run_##name(const struct type *a, void *const *operands, int threads);          \
    int step_##name(const void *arguments, void *const *operands, int threads) {              \
        return run_##name(arguments, operands, threads);                                      \
    }                                                                                         \
    static int run_##name(const struct type *a, void *const *operands, int threads)

#endif

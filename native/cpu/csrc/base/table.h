/* The kernel table: one function pointer a slot, declared once in a family's `kernels.def`, and one table a level.
 *
 * The table of a level starts as the table of its parent and is overridden by that level's files; `scalar` has every
 * slot. `kernels.def` holds lines
 *
 *     KERNEL(name, result, (parameters))
 *
 * and the file `<unit>_<level>.c` fills slots in
 *
 *     OVERRIDES(unit, level) { table->name = my_kernel; }
 */
#ifndef PUMICE_BASE_TABLE_H
#define PUMICE_BASE_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/api.h" /* statuses */
#include "types.inc"

struct kernel_table {
#define KERNEL(name, result, parameters) result(*name) parameters;
#include "slots.inc"
#undef KERNEL
};

enum kernel_slot {
#define KERNEL(name, result, parameters) SLOT_##name,
#include "slots.inc"
#undef KERNEL
    SLOT_COUNT
};

/* A level ready to run. `gives[slot]` is the number of the level whose file supplied the slot. */
struct level {
    const char *name;
    int parent;
    int usable;
    struct kernel_table table;
    unsigned char gives[SLOT_COUNT + 1];
};

#define OVERRIDES(unit, level) void pumice_##unit##_##level(struct kernel_table *table)

/* The level in force. Packed weights keep the one that packed them. */
const struct level *pumice_level(void);

/* A level by its number, NULL if the machine has it not; and back. */
const struct level *pumice_level_of(int number);
int pumice_level_number(const struct level *level);

void pumice_note_run(const struct level *level, int slot);

/* Call a kernel of a level and remember which level's code ran, for tests: RUN(level, gemm_f32)(...). Once a layer, not
 * once a row. */
#define RUN(level, name) (pumice_note_run(level, SLOT_##name), (level)->table.name)

#endif

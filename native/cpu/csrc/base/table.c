/* Builds one kernel table a level and picks the one in force: the best that the machine has, or the one asked for. */
#include "base/table.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/api.h"
#include "base/cpu.h"

#define OVERRIDE(unit, level) void pumice_##unit##_##level(struct kernel_table *table);
#include "overrides.inc"
#undef OVERRIDE

enum {
#define LEVEL(name, parent) LEVEL_##name,
#include "levels.inc"
#undef LEVEL
    LEVEL_COUNT
};

static struct level levels[LEVEL_COUNT] = {
#define LEVEL(level_name, level_parent) {.name = #level_name, .parent = LEVEL_##level_parent},
#include "levels.inc"
#undef LEVEL
};

static const char *const slot_names[] = {
#define KERNEL(name, result, parameters) #name,
#include "slots.inc"
#undef KERNEL
    ""};

static _Atomic(const struct level *) in_force;
static _Atomic unsigned char ran[SLOT_COUNT + 1]; /* 1 + number of the level that ran last */
static pthread_once_t built = PTHREAD_ONCE_INIT;

static void fill(int number) {
    struct kernel_table *table = &levels[number].table;
    (void)table;
#define OVERRIDE(unit, level) \
    if (number == LEVEL_##level) pumice_##unit##_##level(table);
#include "overrides.inc"
#undef OVERRIDE
}

static void note_givers(int number) {
    typedef void (*any)(void);
    const any *now = (const any *)(const void *)&levels[number].table;
    const any *before = (const any *)(const void *)&levels[levels[number].parent].table;
    for (int slot = 0; slot < SLOT_COUNT; slot++)
        levels[number].gives[slot] =
            (unsigned char)(number == 0 || now[slot] != before[slot] ? number
                                                                     : levels[levels[number].parent].gives[slot]);
}

static void build(void) {
    int best = 0;
    for (int number = 0; number < LEVEL_COUNT; number++) {
        struct level *level = &levels[number];
        struct kernel_table before = levels[level->parent].table;
        level->table = before;
        fill(number);
        /* `before` is the parent's table: scalar is its own parent and starts empty */
        if (number == 0)
            memset(level->gives, 0, sizeof level->gives);
        else
            note_givers(number);
        level->usable = (number == 0 || levels[level->parent].usable) && pumice_cpu_has(level->name);
        if (level->usable) best = number;
    }
    atomic_store(&in_force, &levels[best]);
}

const struct level *pumice_level(void) {
    const struct level *level = atomic_load_explicit(&in_force, memory_order_acquire);
    if (level) return level;
    pthread_once(&built, build);
    return atomic_load(&in_force);
}

const struct level *pumice_level_of(int number) { return pumice_level_usable(number) ? &levels[number] : NULL; }

int pumice_level_number(const struct level *level) { return (int)(level - levels); }

void pumice_note_run(const struct level *level, int slot) {
    unsigned char giver = (unsigned char)(1 + level->gives[slot]);
    if (atomic_load_explicit(&ran[slot], memory_order_relaxed) != giver)
        atomic_store_explicit(&ran[slot], giver, memory_order_relaxed);
}

/* --- public ------------------------------------------------------------------------------------------------------- */

int pumice_level_count(void) { return LEVEL_COUNT; }

const char *pumice_level_name(int number) { return number >= 0 && number < LEVEL_COUNT ? levels[number].name : NULL; }

int pumice_level_usable(int number) {
    pumice_level();
    return number >= 0 && number < LEVEL_COUNT && levels[number].usable;
}

int pumice_level_parent(int number) { return number >= 0 && number < LEVEL_COUNT ? levels[number].parent : 0; }

const char *pumice_level_in_force(void) { return pumice_level()->name; }

int pumice_use_level(const char *name) {
    pumice_level();
    for (int number = LEVEL_COUNT - 1; number >= 0; number--)
        if ((!*name && levels[number].usable) || !strcmp(name, levels[number].name)) {
            if (!levels[number].usable) return PUMICE_NOT_ON_THIS_CPU;
            atomic_store(&in_force, &levels[number]);
            return PUMICE_OK;
        }
    return PUMICE_UNKNOWN_LEVEL;
}

int pumice_slot_count(void) { return SLOT_COUNT; }

const char *pumice_slot_name(int slot) { return slot >= 0 && slot < SLOT_COUNT ? slot_names[slot] : NULL; }

const char *pumice_slot_level(int slot) {
    return slot >= 0 && slot < SLOT_COUNT ? levels[pumice_level()->gives[slot]].name : NULL;
}

const char *pumice_slot_ran(int slot) {
    int giver = slot >= 0 && slot < SLOT_COUNT ? atomic_load(&ran[slot]) : 0;
    return giver ? levels[giver - 1].name : NULL;
}

void pumice_forget_runs(void) {
    for (int slot = 0; slot < SLOT_COUNT; slot++) atomic_store(&ran[slot], 0);
}

/* Levels, memory and statuses, as Python sees them. */
#ifndef PUMICE_BASE_API_H
#define PUMICE_BASE_API_H

#include <stddef.h>
#include <stdint.h>

/* What every function that can fail returns. */
enum pumice_status {
    PUMICE_OK = 0,
    PUMICE_NO_MEMORY = 1,
    PUMICE_BAD_ARGUMENT = 2,
    PUMICE_UNKNOWN_LEVEL = 3,
    PUMICE_NOT_ON_THIS_CPU = 4,
};

/* Instruction-set levels, built into this library; a level of a higher number extends one of a lower number. */
int pumice_level_count(void);
const char *pumice_level_name(int number);
int pumice_level_usable(int number);
/* The level that it extends; `scalar`, number 0, names itself. */
int pumice_level_parent(int number);
const char *pumice_level_in_force(void);
/* "" is the best usable one. Not while another thread computes. */
int pumice_use_level(const char *name);

/* Kernels: which level gives a slot in the level in force, and which level's code ran last (NULL: none since
 * pumice_forget_runs). */
int pumice_slot_count(void);
const char *pumice_slot_name(int slot);
const char *pumice_slot_level(int slot);
const char *pumice_slot_ran(int slot);
void pumice_forget_runs(void);

/* 64-byte aligned memory (2 MiB and huge pages from 1 MiB on), at least 64 bytes; NULL where there is none. */
void *pumice_alloc(size_t bytes);
void pumice_free(void *memory);

#endif

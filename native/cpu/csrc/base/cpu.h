#ifndef PUMICE_BASE_CPU_H
#define PUMICE_BASE_CPU_H

/* Whether the processor and the operating system offer what a level adds to its parent. */
int pumice_cpu_has(const char *level);

#endif

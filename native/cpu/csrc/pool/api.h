/* How many threads calls use that do not say. */
#ifndef PUMICE_POOL_API_H
#define PUMICE_POOL_API_H

/* At first: the cores this process may run on. */
int pumice_threads(void);
/* Below 1: back to the cores this process may run on. */
void pumice_set_threads(int threads);
/* The same for calls from this thread; below 1: as other threads. Returns what it was. */
int pumice_limit_threads(int threads);

#endif

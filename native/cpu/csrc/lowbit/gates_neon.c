/* Sums of gates, with NEON. */
#include "lowbit/gates.h"

OVERRIDES(gates, neon) { table->lowbit_gates = gates; }

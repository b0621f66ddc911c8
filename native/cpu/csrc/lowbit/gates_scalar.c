/* Sums of gates, one after the other: the truth that the other levels are compared with. */
#include "lowbit/gates.h"

OVERRIDES(gates, scalar) { table->lowbit_gates = gates; }

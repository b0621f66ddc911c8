/* Sums of gates, with AVX2. */
#include "lowbit/gates.h"

OVERRIDES(gates, avx2) { table->lowbit_gates = gates; }

/* Sums of gates, with AVX-512. */
#include "lowbit/gates.h"

OVERRIDES(gates, avx512) { table->lowbit_gates = gates; }

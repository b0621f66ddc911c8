#include "base/table.h"
#include "peak/registers.h"

REGISTERS(floats, "vfmadd231ps", "z", 32)
REGISTERS(pairs, "vpmaddwd", "z", 64)
OVERRIDES(peak, avx512) {
    table->peak_float = floats;
    table->peak_bfloat = floats;
    table->peak_integer = pairs;
}

#include "base/table.h"
#include "peak/registers.h"

REGISTERS(floats, "vfmadd231ps", "y", 16)
REGISTERS(pairs, "vpmaddwd", "y", 32)
OVERRIDES(peak, avx2) {
    table->peak_float = floats;
    table->peak_bfloat = floats;
    table->peak_integer = pairs;
}

#include "base/table.h"
#include "peak/registers.h"

REGISTERS(quads, "vpdpbusd", "z", 128)
OVERRIDES(peak, avx512_vnni) {
    table->peak_integer = quads;
}

#include "base/table.h"
#include "peak/registers.h"

REGISTERS(quads, "%{vex%} vpdpbusd", "y", 64)
OVERRIDES(peak, avx_vnni) {
    table->peak_integer = quads;
}

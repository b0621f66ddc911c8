#include "base/table.h"
#include "peak/registers.h"

REGISTERS(pairs, "vdpbf16ps", "z", 64)
OVERRIDES(peak, avx512_bf16) {
    table->peak_bfloat = pairs;
}

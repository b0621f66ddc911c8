/* What the processor and the operating system offer.
 *
 * x86: a feature counts only if CPUID reports it *and* the system saves the registers it needs (XCR0); AMX needs the
 * kernel's permission for its 8 KiB of tile data besides (arch_prctl). AArch64: the kernel's HWCAP words. */
#include "base/cpu.h"

#include <stdint.h>
#include <string.h>

typedef int (*predicate)(void);
struct feature {
    const char *level;
    predicate has;
};

static int always(void) { return 1; }

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { XCR0_AVX = 0x6, XCR0_AVX512 = 0xe6, XCR0_AMX = 0x60000 };

static uint64_t saved_registers(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* OSXSAVE */
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int saves(uint64_t mask) { return (saved_registers() & mask) == mask; }

/* Register `r` (0 eax .. 3 edx) of a CPUID leaf; 0 where the processor has no such leaf. */
static unsigned cpuid(unsigned leaf, unsigned subleaf, int r) {
    unsigned words[4] = {0, 0, 0, 0};
    if (!__get_cpuid_count(leaf, subleaf, &words[0], &words[1], &words[2], &words[3])) return 0;
    return words[r];
}

static int all(unsigned word, unsigned bits) { return (word & bits) == bits; }

static int avx2(void) {
    return saves(XCR0_AVX) && all(cpuid(1, 0, 2), 1u << 12 | 1u << 28 | 1u << 29) /* FMA, AVX, F16C */
           && all(cpuid(7, 0, 1), 1u << 5);
}
static int avx_vnni(void) { return all(cpuid(7, 1, 0), 1u << 4); }
static int avx512(void) { /* F, DQ, BW, VL and VBMI: Ice Lake, Zen 4 and later */
    return saves(XCR0_AVX512) && all(cpuid(7, 0, 1), 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) &&
           all(cpuid(7, 0, 2), 1u << 1);
}
static int avx512_vnni(void) { return all(cpuid(7, 0, 2), 1u << 11); }
static int avx512_bf16(void) { return all(cpuid(7, 1, 0), 1u << 5); }
static int amx(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    if (!saves(XCR0_AMX) || !all(cpuid(7, 0, 3), 1u << 22 | 1u << 24 | 1u << 25)) return 0; /* BF16, TILE, INT8 */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static const struct feature features[] = {{"avx2", avx2},
                                          {"avx_vnni", avx_vnni},
                                          {"avx512", avx512},
                                          {"avx512_vnni", avx512_vnni},
                                          {"avx512_bf16", avx512_bf16},
                                          {"amx", amx},
                                          {"scalar", always}};

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static int dotprod(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; } /* ASIMDDP */
static int i8mm(void) { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }   /* I8MM */

static const struct feature features[] = {
    {"neon", always}, {"neon_dotprod", dotprod}, {"i8mm", i8mm}, {"scalar", always}};

#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

static int reports(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, 0, 0) == 0 && value;
}
static int dotprod(void) { return reports("hw.optional.arm.FEAT_DotProd"); }
static int i8mm(void) { return reports("hw.optional.arm.FEAT_I8MM"); }

static const struct feature features[] = {
    {"neon", always}, {"neon_dotprod", dotprod}, {"i8mm", i8mm}, {"scalar", always}};

#else
static const struct feature features[] = {{"scalar", always}};
#endif

int pumice_cpu_has(const char *level) {
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if (!strcmp(features[i].level, level)) return features[i].has();
    return 0;
}

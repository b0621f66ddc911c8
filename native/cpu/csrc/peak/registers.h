/* REGISTERS(name, instruction, register letter, operations): twelve independent chains of one x86 instruction. */
#ifndef PUMICE_PEAK_REGISTERS_H
#define PUMICE_PEAK_REGISTERS_H

#define CHAIN(instruction, r, n) instruction " %%" r "mm15, %%" r "mm15, %%" r "mm" #n "\n\t"
#define REGISTERS(name, instruction, r, operations)                                                                   \
    static int64_t name(int64_t repeats) {                                                                            \
        __asm__ volatile("vpxor %%xmm15, %%xmm15, %%xmm15" ::: "xmm15");                                              \
        for (int64_t i = 0; i < repeats; i++)                                                                         \
            __asm__ volatile(CHAIN(instruction, r, 0) CHAIN(instruction, r, 1) CHAIN(instruction, r, 2)               \
                                 CHAIN(instruction, r, 3) CHAIN(instruction, r, 4) CHAIN(instruction, r, 5)           \
                                     CHAIN(instruction, r, 6) CHAIN(instruction, r, 7) CHAIN(instruction, r, 8)       \
                                         CHAIN(instruction, r, 9) CHAIN(instruction, r, 10)                           \
                                             CHAIN(instruction, r, 11)::                                              \
                                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",    \
                                   "xmm10", "xmm11");                                                                 \
        return 12 * (operations);                                                                                     \
    }

#endif

// What Hopper (sm_90a) adds, one instruction a function: barriers in shared memory that count bytes (mbarrier), the copy
// engine (TMA) and the matrix instructions of a warpgroup of 128 threads (wgmma).
#pragma once

#include "clusters.cuh"
#include "operands.cuh"

typedef unsigned long long u64;

// --- threads and registers -------------------------------------------------------------------------------------------

// Among some of the block's threads, by one of its 16 barriers; __syncthreads has number 0.
template <int THREADS>
__device__ __forceinline__ void sync_threads(int barrier) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
}

template <int REGISTERS>
__device__ __forceinline__ void give_up_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// --- barriers ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

// Makes initialised barriers visible to the copy engine and to the cluster.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Returns once the phase of a parity is complete.
__device__ __forceinline__ void barrier_wait(u64* barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// --- the copy engine --------------------------------------------------------------------------------------------------

struct alignas(64) TensorMap {
    unsigned char opaque[128];
};

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A box of a matrix.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap* map, u64* barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            to),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
        : "memory");
}

// The same of an array of five axes, the fourth from its beginning.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap* map, u64* barrier, int x, int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(0), "r"(w)
        : "memory");
}

// One tap of a window over as many output pixels as the map says, from the pixel whose window begins at (x, y).
__device__ __forceinline__ void copy_pixels(u32 to, const TensorMap* map, u64* barrier, int channel, int x, int y,
                                            int image, unsigned short tap_x, unsigned short tap_y) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(to),
        "l"(map), "r"(shared_address(barrier)), "r"(channel), "r"(x), "r"(y), "r"(image), "h"(tap_x), "h"(tap_y)
        : "memory");
}

// --- matrix instructions of a warpgroup -------------------------------------------------------------------------------

// 32 bytes of K of an operand whose rows are ROW bytes, laid out by the copy engine with the swizzle of so many bytes.
template <int ROW>
__device__ __forceinline__ u64 operand(u32 address) {
    static_assert(ROW == 32 || ROW == 64 || ROW == 128, "no such swizzle");
    constexpr u64 SWIZZLE = ROW == 128 ? 1 : ROW == 64 ? 2 : 3;
    return (u64)((address & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(8 * ROW >> 4) << 32 | SWIZZLE << 62;
}

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define TEN(t)                                                                                                       \
    "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define NAMES_32 TEN() TEN(1) TEN(2) "%30,%31"
#define NAMES_64 TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60,%61,%62,%63"
#define NAMES_128                                                                                                    \
    TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11)                             \
    "%120,%121,%122,%123,%124,%125,%126,%127"
#define SUMS_8(d, i)                                                                                                 \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]),      \
        "+r"(d[i + 7])
#define SUMS_32(d, i) SUMS_8(d, i), SUMS_8(d, i + 8), SUMS_8(d, i + 16), SUMS_8(d, i + 24)
#define SUMS_64(d, i) SUMS_32(d, i), SUMS_32(d, i + 32)
#define SUMS_128(d, i) SUMS_64(d, i), SUMS_64(d, i + 64)
#define WGMMA(shape, types, last, names, sums, a_name, b_name, keep_name)                                            \
    asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, " keep_name ", 0;\n"                                        \
                 "wgmma.mma_async.sync.aligned.m64" shape types " {" names "}, " a_name ", " b_name                  \
                 ", keep" last ";\n}"                                                                                \
                 : sums                                                                                              \
                 : "l"(a), "l"(b), "r"(keep))
#define WGMMA_OF_ALL_WIDTHS(k, types, last)                                                                          \
    if constexpr (WIDTH == 64)                                                                                       \
        WGMMA("n64" k, types, last, NAMES_32, SUMS_32(sums, 0), "%32", "%33", "%34");                                \
    else if constexpr (WIDTH == 128)                                                                                 \
        WGMMA("n128" k, types, last, NAMES_64, SUMS_64(sums, 0), "%64", "%65", "%66");                               \
    else                                                                                                             \
        WGMMA("n256" k, types, last, NAMES_128, SUMS_128(sums, 0), "%128", "%129", "%130");

// sums (64 x WIDTH, as bits of s32 or f32) = a b' + (keep ? sums : 0) over 32 bytes of K. `u8` is the type of A alone.
template <Element ELEMENT, int WIDTH>
__device__ __forceinline__ void wgmma(u32 (&sums)[WIDTH / 2], u64 a, u64 b, int keep) {
    static_assert(WIDTH == 64 || WIDTH == 128 || WIDTH == 256, "no such width");
    if constexpr (ELEMENT == Element::s8) {
        WGMMA_OF_ALL_WIDTHS("k32", ".s32.s8.s8", "")
    } else if constexpr (ELEMENT == Element::u8) {
        WGMMA_OF_ALL_WIDTHS("k32", ".s32.u8.s8", "")
    } else if constexpr (ELEMENT == Element::f16) {
        WGMMA_OF_ALL_WIDTHS("k16", ".f32.f16.f16", ", 1, 1, 0, 0")
    } else if constexpr (ELEMENT == Element::bf16) {
        WGMMA_OF_ALL_WIDTHS("k16", ".f32.bf16.bf16", ", 1, 1, 0, 0")
    } else {
        WGMMA_OF_ALL_WIDTHS("k8", ".f32.tf32.tf32", ", 1, 1")
    }
}

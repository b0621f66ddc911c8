// What kernels for four-bit weights (lowbit.cuh) take from Hopper that hopper.cuh has not.
#pragma once

#include "hopper.cuh"
#include "lowbit.cuh"

// 16 bytes that are read once, as by `streamed`; zeros where there are none.
__device__ __forceinline__ void copy_once(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0), "l"(read_once())
                 : "memory");
}

// The same for more of them, by the copy engine; `barrier` counts the bytes.
__device__ __forceinline__ void copy_once(u32 to, const void *from, u32 bytes, u64 *barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(read_once())
        : "memory");
}

// The blocks of a cluster meet, without waiting for what they wrote.
__device__ __forceinline__ void meet() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
}

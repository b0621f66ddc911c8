// What kernels for four-bit weights (lowbit.cuh) take from Hopper that hopper.cuh has not.
#pragma once

#include "hopper.cuh"
#include "lowbit.cuh"

// Bytes that are read once, as by `streamed`, by the copy engine; `barrier` counts them.
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

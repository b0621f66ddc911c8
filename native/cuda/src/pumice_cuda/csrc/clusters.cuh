// Blocks of a cluster, from Hopper on, and how they read and write each other's shared memory.
#pragma once

typedef unsigned int u32;

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// The address, in the window of the whole cluster, of what lies at `address` in the block of a rank.
__device__ __forceinline__ u32 in_block(u32 address, u32 rank) {
    u32 mapped;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
    return mapped;
}

__device__ __forceinline__ u32 load_from_cluster(u32 address) {
    u32 value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

// 4 or 8 bytes, at the place of `own` in another block.
template <typename T>
__device__ __forceinline__ void write_to_block(const T* own, u32 rank, T value) {
    const u32 address = in_block((u32)__cvta_generic_to_shared(own), rank);
    const u32* words = reinterpret_cast<const u32*>(&value);
    if constexpr (sizeof(T) == 4)
        asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(words[0]) : "memory");
    else
        asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(words[0]), "r"(words[1]) : "memory");
}

// What a block has written until it arrives is seen by those that have waited, which need not be at once.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

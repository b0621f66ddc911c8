// Kernels that overlap, where the launch allows it: the next one may begin before this one has ended.
#pragma once

// Nothing of the kernel before may be read, or overwritten, until it has ended.
__device__ inline void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

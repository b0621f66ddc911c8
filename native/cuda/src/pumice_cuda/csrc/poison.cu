// Fills memory with a byte pattern that no kernel leaves behind, so that a test sees what was not written.
extern "C" __global__ void poison(unsigned *words, long long count, unsigned pattern)
{
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
        words[i] = pattern;
}

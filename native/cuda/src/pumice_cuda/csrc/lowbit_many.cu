// since: sm_80
// Four-bit weights (lowbit.cuh) times many rows of A, and the matrix that they stand for.
#include "lowbit.cuh"

// A as bfloat16 [part][row][padded depth]: what `many_rows` copies.
template <typename T, int kSplit>
__global__ void split_rows(const T *a, unsigned short *parts, int64 rows, int depth, int padded) {
    const int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= rows * padded) return;
    const int k = i % padded;
    const float value = k < depth ? widen(a[i / padded * depth + k]) : 0;
    bfloat16 high, low;
    narrow(value, high);
    parts[i] = high.bits;
    if constexpr (kSplit == 2) {
        narrow(value - widen(high), low);
        parts[rows * padded + i] = low.bits;
    }
}

// A block has 64 rows of A and 64 outputs; eight warps have 32 outputs and one word j of every step each. Rows of A come
// in kStages - 1 steps ahead; they lie 320 bytes apart, so that eight threads that read 16 bytes want different banks.
[[maybe_unused]] constexpr int kRows = 64, kStages = 3, kStride = kStep + 32;

template <int kSplit>
struct FromShared {
    const unsigned short *a;  // [part][row][kStride]

    __device__ Activations<kSplit> operator()(int column, int j) const {
        const int row = column * 8 + threadIdx.x % 32 / 4, k = 32 * j + 8 * (threadIdx.x % 4);
        Activations<kSplit> result;
#pragma unroll
        for (int s = 0; s < kSplit; s++) {
            const uint4 v = *reinterpret_cast<const uint4 *>(a + (s * kRows + row) * kStride + k);
            result.at[s][0] = v.x, result.at[s][1] = v.y, result.at[s][2] = v.z, result.at[s][3] = v.w;
        }
        return result;
    }
};

// Steps of A on their way into shared memory.
template <int kSplit>
struct Stages {
    static constexpr int kStage = kSplit * kRows * kStride;
    unsigned short *at;
    const unsigned short *a;
    int rows, first_row, steps;

    __device__ void fetch(int step) const {
        for (int i = threadIdx.x; step < steps && i < kSplit * kRows * 16; i += 256) {
            const int part = i / (kRows * 16), row = i / 16 % kRows, k = i % 16 * 8;
            const bool there = first_row + row < rows;
            const int64 from = (int64(part) * rows + (there ? first_row + row : 0)) * steps + step;
            copy_16_bytes(at + step % kStages * kStage + (part * kRows + row) * kStride + k, a + from * kStep + k, there);
        }
        commit_copies();
    }

    __device__ FromShared<kSplit> arrived(int step) const {
        wait_for_copies<kStages - 2>();
        __syncthreads();
        return {at + step % kStages * kStage};
    }
};

template <typename T, typename Decoder, int kSplit, int kSpan, bool kOffset>
__global__ void __launch_bounds__(256)
    many_rows(const unsigned short *a, const uint4 *codes, const uint4 *tables, const float *scale, const float *offset,
              const T *bias, T *y, int rows, int outputs, int padded, int steps, int group_steps, int table_output,
              int table_group) {
    extern __shared__ uint4 shared[];
    constexpr int kColumns = kRows / 8;
    const Weights weights{codes, tables, scale, offset, table_output, table_group, padded, steps, group_steps};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, j = warp / 2, first_row = blockIdx.y * kRows;
    const int tiles[2] = {int(blockIdx.x) * 4 + warp % 2 * 2, int(blockIdx.x) * 4 + warp % 2 * 2 + 1};
    const Stages<kSplit> stages{reinterpret_cast<unsigned short *>(shared), a, rows, first_row, steps};
    const auto word = [&](int tile, int half, int step) {
        const int64 from = ((int64(tile) * steps + step) * 2 + half) * 32 + lane;
        return step < steps && tile * kTile < padded ? __ldg(reinterpret_cast<const Word *>(codes + from) + j) : 0;
    };
    Word next[2][2][1];
    const auto advance = [&](int step) {
#pragma unroll
        for (int n = 0; n < 4; n++) next[n / 2][n % 2][0] = word(tiles[n / 2], n % 2, step);
    };
    for (int step = 0; step < kStages - 1; step++) stages.fetch(step);
    advance(0);
    const Decoder decoder(tables, {}, nullptr);
    float sums[2][kColumns][4] = {};
    for (int step = 0; step < steps; step++) {
        const int group = weights.group<kSpan>(step);
        const FromShared<kSplit> activations = stages.arrived(step);
        stages.fetch(step + kStages - 1);
        Word current[2][2][1];
#pragma unroll
        for (int n = 0; n < 4; n++) current[n / 2][n % 2][0] = next[n / 2][n % 2][0];
        advance(step + 1);
#pragma unroll
        for (int n = 0; n < 2; n++)
            if (tiles[n] * kTile < padded)
                add_words<Decoder, kSplit, kSpan, 1, kColumns, kOffset>(
                    weights, decoder, current[n], tiles[n] * kTile + lane / 4, group, j, activations, sums[n]);
    }
    wait_for_copies<0>();
    float *parts = reinterpret_cast<float *>(shared);  // [j][row of A][output], rows 65 apart
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int column = 0; column < kColumns; column++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = column * 8 + lane % 4 * 2 + i % 2, place = (warp % 2 * 2 + n) * kTile + lane / 4 + i / 2 * 8;
                parts[(j * kRows + row) * 65 + place] = sums[n][column][i];
            }
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * 64; i += 256) {
        const int row = i / 64, place = blockIdx.x * 64 + i % 64;
        if (first_row + row >= rows || place >= outputs) continue;
        float sum = bias ? widen(bias[place]) : 0;
#pragma unroll
        for (int word = 0; word < 4; word++) sum += parts[(word * kRows + row) * 65 + i % 64];
        narrow(sum, y[int64(first_row + row) * outputs + place]);
    }
}

// --- the matrix itself -----------------------------------------------------------------------------------------------

// w (outputs, depth) as T, for a product of so many rows of A that it pays to decode once: a thread has the four words of an
// output that lie together. depth must be a multiple of 8.
template <typename T, typename Decoder, int kSpan>
__global__ void __launch_bounds__(256)
    decode(const uint4 *codes, const uint4 *tables, const float *scale, const float *offset, T *w, int outputs, int padded,
           int depth, int steps, int group_steps, int table_output, int table_group) {
    const Weights weights{codes, tables, scale, offset, table_output, table_group, padded, steps, group_steps};
    const Decoder decoder(tables, {}, nullptr);
    const int64 place = int64(blockIdx.x) * 256 + threadIdx.x;
    const int step = place / 64 % steps, output = place / 64 / steps * kTile + place / 4 % 16;
    if (output >= outputs) return;
    const uint4 four = streamed(codes + place);
    const Word words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int k = step * kStep + 32 * j + 8 * (threadIdx.x % 4), group = weights.group<kSpan>(step) + j / kSpan;
        const int64 at = int64(group) * padded + output;
        const float factor = __ldg(scale + at), zero = offset ? __ldg(offset + at) : 0;
        const typename Decoder::Row row(decoder, weights.table(output, group));
        Word pairs[Decoder::kParts][4];
        decoder.template decode<0>(words[j], row, pairs[0]);
        if constexpr (Decoder::kParts == 2) decoder.template decode<1>(words[j], row, pairs[1]);
        float values[8] = {};
#pragma unroll
        for (int c = 0; c < 8; c++) {
#pragma unroll
            for (int part = 0; part < Decoder::kParts; part++)
                values[c] += c % 2 ? high_of(pairs[part][c / 2]) : low_of(pairs[part][c / 2]);
            values[c] = (values[c] - zero) * factor;
        }
        if (k < depth) store<8>(w + int64(output) * depth + k, values);
    }
}

// instances: many_rows<float, Levels, 2, 4, true>; many_rows<float, Tables<2>, 2, 1, true>; split_rows<float, 2>
// instances: decode<bfloat16, Tables<1>, 4>; decode<float, Tables<2>, 1>; decode<float16, Levels, 2>

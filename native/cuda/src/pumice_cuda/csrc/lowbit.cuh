// Y = A W^T + bias with four-bit weights: W(n, k) = (table[code(n, k)] - offset) scale, the table, offset and scale those
// of the output n, or of its group of consecutive k. Tensor cores multiply in bfloat16 and add in float:
//
//   D (16 outputs x 8 rows of A) += W (16 x 16) A^T (16 x 8)       mma.m16n8k16
//
// Weights are never in memory but as codes: threads decode them in registers, each those of its own fragment, which is
// how `pack` arranged them. Operands of float are sums of two bfloat16, a high and a low part, and have a product each.
// Offsets need no decoding: with ones for weights the same product gives the sums over A that they multiply.
//
// Codes: [tile of 16 outputs][step of 128 k][half: outputs 0-7, 8-15][lane = 4 output + t][word j]. A word has the eight
// codes of k = 32 j + 8 t + 0..7 of the step, in the order that the decoder wants. All extents are padded with zeros.
#pragma once

#include "elements.cuh"
#include "overlapping.cuh"

using Word = unsigned;

constexpr int kStep = 128, kTile = 16;

__device__ inline void multiply(float *d, const Word *a, const Word *b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline Word pair(float low, float high) {
    Word packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ inline float low_of(Word packed) { return __uint_as_float(packed << 16); }
__device__ inline float high_of(Word packed) { return __uint_as_float(packed & 0xffff0000); }

__device__ inline void copy_16_bytes(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than kPending groups of copies are under way.
template <int kPending>
__device__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// For what is read once: nothing else shall leave the second cache for it.
__device__ inline unsigned long long read_once() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ inline uint4 streamed(const uint4 *from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from), "l"(read_once()));
    return v;
}

__device__ inline void prefetch_line(const void *from) { asm volatile("prefetch.global.L1 [%0];" ::"l"(from)); }

// --- decoders --------------------------------------------------------------------------------------------------------
// Each gives four pairs of bfloat16 for the eight codes of a word, which lie in order, or (in pairs) those of even k before
// those of odd k. `parts` of a table are its high and its low part.

// Levels code - 8, or code less a whole number of the output. Nibbles p and p + 4 are the codes of pair p: with the upper
// bits of 128.0 over them they are 128 + code.
struct Levels {
    static constexpr int kParts = 1;
    static constexpr int kShared = 0;
    static constexpr bool kInPairs = true;

    struct Asked {};
    struct Row {
        Word shift = 0xc308c308;  // -(128 + 8), twice

        __device__ Row(const Levels &, int64) {}
        __device__ void take_off(float offset) { shift = pair(-136 - offset, -136 - offset); }
    };

    __device__ static Asked ask(const uint4 *) { return {}; }
    __device__ Levels(const uint4 *, Asked, Word *) {}
    __device__ void prefetch(int64) const {}

    template <int kPart>
    __device__ void decode(Word word, const Row &row, Word *pairs) const {
#pragma unroll
        for (int p = 0; p < 4; p++) {
            Word magic;  // (word >> 4 p & 0x000f000f) | 0x43004300, by one instruction
            asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(magic) : "r"(word >> 4 * p), "r"(0x000f000f), "r"(0x43004300));
            asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pairs[p]) : "r"(magic), "r"(0x3f803f80), "r"(row.shift));
        }
    }
};

// A table for each output, or each group of one, in registers: 16 low bytes and 16 high bytes. Codes are in order.
template <int kPartsOf>
struct Tables {
    static constexpr int kParts = kPartsOf;
    static constexpr int kShared = 0;
    static constexpr bool kInPairs = false;
    const uint4 *tables;

    struct Asked {};
    struct Row {
        uint4 bytes[kParts][2];

        __device__ Row(const Tables &from, int64 table) {
#pragma unroll
            for (int i = 0; i < 2 * kParts; i++) bytes[i / 2][i % 2] = __ldg(from.tables + table * 2 * kParts + i);
        }
    };

    __device__ static Asked ask(const uint4 *) { return {}; }
    __device__ Tables(const uint4 *tables, Asked, Word *) : tables(tables) {}
    __device__ void prefetch(int64 table) const { prefetch_line(tables + table * 2 * kParts); }

    __device__ static Word looked_up(uint4 bytes, Word select, Word upper) {
        return __byte_perm(__byte_perm(bytes.x, bytes.y, select), __byte_perm(bytes.z, bytes.w, select), upper);
    }

    template <int kPart>
    __device__ void decode(Word word, const Row &row, Word *pairs) const {
        const Word select = word & 0x77777777, upper = (word >> 1 & 0x44444444) | 0x32103210;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Word low = looked_up(row.bytes[kPart][0], select >> 16 * half, upper >> 16 * half);
            const Word high = looked_up(row.bytes[kPart][1], select >> 16 * half, upper >> 16 * half);
            pairs[2 * half] = __byte_perm(low, high, 0x5140);
            pairs[2 * half + 1] = __byte_perm(low, high, 0x7362);
        }
    }
};

// One table for all: the values of every pair of codes, in shared memory once for every lane, so that no two lanes ever
// want the same bank. Codes are in order.
template <int kPartsOf>
struct Pairs {
    static constexpr int kParts = kPartsOf;
    static constexpr int kShared = kParts * 256 * 32 * sizeof(Word);
    static constexpr bool kInPairs = false;
    unsigned own;  // where this lane's values begin

    // A lane's entry, to be asked for before all that takes long.
    struct Asked {
        Word entry[kParts];
    };
    struct Row {
        __device__ Row(const Pairs &, int64) {}
    };

    __device__ static Asked ask(const uint4 *table) {
        const unsigned char *bytes = reinterpret_cast<const unsigned char *>(table) + threadIdx.x % 16;
        Asked asked;
#pragma unroll
        for (int part = 0; part < kParts; part++) asked.entry[part] = bytes[part * 32] | bytes[part * 32 + 16] << 8;
        return asked;
    }

    __device__ Pairs(const uint4 *, Asked asked, Word *shared) {
#pragma unroll
        for (int part = 0; part < kParts; part++)
            for (int i = threadIdx.x; i < 256 * 8; i += blockDim.x) {  // four lanes each
                const Word first = __shfl_sync(~0u, asked.entry[part], i / 8 % 16);
                const Word word = first | __shfl_sync(~0u, asked.entry[part], i / 128) << 16;
                reinterpret_cast<uint4 *>(shared)[part * 256 * 8 + i] = make_uint4(word, word, word, word);
            }
        own = __cvta_generic_to_shared(shared + threadIdx.x % 32);
        __syncthreads();
    }

    __device__ void prefetch(int64) const {}

    template <int kPart>
    __device__ void decode(Word word, const Row &, Word *pairs) const {
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const unsigned at = own + __byte_perm(word, 0, 0x4440 + p) * 128;
            asm("ld.shared.b32 %0, [%1 + %2];" : "=r"(pairs[p]) : "r"(at), "n"(kPart * 0x8000));
        }
    }
};

// --- the product of a span -------------------------------------------------------------------------------------------

// Eight values of A as bfloat16 pairs, and what that loses as further ones.
template <int kSplit>
struct Activations {
    Word at[kSplit][4];
};

template <int kSplit>
__device__ Activations<kSplit> split(const float *values) {
    Activations<kSplit> result;
#pragma unroll
    for (int p = 0; p < 4; p++) {
        const Word high = pair(values[2 * p], values[2 * p + 1]);
        result.at[0][p] = high;
        if constexpr (kSplit == 2)
            result.at[1][p] = pair(values[2 * p] - low_of(high), values[2 * p + 1] - high_of(high));
    }
    return result;
}

struct Weights {
    const uint4 *codes, *tables;
    const float *scale, *offset;    // [group][output, padded]; offset may be null
    int table_output, table_group;  // tables from one output, or group, to the next
    int outputs, steps, group_steps;  // padded outputs; group_steps: steps to a group where it has whole ones

    // The first group of a step.
    template <int kSpan>
    __device__ int group(int step) const {
        if constexpr (kSpan < 4) return step * (4 / kSpan);
        return group_steps >= steps ? 0 : step / group_steps;
    }

    __device__ int64 table(int output, int group) const { return int64(output) * table_output + group * table_group; }
};

// The values of a word of both outputs of a thread, by [part][output][pair].
template <typename Decoder>
__device__ __forceinline__ void decode_both(const Decoder &decoder, const typename Decoder::Row (&rows)[2],
                                            const Word (&words)[2], Word (&values)[Decoder::kParts][2][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        decoder.template decode<0>(words[half], rows[half], values[0][half]);
        if constexpr (Decoder::kParts == 2) decoder.template decode<1>(words[half], rows[half], values[1][half]);
    }
}

// Adds the product of a decoded word with eight rows of A: of every second 16 k to `even` and of the others to `odd`, so
// that the two need not wait for each other.
template <int kParts, int kSplit>
__device__ __forceinline__ void add_word(const Word (&decoded)[kParts][2][4], const Activations<kSplit> &a, float (&even)[4],
                                         float (&odd)[4]) {
#pragma unroll
    for (int s = 0; s < kSplit; s++)
#pragma unroll
        for (int p = 0; p < 4; p += 2)
#pragma unroll
            for (int part = 0; part < kParts; part++) {
                const Word fragment[4] = {decoded[part][0][p], decoded[part][1][p], decoded[part][0][p + 1],
                                          decoded[part][1][p + 1]};
                multiply(p ? odd : even, fragment, a.at[s] + p);
            }
}

// Adds what A itself sums up to.
template <int kSplit>
__device__ __forceinline__ void add_up(const Activations<kSplit> &a, float (&totals)[4]) {
    const Word ones[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
#pragma unroll
    for (int s = 0; s < kSplit; s++)
#pragma unroll
        for (int p = 0; p < 4; p += 2) multiply(totals, ones, a.at[s] + p);
}

// Adds the product of words j = first .. first + kWords - 1 of a step: kColumns times eight rows of A, whose values
// `activations(column, j)` gives, with a tile's 16 outputs, whose codes are [half][word]; a thread has `output` and the
// eighth after it. A group of scales covers kSpan words of 32 k, or whole steps.
template <typename Decoder, int kSplit, int kSpan, int kWords, int kColumns, bool kOffset, typename Source>
__device__ void add_words(const Weights &weights, const Decoder &decoder, const Word (&codes)[2][kWords], int output,
                          int first_group, int first, const Source &activations, float (&sums)[kColumns][4]) {
    constexpr int kTogether = kSpan < kWords ? kSpan : kWords;
#pragma unroll
    for (int start = 0; start < kWords; start += kTogether) {
        const int group = first_group + (first + start) / kSpan;
        const int64 at = int64(group) * weights.outputs + output;
        const float scales[2] = {__ldg(weights.scale + at), __ldg(weights.scale + at + 8)};
        float offsets[2] = {};
        if constexpr (kOffset) offsets[0] = __ldg(weights.offset + at), offsets[1] = __ldg(weights.offset + at + 8);
        const typename Decoder::Row rows[2] = {{decoder, weights.table(output, group)},
                                               {decoder, weights.table(output + 8, group)}};
        float products[kColumns][4] = {}, totals[kColumns][4] = {};
#pragma unroll
        for (int j = start; j < start + kTogether; j++) {
            const Word words[2] = {codes[0][j], codes[1][j]};
            Word decoded[Decoder::kParts][2][4];
            decode_both(decoder, rows, words, decoded);
#pragma unroll
            for (int column = 0; column < kColumns; column++) {
                const Activations<kSplit> a = activations(column, first + j);
                add_word(decoded, a, products[column], products[column]);
                if constexpr (kOffset) add_up(a, totals[column]);
            }
        }
#pragma unroll
        for (int column = 0; column < kColumns; column++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float product = products[column][i] - (kOffset ? offsets[i / 2] * totals[column][i] : 0);
                sums[column][i] = fmaf(scales[i / 2], product, sums[column][i]);
            }
    }
}

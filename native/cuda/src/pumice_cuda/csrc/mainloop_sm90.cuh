// The loop of every matrix product on Hopper: out (M, N) = epilogue(A B'), where A is anything of which the copy engine
// can fetch 128 bytes of K for as many rows as a tile has (a matrix, or the windows of an image), and B is (N, K). Where
// all there is of K, or of a tap, are 64 or 32 bytes, rows have so many.
//
// A block keeps a tile of 64 CONSUMERS rows by WIDTH columns in the registers of CONSUMERS warpgroups. One more
// warpgroup, the producer, gives its registers away; one thread of it starts the copies into a ring of STAGES buffers,
// each with a barrier `full` (the bytes have come) and `empty` (all who read it have). Blocks stay and walk over tiles,
// so that the copies for the next tile run under the epilogue of this one.
//
// With LATER a tile's finished values stay in registers and are stored one by one during the first steps of the next
// tile, of which there must be as many: blocks that finish together would wait for the memory together.
//
// A cluster of SPLITS blocks takes one tile and divides K: afterwards each adds up, from the shared memory of the others,
// the part of the columns that it stores.
#pragma once

#include "hopper.cuh"
#include "neighbours.cuh"
#include "overlapping.cuh"

constexpr int TILES_PER_GROUP = 8;

template <Element ELEMENT_, Output OUTPUT_, Activation ACTIVATION_, bool RESIDUAL_, int CONSUMERS_, int WIDTH_,
          int STAGES_, int SPLITS_, int TOGETHER_, int PARTS_, bool NEIGHBOURS_, bool LATER_>
struct Config {
    static constexpr Element ELEMENT = ELEMENT_;
    static constexpr Output OUTPUT = OUTPUT_;
    static constexpr Activation ACTIVATION = ACTIVATION_;
    static constexpr bool RESIDUAL = RESIDUAL_;
    static constexpr int CONSUMERS = CONSUMERS_, WIDTH = WIDTH_, STAGES = STAGES_, SPLITS = SPLITS_;
    static constexpr int TOGETHER = TOGETHER_, PARTS = PARTS_;  // blocks of a multiprocessor; 32 bytes of K in a step
    static constexpr bool NEIGHBOURS = NEIGHBOURS_;  // rows of B come in the order of `neighbours.cuh`
    static constexpr bool LATER = LATER_;  // a tile's values are stored while the next one is multiplied
    static constexpr bool INTEGER = ELEMENT == Element::s8 || ELEMENT == Element::u8;
    static constexpr int STEP_BYTES = 32 * PARTS;  // of K, in a row of a buffer
    static constexpr int STEP = STEP_BYTES / (INTEGER ? 1 : ELEMENT == Element::tf32 ? 4 : 2);  // elements of K there
    static constexpr int HEIGHT = 64 * CONSUMERS, THREADS = 128 * (CONSUMERS + 1);
    static constexpr int A_BYTES = HEIGHT * STEP_BYTES, B_BYTES = WIDTH * STEP_BYTES;
    static constexpr int SUMS = WIDTH / 2;  // of a thread
    static constexpr int SLICE = SUMS / SPLITS;
    static constexpr int VALUE_BYTES = sizeof(typename Stored<OUTPUT>::type);
    static_assert(!LATER || (NEIGHBOURS && SPLITS == 1 && VALUE_BYTES <= 2), "too many values to keep");
};

// What a source is compiled for beside its operands: the defaults.
#ifndef USE_CONSUMERS
#define USE_CONSUMERS 2
#define USE_WIDTH 256
#define USE_STAGES 4
#define USE_SPLITS 1
#define USE_TOGETHER 1
#endif
#ifndef USE_PARTS
#define USE_PARTS 4
#endif
#ifndef USE_NEIGHBOURS
#define USE_NEIGHBOURS false
#endif
#ifndef USE_LATER
#define USE_LATER false
#endif
typedef Config<ELEMENT, OUTPUT, ACTIVATION, RESIDUAL, USE_CONSUMERS, USE_WIDTH, USE_STAGES, USE_SPLITS, USE_TOGETHER,
               USE_PARTS, USE_NEIGHBOURS, USE_LATER>
    Chosen;

// Rows of B from a column of the result on.
template <class C>
__device__ __forceinline__ void copy_rows(u32 to, const TensorMap* map, u64* barrier, int x, int tap, int column) {
    if constexpr (C::NEIGHBOURS) copy_box(to, map, barrier, x, tap, 0, column / (8 * GROUP<C::OUTPUT>));
    else copy_box(to, map, barrier, x, tap, column, 0);
}

// Which tile comes when: groups of rows of tiles, column after column, so that the blocks at work at one time need few
// rows of A and B.
struct Tiles {
    int down, across;

    __device__ __forceinline__ int count() const { return down * across; }
    __device__ __forceinline__ int2 at(unsigned index) const {
        unsigned group = index / unsigned(TILES_PER_GROUP * across), first = group * TILES_PER_GROUP;
        unsigned height = min(TILES_PER_GROUP, down - int(first)), inside = index - first * across;
        return make_int2(first + inside % height, inside / height);
    }
};

template <int STAGES>
struct Ring {
    int stage = 0;
    u32 phase = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

template <class C>
struct Buffers {
    u32 tiles;  // STAGES times A's rows, then B's
    u64* full;
    u64* empty;
    ColumnTerms<C::WIDTH>* terms;  // of each consumer
    u32* partial;                  // (SUMS, 128 CONSUMERS), over the tiles, when all have been read

    __device__ __forceinline__ Buffers(unsigned char* shared) {
        constexpr int RING = C::STAGES * (C::A_BYTES + C::B_BYTES);
        unsigned char* aligned = shared + (-shared_address(shared) & 1023);
        tiles = shared_address(aligned);
        full = (u64*)(aligned + RING);
        empty = full + C::STAGES;
        terms = (ColumnTerms<C::WIDTH>*)(empty + C::STAGES);
        partial = (u32*)aligned;
        static_assert(C::SPLITS == 1 || 4 * C::HEIGHT * C::WIDTH <= RING, "the sums of a divided K need more room");
    }
    __device__ __forceinline__ u32 a(int stage) const { return tiles + stage * (C::A_BYTES + C::B_BYTES); }
    __device__ __forceinline__ u32 b(int stage) const { return a(stage) + C::A_BYTES; }
};

// The steps of K that are this block's.
template <class C>
__device__ __forceinline__ int2 own_steps(int steps) {
    if constexpr (C::SPLITS == 1) return make_int2(0, steps);
    int rank = cluster_rank();
    return make_int2(steps * rank / C::SPLITS, steps * (rank + 1) / C::SPLITS);
}

template <class C, class Source>
__device__ __forceinline__ void produce(Source source, const Buffers<C>& buffers, Tiles tiles, int steps) {
    Ring<C::STAGES> ring;
    int2 own = own_steps<C>(steps);
    for (int index = blockIdx.x / C::SPLITS; index < tiles.count(); index += gridDim.x / C::SPLITS) {
        int2 tile = tiles.at(index);
        source.begin(tile.x * C::HEIGHT, own.x);
        for (int step = own.x; step < own.y; ++step, ring.advance()) {
            barrier_wait(buffers.empty + ring.stage, ring.phase ^ 1);
            u64* full = buffers.full + ring.stage;
            barrier_expect(full, C::A_BYTES + C::B_BYTES);
            source.copy_a(buffers.a(ring.stage), full);
            source.copy_b(buffers.b(ring.stage), full, tile.y * C::WIDTH);
            source.advance();
        }
    }
}

// Calls `store(nth)` after each of the first STORES steps.
template <class C, int STORES, class Store>
__device__ __forceinline__ void multiply(u32 (&sums)[C::SUMS], const Buffers<C>& buffers, Ring<C::STAGES>& ring,
                                         int steps, Store store) {
    int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    auto release = [&](int stage) {
        if (lane == 0) barrier_arrive(buffers.empty + stage);
    };
    int before = 0;
    auto take_step = [&](int step, bool stores) {
        barrier_wait(buffers.full + ring.stage, ring.phase);
        u64 a = operand<C::STEP_BYTES>(buffers.a(ring.stage) + group * 64 * C::STEP_BYTES);
        u64 b = operand<C::STEP_BYTES>(buffers.b(ring.stage));
        wgmma_begin();
#pragma unroll
        for (int part = 0; part < C::PARTS; ++part)
            wgmma<C::ELEMENT, C::WIDTH>(sums, a + 2 * part, b + 2 * part, step != 0 || part != 0);
        wgmma_commit();
        if (stores) store(step);
        wgmma_wait<1>();
        if (step != 0) release(before);
        before = ring.stage;
        ring.advance();
    };
#pragma unroll
    for (int step = 0; step < STORES; ++step) take_step(step, true);
    for (int step = STORES; step < steps; ++step) take_step(step, false);
    wgmma_wait<0>();
    if (steps != 0) release(before);
}

// This block's slice of the columns, summed over the blocks of the cluster in the order of their ranks.
template <class C>
__device__ __forceinline__ void add_parts(u32 (&slice)[C::SLICE], const u32* partial) {
    constexpr int THREADS = 128 * C::CONSUMERS;
    u32 from = shared_address(partial + cluster_rank() * C::SLICE * THREADS + threadIdx.x - 128);
#pragma unroll
    for (int i = 0; i < C::SLICE; ++i) {
#pragma unroll
        for (int rank = 0; rank < C::SPLITS; ++rank) {
            u32 part = load_from_cluster(in_block(from + 4 * i * THREADS, rank));
            if (rank == 0) slice[i] = part;
            else if (C::INTEGER) slice[i] += part;
            else slice[i] = __float_as_uint(__uint_as_float(slice[i]) + __uint_as_float(part));
        }
    }
}

// The sums of a warp that begin at a row and a column, `inside` columns from the tile's first.
template <class C, int SUMS>
__device__ __forceinline__ void finish(const u32 (&sums)[SUMS], const Epilogue& e, const ColumnTerms<C::WIDTH>& terms,
                                       int row, int column, int inside) {
    if constexpr (C::NEIGHBOURS)
        store_neighbours<C::INTEGER, C::OUTPUT, C::ACTIVATION, C::RESIDUAL, SUMS / 4>(sums, e, terms, row, column, inside);
    else store_strip<C::INTEGER, C::OUTPUT, C::ACTIVATION, C::RESIDUAL, SUMS / 4>(sums, e, terms, row, column, inside);
}

template <class C>
__device__ __forceinline__ void consume(const Buffers<C>& buffers, Tiles tiles, int steps, const Epilogue& e) {
    Ring<C::STAGES> ring;
    int warp = threadIdx.x / 32 - 4, group = warp / 4, thread = threadIdx.x % 128;
    ColumnTerms<C::WIDTH>& terms = buffers.terms[group];
    int2 own = own_steps<C>(steps);
    constexpr bool LATER = C::LATER;
    Waiting<C::OUTPUT, LATER ? C::SUMS / 4 : GROUP<C::OUTPUT>> waiting;
    constexpr int STORES = LATER ? waiting.COUNT : 0;
    auto store = [&](int nth) { waiting.store(nth, e); };
    int known = -1;  // where the columns begin whose terms are in shared memory
    for (int index = blockIdx.x / C::SPLITS; index < tiles.count(); index += gridDim.x / C::SPLITS) {
        int2 tile = tiles.at(index);
        int row = tile.x * C::HEIGHT + 16 * warp, column = tile.y * C::WIDTH;
        FetchedTerms<C::WIDTH, 128> fetched;
        if (column != known) fetched.fetch(thread, column, e);
        u32 sums[C::SUMS];
        multiply<C, STORES>(sums, buffers, ring, own.y - own.x, store);
        if (column != known) {
            sync_threads<128>(1 + group);  // all have done with the terms of the last tile
            fetched.put(thread, terms);
            sync_threads<128>(1 + group);
            known = column;
        }
        if constexpr (LATER) {
            keep_neighbours<C::INTEGER, C::OUTPUT, C::ACTIVATION, C::RESIDUAL>(waiting, sums, e, terms, row, column);
        } else if constexpr (C::SPLITS == 1) {
            finish<C>(sums, e, terms, row, column, 0);
        } else {
            sync_threads<128 * C::CONSUMERS>(1 + C::CONSUMERS);
#pragma unroll
            for (int i = 0; i < C::SUMS; ++i) buffers.partial[i * 128 * C::CONSUMERS + threadIdx.x - 128] = sums[i];
            cluster_sync();
            u32 slice[C::SLICE];
            add_parts<C>(slice, buffers.partial);
            constexpr int COLUMNS = C::WIDTH / C::SPLITS;
            int inside = cluster_rank() * COLUMNS;
            finish<C>(slice, e, terms, row, column + inside, inside);
        }
    }
#pragma unroll
    for (int nth = 0; nth < STORES; ++nth) store(nth);
}

// All of a block's work. With SPLITS the grid has a cluster for every tile.
template <class C, class Source>
__device__ __forceinline__ void multiply_tiles(Source source, Tiles tiles, int steps, const Epilogue& e) {
    extern __shared__ unsigned char shared[];
    Buffers<C> buffers(shared);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < C::STAGES; ++stage) {
            barrier_init(buffers.full + stage, 1);
            barrier_init(buffers.empty + stage, 4 * C::CONSUMERS);
        }
        barrier_init_fence();
        source.prefetch();
    }
    __syncthreads();
    let_next_kernel_start();
    wait_for_kernel_before();
    if (threadIdx.x < 128) {
        if constexpr (C::CONSUMERS == 2 && C::TOGETHER == 1) give_up_registers<C::LATER ? 40 : 56>();
        if (threadIdx.x == 0) produce<C>(source, buffers, tiles, steps);
        __syncwarp();
        if constexpr (C::SPLITS > 1) cluster_sync();
    } else {
        if constexpr (C::CONSUMERS == 2 && C::TOGETHER == 1) take_registers<C::LATER ? 232 : 224>();
        consume<C>(buffers, tiles, steps, e);
    }
    if constexpr (C::SPLITS > 1) cluster_sync();  // nobody leaves while others may reach its memory
}

"""Every kernel at odd sizes, for compute-sanitizer: each array has an allocation of its own, and so bounds of its own.

    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 python sanitized.py [FAMILY ...]

`--tool racecheck` looks for accesses to shared memory that nothing orders. One line is printed for each family that has
come to its end; what the kernels compute is not looked at here. Each kernel that is compiled costs seconds there, so
types and variants take turns over the sizes; `test_sanitized.py` holds that none is left out.
"""

import itertools
import sys

import cupy
import numpy as np

from pumice.ops.record import Node
from pumice.ops.window import Window
from pumice_cuda import attention, dynamic, embedding, gemm, gradients, lowbit, pooling, quantize, recurrent, rows
from pumice_cuda.conv import Conv
from pumice_cuda.epilogue import Epilogue, LevelSum, ranges_shape
from pumice_cuda.gemm import AmpereTiling, Tiling

rng = np.random.default_rng(0)
FLOATS = ("float32", "float16", "bfloat16")
SUM = LevelSum(level_factor=0.5, residual_factor=0.5, offset=1.0)


def integers(*shape, dtype=np.int8):
    limits = np.iinfo(dtype)
    return cupy.asarray(rng.integers(limits.min, limits.max + 1, shape).astype(dtype))


def floats(*shape, dtype="float32"):
    return cupy.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)


def beside_a_bound(*shape, dtype="float32"):
    """Contiguous, but not from a multiple of 16 bytes on."""
    return floats(1 + np.prod(shape), dtype=dtype)[1:].reshape(shape)


# --- products and convolutions ----------------------------------------------------------------------------------------


def finishes(m, n):
    """Epilogues of a result (m, n) that have between them all that there is."""
    scale, bias = floats(n), floats(n)
    summed = {"row_scale": floats(m), "residual": cupy.zeros((m, n), np.int8), "level_sum": SUM}
    by = {"scale_by": floats(1), "factor": floats(n), "ranges": cupy.empty(ranges_shape(m, n), np.float32)}
    offset, added = integers(n, dtype=np.int32), cupy.zeros((m, n), "bfloat16")
    clip = {"activation": "clip", "low": -1.5, "high": 40.0}
    yield Epilogue(output="int32", offset=offset, offset_zero=integers(1, dtype=np.uint8))
    yield Epilogue(output="int8", scale=scale, bias=bias, offset=offset, zero=7, **clip, **summed)
    yield Epilogue(output="uint8", scale=floats(1), activation="gelu", residual=cupy.zeros((m, n), np.uint8))
    yield Epilogue(output="bfloat16", scale=scale, bias=bias, activation="gelu", residual=added)
    yield Epilogue(output="float16", scale=scale, offset=offset, activation="silu")
    yield Epilogue(output="float32", scale=scale, row_scale=floats(m), residual=floats(m, n))
    yield Epilogue(output="float32", scale=scale, bias=bias, **by, **clip)


def products():
    for m, n, k in [(77, 192, 528), (129, 257, 63), (3, 5, 1)]:
        for epilogue, dtype in zip(finishes(m, n), itertools.cycle((np.int8, np.uint8))):
            a, b = gemm.readable(integers(m, k, dtype=dtype)), gemm.readable(integers(n, k))
            for run in (gemm.on_hopper, gemm.on_ampere, gemm.on_turing):
                run(a, b, epilogue, cupy.empty((m, n), epilogue.output))


TILINGS = [
    Tiling(consumers=1, width=64), Tiling(consumers=2, width=64, together=2), Tiling(consumers=3, width=128),
    Tiling(consumers=1, width=128, together=2), Tiling(consumers=2, width=256), Tiling(consumers=1, width=256),
    Tiling(consumers=1, width=128, splits=2), Tiling(consumers=2, width=128, splits=2),
]  # fmt: skip
WIDE = Tiling(consumers=1, width=256, splits=2)
"""Of floats alone."""


def divisions():
    """Products divided in every way, K of an odd number of steps among them."""
    m, n, k = 300, 272, 528
    some = list(finishes(m, n))
    for division, epilogue in zip(TILINGS, itertools.cycle((some[1], some[3], some[6]))):
        gemm.on_hopper(integers(m, k), integers(n, k), epilogue, cupy.empty((m, n), epilogue.output), division)
    for dtype, epilogue in (("bfloat16", some[3]), ("float32", some[5]), ("float16", some[6])):
        out = cupy.empty((m, n), epilogue.output)
        gemm.on_hopper(floats(m, k, dtype=dtype), floats(n, k, dtype=dtype), epilogue, out, WIDE)
    for width, splits in ((64, 1), (128, 2), (64, 4)):
        out, division = cupy.empty((m, n), "bfloat16"), AmpereTiling(width=width, splits=splits)
        gemm.on_ampere(floats(m, k), floats(n, k), some[3], out, "float32", division)
    ((window, channels, outputs, kernel, _, size),) = windows(WINDOWS[:1])
    some = list(finishes(2 * np.prod(window.output), outputs))
    for dtype, nth in (("int8", 1), ("float32", 5)):
        conv = Conv(floats(outputs, *kernel, channels, dtype=dtype), window, precision="float32")
        images, out = floats(2, *size, channels, dtype=dtype), cupy.empty(some[nth].residual.shape, some[nth].output)
        conv.copied(images, some[nth], out, TILINGS[-1])
    conv.gathered(images, some[5], out, AmpereTiling(width=64, splits=2))
    for (m, n, k), dtype in itertools.product([(77, 33, 528), (129, 65, 63), (1, 2, 1)], FLOATS):
        for precision in ("tf32", "float32") if dtype == "float32" else ("tf32",):
            gemm.gemm(floats(m, k, dtype=dtype), floats(n, k, dtype=dtype), precision=precision)
        a, b = (gemm.readable(floats(count, k, dtype=dtype)) for count in (m, n))
        gemm.on_ampere(a, b, Epilogue(), cupy.empty((m, n), np.float32))


def tiles_in_turn():
    """More large tiles than multiprocessors, whose values are stored during the next."""
    m, n, k = 1090, 3776, 1040
    for dtype in ("int8", "bfloat16"):
        a, b, out = floats(m, k, dtype=dtype), floats(n, k, dtype=dtype), cupy.empty((m, n), dtype)
        gemm.on_hopper(a, b, Epilogue(output=dtype, scale=floats(n)), out, Tiling(consumers=2, width=256))


WINDOWS = [
    (64, 192, (3, 3), (1, 1), 1, (13, 11)), (3, 64, (7, 7), (2, 2), 1, (30, 31)),
    (1, 70, (3, 5), (1, 1), 1, (9, 131)), (12, 20, (3, 3), (1, 1), 4, (9, 7)),
    (144, 33, (3, 3), (2, 2), 1, (13, 11)), (64, 48, (1, 1), (1, 1), 1, (5, 5)),
]  # fmt: skip
"""Channels in and out, kernel, strides, groups, size of the image."""
OF_CHANNELS = [
    (32, 32, (3, 3), (2, 1), 32, (9, 7)), (7, 7, (5, 5), (1, 1), 7, (9, 7)), (96, 96, (3, 3), (2, 2), 96, (31, 30)),
    (20, 20, (9, 3), (1, 1), 20, (11, 9)), (3, 3, (8, 8), (2, 2), 3, (12, 13)),
]  # fmt: skip
"""Where each has a window of its own."""


def windows(cases):
    for channels, outputs, kernel, strides, groups, size in cases:
        pads = [kernel[0] // 2, kernel[1] // 2] * 2
        window = Window.of(Node(op_type="Conv", attributes={"strides": list(strides), "pads": pads}), size, kernel)
        yield window, channels, outputs, kernel, groups, size


def convolve(cases):
    for number, (window, channels, outputs, kernel, groups, size) in enumerate(windows(cases)):
        shape, m = (outputs, *kernel, channels // groups), 2 * np.prod(window.output)
        some = [e for e in finishes(m, outputs) if e.ranges is None]
        for nth, (dtype, padding) in enumerate(((np.int8, 0), (np.uint8, 3), (np.uint8, 0))):
            conv = Conv(integers(*shape), window, groups=groups, padding=padding)
            conv(integers(2, *size, channels, dtype=dtype), some[(number + 2 * nth) % len(some)])
        for nth, dtype in enumerate(FLOATS):
            precision = "float32" if (number + nth) % 2 else "tf32"
            conv = Conv(floats(*shape, dtype=dtype), window, groups=groups, precision=precision)
            added = floats(m, outputs, dtype=dtype) if nth == number % 3 else None
            activation = ("clip", "gelu", "none", "silu")[(number + nth) % 4]
            finish = Epilogue(output=dtype, bias=floats(outputs), activation=activation, low=0.0, residual=added)
            conv(floats(2, *size, channels, dtype=dtype), finish)


def convolutions():
    convolve(WINDOWS)


def depthwise():
    convolve(OF_CHANNELS)


def pools():
    for window, channels, _, _, _, size in windows(WINDOWS + OF_CHANNELS):
        for dtype in ("float32", "float16", "int8"):
            pooling.max_pool(floats(2, *size, channels, dtype=dtype), window)


# --- rows and elements ------------------------------------------------------------------------------------------------

SHAPES = [(3, 1), (7, 5), (5, 128), (4, 768), (3, 1001), (2, 1024), (2, 8192), (2, 3, 4099), (2, 33_000), (1, 70_003)]


def shapes():
    """(number, shape, type): the types take turns."""
    return zip(itertools.count(), SHAPES, itertools.cycle(FLOATS))


def of_rows():
    for number, shape, dtype in shapes():
        x, skip = (floats(*shape, dtype=dtype) for _ in range(2))
        scale, bias = (floats(shape[-1], dtype=dtype) for _ in range(2))
        rows.softmax(x, logarithm=number % 2 == 1)
        if number % 2:
            rows.layer_norm(x, scale, bias, statistics=True)
        else:
            rows.layer_norm(x, scale, skip=skip, skip_bias=bias, rms=number % 4 == 0, total=True)
        rows.map_elements(("gelu", "gelu_tanh", "silu")[number % 3], x)
    x = beside_a_bound(5, 128)
    rows.softmax(x)
    rows.layer_norm(x, floats(128), statistics=True)
    rows.map_elements("gelu", x)


REDUCED = [
    ((7, 5), 0), ((3, 1001), 1), ((1, 70_003), 1), ((2, 8192), 1), ((300, 130), 0), ((5000, 33), 0), ((9, 64), 0),
    ((2, 3, 4099), 0), ((2, 3, 4099), 1), ((3, 70, 64), 1),
]  # fmt: skip
"""Shapes, and the axis that is gone then."""


def reductions():
    for (shape, axis), reduction, dtype in zip(REDUCED, itertools.cycle(rows.REDUCTIONS), itertools.cycle(FLOATS)):
        rows.reduce(reduction, floats(*shape, dtype=dtype), [axis])
    rows.reduce("mean", floats(5, 300, 7), [0, 2])
    rows.reduce("max", beside_a_bound(9, 64), [1])


def gradients_of_rows():
    for number, shape, dtype in shapes():
        x, dy, scale = floats(*shape, dtype=dtype), floats(*shape, dtype=dtype), floats(shape[-1], dtype=dtype)
        gradients.softmax(x, dy, logarithm=number % 2 == 1)
        gradients.layer_norm(x, dy, scale, 1e-5, rms=number % 2 == 0)
        gradients.map_elements(("gelu", "gelu_tanh")[number % 2], x, dy)
    gradients.layer_norm(floats(3000, 34), floats(3000, 34), floats(34), 1e-5)
    gradients.softmax(beside_a_bound(5, 128), floats(5, 128))


# --- quantization -----------------------------------------------------------------------------------------------------


def scales(shape):
    """(axis, scales, zero points): one, and one for each place of the first axis and of the last."""
    for axis, places in ((None, 1), (0, shape[0]), (len(shape) - 1, shape[-1])):
        yield axis, cupy.full(places, 0.02, np.float32), places


def quantizations():
    for number, shape, dtype in shapes():
        x, kind = floats(*shape, dtype=dtype), (np.uint8, np.int8)[number % 2]
        for axis, scale, places in scales(shape):
            zero = integers(places, dtype=kind)
            q = quantize.quantize(x, scale, zero, kind, axis=axis)
            quantize.dequantize(q, scale, zero, axis=axis, dtype=x.dtype)
        quantize.dynamic_quantize(x)
        (quantize.quantize_rows, quantize.dynamic_quantize_rows)[number % 2](x)
    x = beside_a_bound(5, 128)
    for each in (quantize.dynamic_quantize, quantize.quantize_rows, quantize.dynamic_quantize_rows):
        each(x)


def quantization_gradients():
    for number, shape, dtype in shapes():
        x, kind = floats(*shape, dtype=dtype), (np.int8, np.uint8)[number % 2]
        gradient = (quantize.fake_quantize_gradient, quantize.quantize_gradient)[number % 2]
        for axis, scale, places in scales(shape):
            zero = floats(places) if number % 2 else None
            quantize.fake_quantize(x, scale, axis=axis)
            gradient(x, x, scale, zero, (-128, 127), axis=axis)
            quantize.dequantize_gradient(integers(*shape, dtype=kind), floats(*shape), scale, zero, axis=axis)


def ranges():
    for shape in ((3, 4), (7, 128), (5, 768), (2, 3, 1024), (2, 8192), (2, 33_000), (2113, 1024)):
        x, scale = floats(*shape), floats(shape[-1])
        dynamic.layer_norm(x, scale, scale, 1e-5)
        dynamic.times(x, scale)
        dynamic.times(x)
    dynamic.quantize_within(floats(9, 132), floats(2305, 2))


# --- weights of four bits ---------------------------------------------------------------------------------------------


def weights(k, n, group, decoder, *, whole=True):
    """Of a decoder; those whose tables or offsets are `whole` numbers need no second part."""
    groups, codes = -(-k // (group or k)), rng.integers(0, 16, (k, n), np.uint8)
    scale = rng.uniform(0.5, 1, (n, groups)).astype(np.float32)
    if decoder == "levels":
        return lowbit.pack_affine(codes, scale, np.round(9 * scale) if whole else scale, group=group)
    table = rng.standard_normal({"pairs": (16,), "tables": (n, 16), "grouped": (n, groups, 16)}[decoder])
    return lowbit.pack(codes, (np.round(8 * table) if whole else table).astype(np.float32), scale, group=group)


def multiply(cases):
    for number, (packed, m, dtype) in enumerate(cases):
        a, bias = floats(m, packed.k, dtype=dtype), floats(packed.n, dtype=dtype) if number % 2 else None
        lowbit.matmul(a, packed, bias)


def few_rows():
    multiply([
        (weights(300, 7, 128, "pairs", whole=False), 1, "float32"), (weights(1, 1, None, "pairs"), 1, "float16"),
        (weights(1000, 33, 32, "tables"), 3, "bfloat16"), (weights(200, 17, 64, "grouped", whole=False), 8, "float16"),
        (weights(257, 18, None, "levels", whole=False), 2, "float32"),
        (weights(40, 2200, None, "pairs"), 1, "bfloat16"),
        (weights(257, 70, None, "pairs", whole=False), 9, "float32"), (weights(257, 70, 64, "levels"), 17, "float16"),
        (weights(129, 17, 32, "tables"), 30, "bfloat16"), (weights(33, 2200, None, "tables"), 20, "bfloat16"),
    ])  # fmt: skip


def few_rows_in_clusters():
    multiply([
        (weights(2056, 2200, None, "pairs"), 5, "bfloat16"), (weights(2056, 2200, None, "tables"), 8, "bfloat16"),
        (weights(2056, 2200, 128, "levels"), 1, "bfloat16"),
        (weights(2056, 2200, 256, "levels", whole=False), 7, "bfloat16"),
        (weights(136, 3816, None, "pairs"), 3, "bfloat16"), (weights(2056, 3816, None, "levels"), 8, "bfloat16"),
    ])  # fmt: skip


def many_rows():
    pairs, levels = weights(264, 70, None, "pairs"), weights(264, 40, 32, "levels")
    tables = weights(1160, 33, 128, "tables")
    odd = weights(257, 70, None, "tables", whole=False)
    multiply([
        (pairs, 40, "bfloat16"), (pairs, 100, "bfloat16"), (tables, 128, "bfloat16"), (levels, 33, "bfloat16"),
        (weights(264, 3816, None, "pairs"), 20, "bfloat16"),
        (odd, 70, "float32"), (odd, 129, "bfloat16"), (weights(129, 17, 32, "levels"), 40, "float16"),
        (levels, 131, "bfloat16"), (pairs, 40, "float16"),
    ])  # fmt: skip
    lowbit.decoded(tables)


# --- layers -----------------------------------------------------------------------------------------------------------


def layers():
    sizes = [(5, 1, 7, 256), (4, 3, 16, 33), (3, 40, 8, 100), (3, 2, 40, 300), (2, 33, 9, 600), (2, 2, 8, 1060)]
    cells = (("lstm", 4), ("gru", 3))
    cases = [(size, cell) for size, cell in itertools.product(sizes, cells) if size[3] < 1000 or cell[0] == "lstm"]
    for number, ((time, batch, inputs, hidden), (cell, gates)) in enumerate(cases):
        packed = recurrent.prepare(cell, floats(gates * hidden, inputs), floats(gates * hidden, hidden))
        y, states = cupy.empty((time, batch, hidden), np.float32), [floats(batch, hidden) for _ in range(gates - 2)]
        ends = cupy.asarray(rng.integers(0, time + 1, batch).astype(np.int32)) if number % 3 else None
        recurrent.run(
            packed, floats(time, batch, inputs), y, *states, bias=floats(2 * gates * hidden), lengths=ends,
            peepholes=floats(3 * hidden) if cell == "lstm" and number % 4 else None, reverse=number % 2 == 1,
        )  # fmt: skip


def layers_of_levels():
    """A state that is quantized."""
    sizes = [(5, 1, 7, 256), (4, 3, 16, 33), (3, 40, 8, 100), (2, 70, 8, 65), (3, 64, 9, 320)]
    for time, batch, inputs, hidden in sizes:
        scale, r = floats(4 * hidden), floats(4 * hidden, hidden)
        w = recurrent.IntegerInput.of(integers(inputs, 4 * hidden), scale, cupy.zeros(1, np.int8))
        state = recurrent.IntegerState.of(integers(hidden, 4 * hidden), scale)
        y, states = cupy.empty((time, batch, hidden), np.float32), [floats(batch, hidden) for _ in range(2)]
        packed = recurrent.prepare("lstm", w, r, rounds=True, state=state)
        recurrent.run(packed, floats(time, batch, inputs), y, *states)


def heads():
    sizes = ((16, 5), (32, 70), (64, 128), (64, 77), (128, 9), (128, 80))
    for batch, (size, queries), keys in itertools.product((2, 50), sizes, (1, 33, 128)):
        q, k, v = (floats(batch, 3, n, size) for n in (queries, keys, keys))
        attention.attention(q, k, v, size**-0.5, floats(queries, keys))
        attention.quantized_attention(q, k, v, size**-0.5, columns=floats(3 * size))


def tables():
    for columns, count, kind in itertools.product((4, 36, 768), (1, 9, 300), (np.int64, np.int32)):
        index = cupy.asarray(rng.integers(-50, 50, count).astype(kind))
        embedding.embed(integers(50, columns, dtype=np.int8 if count > 1 else np.uint8), index, floats(count, 1))
    for columns, count, dtype in ((4, 1, "float16"), (7, 300, "bfloat16"), (36, 9, "bfloat16"), (5000, 300, "float32")):
        index = cupy.asarray(rng.integers(-50, 50, count))
        embedding.gradient(index, floats(count, columns, dtype=dtype), 50)


FAMILIES = {
    "gemm": products, "divisions": divisions, "turns": tiles_in_turn,
    "conv": convolutions, "depthwise": depthwise, "pooling": pools,
    "rows": of_rows, "reductions": reductions, "gradients": gradients_of_rows,
    "quantize": quantizations, "quantize_gradients": quantization_gradients, "dynamic": ranges,
    "lowbit_few": few_rows, "lowbit_clusters": few_rows_in_clusters, "lowbit_many": many_rows,
    "recurrent": layers, "recurrent_levels": layers_of_levels, "attention": heads, "embedding": tables,
}  # fmt: skip


def main() -> None:
    cupy.cuda.set_allocator(None)
    for name in sys.argv[1:] or FAMILIES:
        FAMILIES[name]()
        cupy.cuda.Device().synchronize()
        sys.stderr.write(f"{name}: done\n")


if __name__ == "__main__":
    main()

"""Every kernel at odd sizes, for compute-sanitizer: each array has an allocation of its own, and so bounds of its own.

    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 python sanitized.py [FAMILY ...]

`--tool racecheck` looks for accesses to shared memory that nothing orders. One line is printed for each family that has
come to its end; what the kernels compute is not looked at here.
"""

import itertools
import sys

import cupy
import numpy as np

from pumice.ops.record import Node
from pumice.ops.window import Window
from pumice_cuda import attention, dynamic, embedding, gemm, gradients, lowbit, pooling, quantize, recurrent, rows
from pumice_cuda.conv import Conv
from pumice_cuda.epilogue import Epilogue, LevelSum

rng = np.random.default_rng(0)
OUTPUTS = ("int32", "int8", "bfloat16", "float32")
SUM = LevelSum(level_factor=0.5, residual_factor=0.5, offset=1.0)


def integers(*shape, dtype=np.int8):
    limits = np.iinfo(dtype)
    return cupy.asarray(rng.integers(limits.min, limits.max + 1, shape).astype(dtype))


def floats(*shape, dtype="float32"):
    return cupy.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)


def epilogue(output, outputs, shape):
    if output == "int32":
        return Epilogue(output=output)
    more = {"level_sum": SUM} if output == "int8" else {}
    return Epilogue(output=output, scale=floats(outputs), residual=cupy.zeros(shape, output), **more)


def products():
    for (m, n, k), output in itertools.product([(1, 5, 33), (77, 192, 528), (129, 257, 63), (200, 200, 160)], OUTPUTS):
        a, b = gemm.readable(integers(m, k)), gemm.readable(integers(n, k))
        for run in (gemm.on_hopper, gemm.on_ampere, gemm.on_turing):
            run(a, b, epilogue(output, n, (m, n)), cupy.empty((m, n), output))
        for dtype, precision in itertools.product(("float16", "bfloat16", "float32"), ("tf32", "float32")):
            gemm.gemm(floats(m, k, dtype=dtype), floats(n, k, dtype=dtype), precision=precision)


WINDOWS = [
    (64, 96, (3, 3), (1, 1), 1, (13, 11)), (3, 64, (7, 7), (2, 2), 1, (30, 31)), (1, 70, (3, 5), (1, 1), 1, (9, 131)),
    (144, 33, (3, 3), (2, 2), 1, (13, 11)), (12, 20, (3, 3), (1, 1), 4, (9, 7)), (32, 32, (3, 3), (2, 1), 32, (9, 7)),
    (7, 7, (5, 5), (1, 1), 7, (9, 7)), (64, 48, (1, 1), (1, 1), 1, (5, 5)), (96, 96, (3, 3), (2, 2), 96, (31, 30)),
]  # fmt: skip
"""Channels in and out, kernel, strides, groups, size of the image."""


def windows():
    for channels, outputs, kernel, strides, groups, size in WINDOWS:
        pads = [kernel[0] // 2, kernel[1] // 2] * 2
        window = Window.of(Node(op_type="Conv", attributes={"strides": list(strides), "pads": pads}), size, kernel)
        yield window, channels, outputs, kernel, groups, size


def convolutions():
    for window, channels, outputs, kernel, groups, size in windows():
        shape = (outputs, *kernel, channels // groups)
        for output, padding in itertools.product(("int32", "int8"), (0, 3)):
            conv = Conv(integers(*shape), window, groups=groups, padding=padding)
            conv(integers(2, *size, channels), epilogue(output, outputs, (2, *window.output, outputs)))
        for dtype, precision in itertools.product(("float16", "bfloat16", "float32"), ("tf32", "float32")):
            conv = Conv(floats(*shape, dtype=dtype), window, groups=groups, precision=precision)
            conv(floats(2, *size, channels, dtype=dtype))


def pools():
    for window, channels, _, _, _, size in windows():
        for x in (floats(2, *size, channels), integers(2, *size, channels)):
            pooling.max_pool(x, window)


SHAPES = [(3, 1), (7, 5), (5, 128), (4, 768), (3, 1001), (2, 1024), (2, 8192), (2, 3, 4099), (2, 33_000), (1, 70_003)]


def of_rows():
    for shape, dtype in itertools.product(SHAPES, ("float32", "float16", "bfloat16")):
        x, skip = (floats(*shape, dtype=dtype) for _ in range(2))
        scale, bias = (floats(shape[-1], dtype=dtype) for _ in range(2))
        rows.softmax(x)
        rows.softmax(x, logarithm=True)
        rows.layer_norm(x, scale, bias, statistics=True)
        rows.layer_norm(x, scale, skip=skip, skip_bias=bias, rms=True, total=True)
        rows.map_elements("gelu", x)
        for axes in ([-1], [0], list(range(len(shape)))):
            rows.reduce("sum", x, axes)


def gradients_of_rows():
    for shape, dtype in itertools.product(SHAPES, ("float32", "float16", "bfloat16")):
        x, dy, scale = floats(*shape, dtype=dtype), floats(*shape, dtype=dtype), floats(shape[-1], dtype=dtype)
        for switch in (False, True):
            gradients.softmax(x, dy, logarithm=switch)
            gradients.layer_norm(x, dy, scale, 1e-5, rms=switch)
        gradients.map_elements("gelu", x, dy)


def quantizations():
    for shape, dtype in itertools.product(SHAPES, ("float32", "float16", "bfloat16")):
        x, last = floats(*shape, dtype=dtype), len(shape) - 1
        for axis, places in ((None, 1), (0, shape[0]), (last, shape[-1])):
            scale, zero = cupy.full(places, 0.02, np.float32), integers(places, dtype=np.uint8)
            q = quantize.quantize(x, scale, zero, axis=axis)
            quantize.dequantize(q, scale, zero, axis=axis, dtype=x.dtype)
            quantize.fake_quantize(x, scale, axis=axis)
            quantize.fake_quantize_gradient(x, x, scale, axis=axis)
        quantize.dynamic_quantize(x)
        quantize.quantize_rows(x)
        quantize.dynamic_quantize_rows(x)


def few_bits():
    cases = [(300, 7, 3, 128), (1000, 33, 9, 32), (1000, 33, 2, 64), (257, 18, 70, None), (1, 1, 1, None)]
    cases += [(4000, 2200, 1, None), (4000, 2200, 8, None), (4104, 2200, 8, None), (129, 17, 30, 32)]
    for (k, n, m, group), dtype in itertools.product(cases, ("float32", "float16", "bfloat16")):
        groups, codes = -(-k // (group or k)), rng.integers(0, 16, (k, n))
        scale, a = rng.uniform(0.5, 1, (n, groups)).astype(np.float32), floats(m, k, dtype=dtype)
        whole = dtype == "bfloat16"  # which need no second part
        for table in (rng.standard_normal(s).astype(np.float32) for s in ((16,), (n, 16))):
            table = np.round(8 * table) if whole else table
            lowbit.matmul(a, lowbit.pack(codes, table, scale, group=group), floats(n, dtype=dtype))
        lowbit.matmul(a, lowbit.pack_affine(codes, scale, scale, group=group))


def layers():
    shapes = [(5, 1, 7, 256), (4, 3, 16, 33), (3, 40, 8, 100), (3, 2, 40, 300), (3, 32, 64, 512)]
    for (time, batch, inputs, hidden), (cell, gates) in itertools.product(shapes, (("lstm", 4), ("gru", 3))):
        weights = recurrent.prepare(cell, floats(gates * hidden, inputs), floats(gates * hidden, hidden))
        y, states = cupy.empty((time, batch, hidden), np.float32), [floats(batch, hidden) for _ in range(gates - 2)]
        recurrent.run(weights, floats(time, batch, inputs), y, *states, bias=floats(2 * gates * hidden))
    for time, batch, inputs, hidden in (*shapes, (3, 64, 9, 320)):  # a state that is quantized
        scale, r = floats(4 * hidden), floats(4 * hidden, hidden)
        w = recurrent.IntegerInput.of(integers(inputs, 4 * hidden), scale, cupy.zeros(1, np.int8))
        state = recurrent.IntegerState.of(integers(hidden, 4 * hidden), scale)
        y, states = cupy.empty((time, batch, hidden), np.float32), [floats(batch, hidden) for _ in range(2)]
        weights = recurrent.prepare("lstm", w, r, rounds=True, state=state)
        recurrent.run(weights, floats(time, batch, inputs), y, *states)


def ranges():
    for shape in ((3, 4), (7, 128), (5, 768), (2, 3, 1024), (2, 8192)):
        x, scale = floats(*shape), floats(shape[-1])
        dynamic.layer_norm(x, scale, scale, 1e-5)
        dynamic.times(x, scale)
        dynamic.times(x)


def heads():
    sizes = ((32, 5), (32, 70), (64, 128), (64, 77), (128, 9), (128, 80))
    for batch, (size, queries), keys in itertools.product((2, 50), sizes, (1, 33, 128)):
        q, k, v = (floats(batch, 3, n, size) for n in (queries, keys, keys))
        attention.attention(q, k, v, size**-0.5, floats(queries, keys))
        attention.quantized_attention(q, k, v, size**-0.5, columns=floats(3 * size))


def tables():
    for columns, count in itertools.product((4, 36, 768), (1, 9, 300)):
        index = cupy.asarray(rng.integers(-50, 50, count))
        embedding.embed(integers(50, columns), index, floats(count, 1))


FAMILIES = {
    "gemm": products, "conv": convolutions, "pooling": pools, "rows": of_rows, "quantize": quantizations,
    "lowbit": few_bits, "recurrent": layers, "dynamic": ranges, "attention": heads,
    "embedding": tables, "gradients": gradients_of_rows,
}  # fmt: skip


def main() -> None:
    cupy.cuda.set_allocator(None)
    for name in sys.argv[1:] or FAMILIES:
        FAMILIES[name]()
        cupy.cuda.Device().synchronize()
        sys.stderr.write(f"{name}: done\n")


if __name__ == "__main__":
    main()

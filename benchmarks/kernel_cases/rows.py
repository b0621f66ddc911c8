"""Softmax, LayerNorm and GELU of transformers' activations, and quantization of one of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import Case, Work

SHAPES = ((128, 768), (128, 3072))
FUNCTIONS = ("softmax", "layer norm", "gelu", "tanh", "quantize")
PEERS = dict.fromkeys(FUNCTIONS, ("onnxruntime", "openvino", "torch")) | {"quantize": ("onnxruntime",)}


def cases(quick: bool) -> Iterator[Case]:
    for shape in SHAPES[:1] if quick else SHAPES:
        for function in FUNCTIONS:
            given: dict[str, Any] = {"function": function, "shape": list(shape)}
            yield Case(
                family="rows",
                name=f"{function} {list(shape)}",
                operations=0.0,
                target=1.0,
                ours=lambda threads, seed, given=given: ours(threads=threads, seed=seed, **given),
                peers=dict.fromkeys(PEERS[function], given),
            )


def ours(function: str, shape: list[int], threads: int, seed: int) -> Work:
    """The call in C on arrays that it is bound to, as the peers are to theirs."""
    from pumice_cpu.arrays import empty, pointer
    from pumice_cpu.native import ffi, library
    from pumice_cpu.rows import FUNCTIONS as NUMBERS

    rng, (rows, columns) = np.random.default_rng(seed), shape
    x, out, levels = rng.standard_normal(shape, np.float32), empty(shape), empty(shape, np.uint8)
    scale, bias = np.full(columns, 0.02, np.float32), np.full(columns, 128, np.int32)
    kernels, nothing = library(), ffi().NULL
    source, target, stored, ones, zeros = (pointer(array) for array in (x, out, levels, scale, bias))
    calls: dict[str, Work] = {
        "softmax": lambda: kernels.pumice_softmax(source, target, rows, columns, 0, threads),
        "layer norm": lambda: kernels.pumice_layer_norm(
            source, target, rows, columns, ones, ones, 1e-5, 0, nothing, nothing, threads
        ),
        "gelu": lambda: kernels.pumice_map(NUMBERS["gelu"], source, target, x.size, nothing, threads),
        "tanh": lambda: kernels.pumice_map(NUMBERS["tanh"], source, target, x.size, nothing, threads),
        "quantize": lambda: kernels.pumice_quantize(source, stored, 0, 1, 1, x.size, ones, zeros, 0, 255, threads),
    }
    return calls[function]

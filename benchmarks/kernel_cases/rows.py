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
    from pumice_cpu import rows
    from pumice_cpu.arrays import empty

    rng = np.random.default_rng(seed)
    x, out = rng.standard_normal(shape, np.float32), empty(shape)
    scale, bias = np.ones(shape[-1], np.float32), np.zeros(shape[-1], np.float32)
    calls: dict[str, Work] = {
        "softmax": lambda: rows.softmax(x, out=out, threads=threads),
        "layer norm": lambda: rows.layer_norm(x, scale, bias, out=out, threads=threads),
        "gelu": lambda: rows.map_elements("gelu", x, out=out, threads=threads),
        "tanh": lambda: rows.map_elements("tanh", x, out=out, threads=threads),
        "quantize": lambda: rows.quantize(x, 0.02, 128, threads=threads),
    }
    return calls[function]

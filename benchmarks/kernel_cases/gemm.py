"""Matrix products: f32, bf16 and u8 x s8, weights packed beforehand, result in an array that is there already."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from . import Case, Work

SIZES = ((1024, 1024, 1024), (512, 512, 512), (4096, 1024, 1024), (49, 2048, 512))
BYTES = {"float": 4, "bfloat": 2, "integer": 1}
TARGETS = {"float": 0.97, "bfloat": 1.0, "integer": 1.0}
PEERS: dict[str, dict[str, dict[str, Any]]] = {
    "float": {name: {} for name in ("numpy", "onnxruntime", "openvino", "torch")},
    "bfloat": {name: {} for name in ("openvino", "torch")},
    "integer": {name: {} for name in ("onnxruntime", "torch")},
}


def cases(quick: bool) -> Iterator[Case]:
    for product in ("float", "integer", "bfloat"):
        for m, k, n in SIZES[:2] if quick else SIZES:
            given = {"product": product, "m": m, "k": k, "n": n}
            yield Case(
                family="gemm",
                name=f"{ {'float': 'f32', 'bfloat': 'bf16', 'integer': 'u8s8'}[product] } {m}x{k}x{n}",
                operations=2.0 * m * k * n,
                peak=product,
                target=TARGETS[product],
                weight_bytes=k * n * BYTES[product],
                ours=lambda threads, seed, given=given: ours(threads=threads, seed=seed, **given),
                peers={peer: {**given, **more} for peer, more in PEERS[product].items()},
            )


def ours(product: Literal["float", "bfloat", "integer"], m: int, k: int, n: int, threads: int, seed: int) -> Work:
    import ml_dtypes

    from pumice_cpu.arrays import empty
    from pumice_cpu.gemm import Epilogue, bound, pack

    rng = np.random.default_rng(seed)
    if product == "integer":
        a = rng.integers(0, 256, (m, k)).astype(np.uint8)
        b, output = rng.integers(-127, 128, (k, n)).astype(np.int8), np.int32
    else:
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        a = a.astype(ml_dtypes.bfloat16) if product == "bfloat" else a
        output = ml_dtypes.bfloat16 if product == "bfloat" else np.float32
    packed, epilogue, out = pack(b, product), Epilogue(output=output), empty((m, n), output)
    return bound(a, packed, epilogue, out, a_zero=7 if product == "integer" else 0, threads=threads)

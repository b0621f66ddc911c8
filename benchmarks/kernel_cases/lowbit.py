"""A linear layer of 4096 x 4096 with weights of four bits, and layers whose input is quantized on the way.

`block 128` has a scale for each 128 weights of a column, as onnxruntime's MatMulNBits has; `codebook` has a table of 16
entries and a scale for each column. Targets of four bits are about MatMulNBits.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import Case, Work

SIZE = 4096
TARGETS = {1: 1.3, 8: 2.5, 128: 2.5}
INT8 = {"onnxruntime": {"accuracy": 4}, "openvino": {}}
FLOAT = {"onnxruntime": {"accuracy": 1}}
DYNAMIC = ((1, SIZE, SIZE), (128, 768, 3072))


def cases(quick: bool) -> Iterator[Case]:
    for m in (1, 128) if quick else (1, 8, 128):
        for form, group in (("codebook", None), ("block 128", 128)):
            yield _four_bits(f"int4 {form}, int8 table, M={m}", m, "int8", group, TARGETS[m], INT8)
    yield _four_bits("int4 codebook, fp32 table, M=1", 1, "float32", None, 2.5, FLOAT)
    if not quick:
        yield _four_bits("int4 codebook, bf16 table, M=1", 1, "bfloat16", None, 2.5, FLOAT)
    for m, k, n in DYNAMIC:
        shape = {"m": m, "k": k, "n": n}
        yield Case(
            family="lowbit",
            name=f"dynamic int8 {m}x{k}x{n}",
            operations=2.0 * m * k * n,
            peak="integer",
            target=1.2,
            weight_bytes=k * n,
            ours=lambda threads, seed, shape=shape: dynamic(threads=threads, seed=seed, **shape),
            peers={"onnxruntime": {"form": "dynamic", **shape}},
        )


def _four_bits(
    name: str, m: int, table: str, group: int | None, target: float, peers: dict[str, dict[str, Any]]
) -> Case:
    return Case(
        family="lowbit",
        name=name,
        operations=2.0 * m * SIZE * SIZE,
        peak="integer" if table == "int8" else "float",
        target=target,
        rival="onnxruntime",
        weight_bytes=SIZE * SIZE // 2,
        ours=lambda threads, seed: four_bits(m, table, group, threads, seed),
        peers={name: {"form": "int4", "m": m, "k": SIZE, "n": SIZE, **more} for name, more in peers.items()},
    )


def four_bits(m: int, table: Any, group: int | None, threads: int, seed: int) -> Work:
    from pumice_cpu import lowbit
    from pumice_cpu.arrays import empty

    rng = np.random.default_rng(seed)
    entries: Any = rng.standard_normal((SIZE, 16))
    entries = np.rint(40 * entries).clip(-127, 127).astype(np.int8) if table == "int8" else entries
    scale = rng.uniform(0.01, 0.1, (SIZE, SIZE // group if group else 1))
    weights = lowbit.pack(rng.integers(0, 16, (SIZE, SIZE)), entries, scale, group=group, table_type=table)
    a, out = rng.standard_normal((m, SIZE), np.float32), empty((m, SIZE))
    return lowbit.bound(a, weights, None, out, threads=threads)


def dynamic(m: int, k: int, n: int, threads: int, seed: int) -> Work:
    from pumice_cpu.arrays import empty
    from pumice_cpu.dynamic import bound
    from pumice_cpu.gemm import pack

    rng = np.random.default_rng(seed)
    weights = pack(rng.integers(-127, 128, (k, n)).astype(np.int8), "integer")
    scale, a, out = rng.uniform(0.01, 0.1, n).astype(np.float32), rng.standard_normal((m, k), np.float32), empty((m, n))
    return bound(a, weights, scale, None, out, threads=threads)

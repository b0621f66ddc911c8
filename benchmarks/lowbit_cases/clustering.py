"""k-means alone, on a layer of 4096 by 4096, on two cores: every way in which weights share a codebook."""

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from runs import Record, Run

PART = "clustering"
SIDE, ENTRIES, TRIES, CORES = 4096, 16, 3, 2


def runs() -> list[Run]:
    """The only one."""
    return [Run(name=PART, function=clustering, arguments=(SIDE,))]


def clustering(side: int, _folder: Path) -> Record:
    """Seconds, the best of a few."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(os.getppid()))[:CORES])  # those of the whole benchmark
    from pumice_quant_kmeans.clustering import clustered

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((side, side)).astype(np.float32)
    loudness = np.broadcast_to(rng.random(side), weights.shape)
    return {
        what: min(_seconds(functools.partial(clustered, numbers, heavy, ENTRIES, 0)) for _ in range(TRIES))
        for what, numbers, heavy in (
            ("an output", weights, None),
            ("an output, weighted by its inputs", weights, loudness),
            ("a tensor", weights.reshape(1, -1), None),
            ("a tensor, weighted by its inputs", weights.reshape(1, -1), loudness.reshape(1, -1)),
        )
    }


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def shown(records: Mapping[str, Record]) -> list[Record]:
    """Print the figures, and return them."""
    found = records.get(PART, {})
    for what, seconds in found.items():
        print(f"k-means, {ENTRIES} centroids {what}, {SIDE} x {SIDE}: {seconds:.2f} s")
    return [{"case": f"k-means of {SIDE} x {SIDE}", "variant": what, "seconds": s} for what, s in found.items()]

"""k-means alone, on a layer of 4096 by 4096: seconds for 16 centroids an output, and for one codebook for all of it."""

import time
from collections.abc import Callable

import numpy as np

SIDE, ENTRIES, TRIES = 4096, 16, 3


def run(keep: Callable[..., None]) -> None:
    """Measure and print."""
    from pumice_quant_kmeans.clustering import clustered

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    loudness = np.broadcast_to(rng.random(SIDE), weights.shape)
    for what, numbers, heavy in (
        ("an output", weights, None),
        ("an output, weighted by its inputs", weights, loudness),
        ("a tensor", weights.reshape(1, -1), None),
        ("a tensor, weighted by its inputs", weights.reshape(1, -1), loudness.reshape(1, -1)),
    ):
        times = []
        for _ in range(TRIES):
            began = time.perf_counter()
            clustered(numbers, heavy, ENTRIES, 0)
            times.append(time.perf_counter() - began)
        print(f"k-means, {ENTRIES} centroids {what}, {SIDE} x {SIDE}: {min(times):.2f} s")
        keep([], [{"case": f"k-means of {SIDE} x {SIDE}", "variant": what, "seconds": min(times)}])

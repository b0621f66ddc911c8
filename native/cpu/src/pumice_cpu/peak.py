"""The arithmetic peak of this machine: multiply-adds on registers alone, which no product can beat."""

from __future__ import annotations

import time

from pumice_cpu.gemm import PRODUCTS, Product
from pumice_cpu.native import library


def peak(product: Product, *, threads: int = 1, rounds: int = 15, seconds: float = 0.01) -> float:
    """Operations a second (a multiply-add is two) of the level in force: the best of `rounds`, each of `seconds`."""
    repeats, best = 1000, 0.0
    while _timed(product, repeats, threads)[1] < seconds:
        repeats *= 2
    for _ in range(rounds):
        operations, seconds = _timed(product, repeats, threads)
        best = max(best, operations / seconds)
    return best


def _timed(product: Product, repeats: int, threads: int) -> tuple[int, float]:
    start = time.perf_counter()
    operations = int(library().pumice_peak(PRODUCTS[product], repeats, threads))
    return operations, time.perf_counter() - start

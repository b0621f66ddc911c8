"""Peers of `bench_cuda.py` that no Python package offers as they are measured."""

"""The parts of `bench_pruning.py`: each prints its table and returns its record."""

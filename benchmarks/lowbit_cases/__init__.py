"""The parts of `bench_lowbit.py`: each prints its table as it goes and tells `record` what it measured."""

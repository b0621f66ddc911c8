"""What `bench_distil.py` distils: pictures, sentences and characters, each run in a process of its own on one core."""

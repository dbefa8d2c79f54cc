"""What `benchmarks/reallocation.py` runs and measures: the same training, elastic and under Tune's own scheduler."""

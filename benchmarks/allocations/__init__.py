"""The parts of `benchmarks/policy.py`."""

"""What `benchmarks/recovery.py` runs and measures: the same losses under AdaptDL and under Ray Train's elastic mode."""

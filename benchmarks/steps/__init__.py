"""What a step costs with everything adaptive on, beside plain DistributedDataParallel: see `step_time.py`."""

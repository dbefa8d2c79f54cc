"""Training until a target is reached, at batch sizes that are held or follow the goodput: see `efficiency.py` and
`time_to_accuracy.py`."""

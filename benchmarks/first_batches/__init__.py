"""How long the first batch takes after a change: see `first_batch.py`."""

"""How noisy gradients are, and what is measured of it: see `noise_scale.py`."""

"""AdaptDL: elastic, goodput-driven PyTorch trials for Ray Tune.

This package is light: it imports neither torch nor ray. The parts are imported by name:

* :mod:`adaptdl.torch`: the training side (loader, data parallel, epochs), for the user's training function.
* :mod:`adaptdl.tune`: the scheduler and the trainable, for the user's call of Ray Tune.
* :mod:`adaptdl.runtime`: replica groups and the allocator on Ray, without Tune.
* :mod:`adaptdl.policy`: who gets what; for authors of policies.
* :mod:`adaptdl.goodput`: what training is worth: throughput, statistical efficiency, best batch size.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"

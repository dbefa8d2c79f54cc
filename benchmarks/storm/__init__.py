"""What `benchmarks/chaos.py` is made of: a cluster that loses replicas and nodes by a seeded schedule, the training it
hits, and what the batches that were handed out tell of it afterwards. `benchmarks/recovery.py` uses parts of it."""

"""
Measures the engine's speed on this machine, and the device's limits: `python -m runtime.bench`.

Needs only torch and Triton.  `work` holds the workloads; `engine` and `peers` run them; `ceilings`
measures the device, and `roofline` computes the least time that it allows.  `session` runs it all
and `report` prints it.  It never serves and never reads weights: they are random.
"""

"""
How fast is the engine on this machine, and how fast could it be: `python -m runtime.bench`.

Runs where only torch and Triton are.  `work` is what is asked, `engine` and `peers` do it,
`ceilings` measures the device and `roofline` says what it allows; `session` runs all of it and
`report` prints it.  It never serves, and never reads weights: they are random.
"""

"""
Plans a model's memory before it is loaded.  Pure.

`footprint` computes the size of each part; `plan` gives the remaining memory to the KV cache.
"""

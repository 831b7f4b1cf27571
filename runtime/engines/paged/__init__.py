"""
Slipway's own engine: continuous batching over a paged KV cache, in a process of its own.

`client` is the API's end, `worker` the loop of the process.  `scheduler` decides what a `step`
computes, with a `queue`, a `batcher` and a `block_allocator`; `runner` computes it.  `load_engine`
loads a model; `runtime.memory` plans what fits beforehand.

Only `runner` and `load_engine` import torch; the API process imports neither.
"""

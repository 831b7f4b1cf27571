"""
Engines: token ids in, token ids out, each in a process of its own.

`base` is what they share, `paged` is slipway's engine, `tensor_parallel` spreads it over several
GPUs, `vllm` runs `vllm serve` behind the same interface.
"""

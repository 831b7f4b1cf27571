"""
`vllm serve` as the engine, for those who have it.

`client` has the interface of `runtime.engines.paged.client`; `process` starts vLLM and ends it,
`pdeathsig` ends it with its parent, `protocol` has its words, `unix_http` carries them.
"""

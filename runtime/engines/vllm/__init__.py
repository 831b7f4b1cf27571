"""
`vllm serve` as the engine, for those who have it.

`client` is the API's end, `process` starts and ends vLLM, `protocol` holds its requests and
answers, `unix_http` carries them.
"""

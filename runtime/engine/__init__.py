"""
The engine: token ids in, token ids out, in a process of its own.

`protocol` is what crosses the socket, `client` is the API's end, `worker` is the process,
`scheduler` decides who is computed, `runner` computes.  Only `runner` and `sampling` import
torch, and the API imports neither.
"""

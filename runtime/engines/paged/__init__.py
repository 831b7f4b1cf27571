"""
The engine: token ids in, token ids out, in a process of its own.

`protocol` is what crosses the socket, `client` is the API's end, `worker` is the process,
`scheduler` decides who is computed, over the `pages` of the cache and a `queue`, and `runner`
computes.  `opening` makes a model ready; `runtime.memory` says beforehand what will fit.

`parallel` shares a model out to several GPUs: `ranks` starts a `follower` for each but the first,
and `pipe` carries what they are told.

Torch is imported by `runner`, `opening`, `parallel` and `follower` alone, and the API imports none.
"""

"""
The version matrix: which torch, CUDA, Python and driver belong together.  Never touches a host.

`matrix.yml` has the rows that a fleet file may name; `compatibility.json` has all that is known,
generated from `sources/`; `resolver` answers questions to it.
"""

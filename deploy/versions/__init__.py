"""
The version matrix: which torch, CUDA, Python and driver belong together.  Never touches a host.
"""

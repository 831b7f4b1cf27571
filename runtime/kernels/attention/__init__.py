"""
Attention over the paged cache: `dispatch` chooses, `decode` and `prefill` are the kernels.
"""

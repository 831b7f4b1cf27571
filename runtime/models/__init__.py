"""
Decoders in torch: one file an architecture family, and the loader of standard directories.
They compute hidden states and logits; who is in the batch and where its cache lies is not theirs.
"""

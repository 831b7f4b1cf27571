"""
Decoders: one for all families, what their configurations say, and the loader of their files.
They compute hidden states and logits; who is in the batch and where its cache lies is not theirs.
"""

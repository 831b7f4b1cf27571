"""
The decoder of all model families, its configuration, and the loader of its weights.

It computes hidden states and logits.  It has no notion of requests or of the cache's layout.
"""

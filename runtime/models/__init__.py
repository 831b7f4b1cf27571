"""
The decoder of all model families, its configuration and the loader of its weights.

It computes hidden states and logits; it knows neither the batch's requests nor the cache's layout.
"""

"""
The API process: HTTP, text and tokens, admission, metrics and the life of one runtime process.

It never imports torch: an engine of `runtime.engines` computes in a process of its own.
"""

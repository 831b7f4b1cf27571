"""
The arithmetic of a decoder's step: one file for each operation; each kernel has a reference.

`reference` runs anywhere and defines the result; `fused` combines the Triton kernels and runs on a
GPU, or slowly in Triton's interpreter.  Has no notion of requests or model files.
"""

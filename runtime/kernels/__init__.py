"""
The arithmetic of a decoder's step: one file for each operation, each kernel with a torch reference.

`reference` runs anywhere and defines the result; `fused` combines the Triton kernels and runs on a
GPU, or slowly in Triton's interpreter.  Knows neither requests nor model files.
"""

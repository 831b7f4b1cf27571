"""
The arithmetic of a decoder's step: one file a subject, each kernel with a torch reference.

`reference` runs anywhere and says what is right; `fused` joins the Triton kernels and runs on a
GPU, or slowly in Triton's interpreter.  Nothing here knows of requests, queues or models' files.
"""

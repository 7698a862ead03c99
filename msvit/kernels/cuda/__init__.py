"""CUDA: the passes as Triton kernels."""

"""Triton kernels for CUDA and HIP devices."""

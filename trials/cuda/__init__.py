"""Triton kernels that all engines share: CUDA alone, imported only there."""

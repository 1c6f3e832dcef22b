"""What packs do on CUDA by kernels of their own. Needs Triton, which comes with torch for CUDA."""

"""The seam to CUDA, its binding, and the memory of a runner."""

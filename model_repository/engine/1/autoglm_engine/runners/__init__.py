"""What computes a step: the seam, and one package a runtime."""

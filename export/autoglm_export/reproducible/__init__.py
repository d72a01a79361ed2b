"""Arithmetic for the exporter whose every bit is the same on any x86-64 CPU, with any number of threads.

What an export writes must not depend on the machine that exported: BLAS, LAPACK and the vectorised exp, sin and pow of
numpy and libm choose another order of additions, or other instructions, on another CPU. So sums have one fixed order
here, and a product is fused with an addition only where it is exact: see `reference.py`, which is the definition. Where
a C++ compiler is at hand, `kernels.cpp` computes the same bits some hundred times faster.
"""

from __future__ import annotations

from functools import lru_cache

from .interface import Array, Kernels
from .transcendental import power, sine_cosine

__all__ = ["Array", "Kernels", "kernels", "power", "sine_cosine"]


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """The compiled kernels, or without a C++ compiler the reference in numpy, which is slow."""
    from autoglm_export.compiler import can_build_here

    if can_build_here():
        from .compiled import CompiledKernels

        return CompiledKernels()
    from .reference import ReferenceKernels

    return ReferenceKernels()

"""The native CPU decoder: its C++ sources, and `compiler.py`, which builds them for a machine."""

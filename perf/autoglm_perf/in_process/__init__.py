"""The engine and the exporter without Triton."""

"""Lowering to TensorRT engines."""

"""Lowering to ONNX graphs."""

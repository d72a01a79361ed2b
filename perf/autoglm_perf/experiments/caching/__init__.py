"""Experiments: what is not computed twice."""

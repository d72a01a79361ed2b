"""Experiments: what they are, running them, and the report."""

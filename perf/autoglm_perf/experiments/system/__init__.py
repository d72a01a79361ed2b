"""Experiments: the whole system."""

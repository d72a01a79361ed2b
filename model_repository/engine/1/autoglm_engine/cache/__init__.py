"""Whole answers that are kept and shared, in front of the engine."""

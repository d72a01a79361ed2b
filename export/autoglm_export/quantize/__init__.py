"""Rounding weights so that a model stays what it was."""

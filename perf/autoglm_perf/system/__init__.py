"""Processes, memory and Redis of a measurement."""

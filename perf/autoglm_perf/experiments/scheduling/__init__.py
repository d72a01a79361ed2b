"""Experiments: who is served when, and with whom."""

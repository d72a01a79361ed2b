"""Screens of phones, models that read them, and other servers of the same models."""

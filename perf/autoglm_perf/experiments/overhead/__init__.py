"""Experiments: what each part costs beside the model."""

"""What generation needs of a checkpoint beside its weights: where answers end, defaults, templates, named tokens."""

"""The check of a GPU against a reference in numpy."""

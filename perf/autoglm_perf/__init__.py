"""Load generator, naive baseline and reports."""

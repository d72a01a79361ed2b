"""`make bench-gpu`."""

"""Drawn phone screens with coloured, numbered buttons, what is asked about them, and the model that was trained to
answer."""

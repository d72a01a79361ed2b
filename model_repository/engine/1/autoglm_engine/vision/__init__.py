"""Images: their sizes and places in a prompt, and from their bytes to features."""

"""What the engine does about images: their token ids, their features, and who waits for them."""

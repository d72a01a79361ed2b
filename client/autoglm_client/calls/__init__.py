"""One request under way: sending, retrying, cancelling, and the pieces of its answer."""

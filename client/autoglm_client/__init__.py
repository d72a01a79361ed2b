"""A thin client of the Triton ensemble `autoglm`. It knows no model."""

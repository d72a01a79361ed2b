"""The export of a sentence-embedding model."""

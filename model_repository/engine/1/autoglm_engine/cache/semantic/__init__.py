"""The tier of the cache that finds answers by the meaning of their question."""

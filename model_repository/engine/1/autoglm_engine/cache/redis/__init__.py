"""The tier of the cache that lies in Redis."""

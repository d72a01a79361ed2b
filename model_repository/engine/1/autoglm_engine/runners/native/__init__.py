"""The native CPU runtime: C++ libraries that an artifact carries."""

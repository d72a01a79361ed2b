"""The command `autoglm`. Each command lives in a module of its own; `app` puts them together."""

from .app import app, main

__all__ = ["app", "main"]

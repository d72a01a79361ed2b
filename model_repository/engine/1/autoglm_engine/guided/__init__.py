"""Structured output: grammars, their compilation, and the masks of allowed tokens."""

"""Paths that more than one layer knows."""

CHAT = "/v1/chat/completions"
GENERATING = (CHAT, "/v1/completions")  # the endpoints that take bodies
HEALTH = frozenset({"/health", "/health/live", "/health/ready"})  # always open, also where nothing else is answered

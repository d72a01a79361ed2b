"""Paths that more than one layer knows."""

CHAT = "/v1/chat/completions"
GENERATING = (CHAT, "/v1/completions")
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"  # vLLM's
WITH_BODY = frozenset((*GENERATING, TOKENIZE, DETOKENIZE))
WITH_IMAGES = frozenset((CHAT, TOKENIZE))
HEALTH = frozenset({"/health", "/health/live", "/health/ready"})  # always open, also where nothing else is answered

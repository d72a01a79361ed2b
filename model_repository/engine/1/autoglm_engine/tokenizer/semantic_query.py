"""What of a prompt the semantic cache compares: its question, by meaning, and all else, to the byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from autoglm_engine.core import SemanticQuery

MAX_QUESTION_CHARACTERS = 2000  # about what the embedder reads; a longer text is never compared
_DIGEST_BYTES = 16


def question_of_text(text: str) -> SemanticQuery | None:
    return _question("text", text.strip(), "", "")


def question_of_messages(messages: Sequence[Mapping[str, Any]], rendered: str) -> SemanticQuery | None:
    """The last message, where it is the user's and stands as it is in the `rendered` prompt; the rest of that is the
    context, so that whatever else the model sees is equal in all prompts of one context."""
    last = messages[-1]
    content = last.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    text = text.strip()
    before, found, after = rendered.rpartition(text) if text else ("", "", "")
    return _question("messages", text, before, after) if found and last["role"] == "user" else None


def _question(kind: str, text: str, before: str, after: str) -> SemanticQuery | None:
    if not 1 <= len(text) <= MAX_QUESTION_CHARACTERS:
        return None
    parts = [hashlib.blake2b(part.encode(), digest_size=_DIGEST_BYTES).digest() for part in (kind, before, after)]
    return SemanticQuery(text, hashlib.blake2b(b"".join(parts), digest_size=_DIGEST_BYTES).hexdigest())

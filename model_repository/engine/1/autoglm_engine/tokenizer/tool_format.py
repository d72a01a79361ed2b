"""In which form a model writes its calls, told by its chat template; and the tokens that such a form is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PLAIN_TEXT = "hermes"  # of `tool_prompt`
UNKNOWN = "unknown"

# The first one whose mark is in the template. A form's own mark goes before those that several forms have.
_MARKS = (
    ("mistral", "[TOOL_CALLS]"),
    ("glm-xml", "<arg_key>"),
    (UNKNOWN, "<function="),  # Qwen's coders: tags in <tool_call>
    ("hermes", "<tool_call>"),
    ("llama", "<|python_tag|>"),
    ("llama", "<|start_header_id|>"),
    ("glm", "<|observation|>"),
)

# Some checkpoints call these special, which would keep them out of the text; but they are what tells a call.
CALL_TOKENS = frozenset(
    {
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    }
)


def tool_format(template: str | None, *, uses_tools: bool) -> str:
    """`template`: its source; None where the model has none, and takes no messages."""
    if template is None:
        return UNKNOWN
    if not uses_tools:
        return PLAIN_TEXT
    return next((name for name, mark in _MARKS if mark in template), UNKNOWN)


def call_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Those that it has, and their ids."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in added.items() if token.content in CALL_TOKENS}

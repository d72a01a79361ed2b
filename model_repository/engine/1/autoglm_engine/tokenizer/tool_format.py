"""In which form a model writes its calls, told by its chat template; and the tokens that such a form is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .chat_template import template_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PLAIN_TEXT = "hermes"  # of `tools.plain_text`
UNKNOWN = "unknown"

# The first one whose mark is in the template. A form's own mark goes before those that several forms have.
_MARKS = (
    ("mistral", "[TOOL_CALLS]"),
    ("glm-xml", "<arg_key>"),
    (UNKNOWN, "<function="),  # Qwen's coders: tags in <tool_call>
    (UNKNOWN, "<invoke name="),  # MiniMax, likewise
    (UNKNOWN, ">>>"),  # Functionary, in Llama's turns
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


@dataclass(frozen=True, slots=True)
class ToolWays:
    """What a template takes of tools. `form`: of the calls that the model writes. `tools`: where they are told;
    `calls`: as what a turn tells them."""

    form: str
    tools: Literal["variable", "system item", "plain text"] = "plain text"
    calls: Literal["tool_calls", "metadata", "plain text"] = "plain text"


def tool_ways(source: str) -> ToolWays:
    """Of a template's source. One that has no place for calls is told in plain text. Raises ArtifactError for what is
    no template."""
    given, named = template_names(source)
    form = next((name for name, mark in _MARKS if mark in source), UNKNOWN)
    calls: Literal["tool_calls", "metadata"] | None = None
    if "tool_calls" in named:
        calls = "tool_calls"
    elif "metadata" in named:  # GLM-4: one turn a call, and a role of its own for what came of it
        calls, form = "metadata", "glm"
    if calls is None:
        return ToolWays(PLAIN_TEXT)
    if "tools" in given:
        return ToolWays(form, "variable", calls)
    if calls == "metadata" and "tools" in named:
        return ToolWays(form, "system item", calls)
    return ToolWays(PLAIN_TEXT)


def call_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Those that it has, and their ids."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in added.items() if token.content in CALL_TOKENS}

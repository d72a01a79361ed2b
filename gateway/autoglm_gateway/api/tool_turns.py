"""Messages that call functions or answer calls, as the server takes them."""

from __future__ import annotations

from typing import Any

from autoglm_gateway.errors import ApiError
from autoglm_gateway.tools.schema import ToolTurn


def tool_fields(role: str, turn: ToolTurn, place: str) -> dict[str, Any]:
    """Of the message `place`. Raises ApiError where its role does not have them, or lacks one."""
    if turn.tool_calls is not None and role != "assistant":
        raise _misplaced(f"{place}.tool_calls", "only an assistant's message has them", role)
    if turn.tool_call_id is not None and role != "tool":
        raise _misplaced(f"{place}.tool_call_id", "only a tool's message has it", role)
    if role == "tool" and turn.tool_call_id is None:
        raise _misplaced(f"{place}.tool_call_id", "it is missing: it says which call the message answers", role)
    fields: dict[str, Any] = {}
    if turn.tool_calls is not None:
        fields["tool_calls"] = [call.model_dump() for call in turn.tool_calls]
    if turn.tool_call_id is not None:
        fields["tool_call_id"] = turn.tool_call_id
    return fields


def _misplaced(name: str, why: str, role: str) -> ApiError:
    return ApiError(400, f"{name}: {why}; the role is {role!r}", param=name, code="invalid_value")

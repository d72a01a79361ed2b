"""Triton's request parameters beside the tensors: what may be a misspelt option is refused, everything else is let
pass.

Where they come from: `/generate` makes one of every key of its JSON that names no input (and of `id`), gRPC has a field
for them, and `--http-header-forward-pattern` and `--grpc-header-forward-pattern` make one of every header that matches,
which meshes and tracing add to requests without their callers knowing.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection
from typing import Any

from autoglm_engine.errors import InvalidRequest

from .table import known_aliases

_SIMILAR = 0.75  # difflib's ratio: "max_token" and "topk" are nearer to an option, "traceparent" and "timeout" are not
_HEADER = "-"  # no option has one, nearly every header has

# What other servers call an option -> what it is here. Dropped in silence, each would change the answer.
_RENAMED = {
    **known_aliases(),
    **dict.fromkeys(("prompt", "inputs"), "text_input"),
    "functions": "tools",
    "guided_decoding_guide": "guided_json, guided_regex or guided_grammar",
}
# What other servers have, and this one has not.
_MISSING = (
    *("beam_width", "num_return_sequences", "sampling_parameters", "prompt_logprobs", "end_id"),
    *("lora_name", "lora_task_id", "image", "images", "echo"),
)


def read_parameters(parameters: str, options: Collection[str], used: Collection[str]) -> dict[str, Any]:
    """Those that are `used`. `parameters`: a JSON object, or nothing. `options`: the names of the input tensors. Raises
    InvalidRequest."""
    if not parameters or parameters == "{}":
        return {}
    given: dict[str, Any] = json.loads(parameters)
    for name in sorted(given.keys() - used):
        if reason := _refusal(name, options):
            raise InvalidRequest(f"{reason}; the options are {', '.join(options)}")
    return {name: value for name, value in given.items() if name in used}


def _refusal(name: str, options: Collection[str]) -> str | None:
    plain = name.lower().replace(_HEADER, "_")
    if plain in options:
        return f"{name} is an input tensor{'' if name == plain else f', {plain}'}, and came as a request parameter"
    if _HEADER in name or name.startswith("triton_"):
        return None
    if plain in _RENAMED:
        return f"unknown option {name}; here it is {_RENAMED[plain]}"
    if plain in _MISSING:
        return f"unknown option {name}, which this server does not have"
    similar = difflib.get_close_matches(plain, options, n=1, cutoff=_SIMILAR)
    return f"unknown option {name}; the nearest is {similar[0]}" if similar else None

"""vLLM's sampling parameters, as `vllm_backend` takes them: a JSON object whose numbers and flags may be texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from autoglm_engine.errors import InvalidRequest

from .json_names import json_type
from .parsing import MAX_GUIDE_BYTES, decode_utf8
from .table import OPTIONS, VLLM, options_on

NAME = "sampling_parameters"
MAX_BYTES = 4 * MAX_GUIDE_BYTES
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


def _of_kind(*kinds: str) -> tuple[str, ...]:
    return tuple(option.name for option in options_on(VLLM) if option.kind in kinds)


# What is done anyway, and what would ask for more.
_ONLY: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "use_beam_search": False,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "detokenize": True,
}
_WITHOUT_EFFECT = ("early_stopping", "length_penalty", "spaces_between_special_tokens")
_GUIDES = ("guided_decoding", "structured_outputs")
NAMES = (
    *_of_kind("INT32", "INT64", "FP32"),
    *_of_kind("BOOL"),
    *_of_kind("STRINGS"),
    "stop_token_ids",
    *_of_kind("JSON"),
    *_ONLY,
    *_WITHOUT_EFFECT,
    *_GUIDES,
)

_LARGEST = float(np.finfo(np.float32).max)

Given = Iterator[tuple[str, Any]]  # (option, its value as `OptionRules.check` takes it)


def read_object(raw: bytes) -> dict[str, Any]:
    """Raises InvalidRequest."""
    if len(raw) > MAX_BYTES:
        raise InvalidRequest(f"{NAME} has {len(raw)} bytes; at most {MAX_BYTES} are allowed")
    try:
        found = json.loads(decode_utf8(raw, NAME))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{NAME} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{NAME} is {json_type(found)}; it must be an object of sampling parameters")
    return {name: value for name, value in found.items() if value is not None}


def options_of(parameters: Mapping[str, Any]) -> Given:
    """`stop_token_ids` comes as it is. Raises InvalidRequest for what is unknown, or not done here."""
    for name, value in parameters.items():
        if name in _ONLY:
            _check_only(name, value)
        elif name in _GUIDES:
            yield from _guide(name, value)
        elif name in _WITHOUT_EFFECT:
            continue
        elif name not in NAMES:
            known = ", ".join(NAMES)
            raise InvalidRequest(f"{NAME} has {name!r:.40}, which is not known here; known are {known}")
        else:
            yield name, _value(name, value)


def _value(name: str, value: Any) -> Any:
    if name == "stop_token_ids":
        return value
    match OPTIONS[name].kind:
        case "STRINGS":
            return _strings(name, value)
        case "BOOL":
            return _flag(name, value)
        case "JSON":
            return json.dumps(value).encode()
    number = _number(name, value)
    return max(1, int(number)) if name == "logprobs" and number == 0 else number


def _check_only(name: str, value: Any) -> None:
    wanted = _ONLY[name]
    found = _flag(name, value) if isinstance(wanted, bool) else _number_of_type(name, value, int)
    if found != wanted:
        raise InvalidRequest(f"{NAME}.{name} is {json.dumps(value):.40}; it must be {json.dumps(wanted)} here")


def _number(name: str, value: Any) -> int | float:
    """As a tensor of the option's type would hold it, so that equal requests are equal however they were said."""
    if OPTIONS[name].dtype.startswith("INT"):
        return _number_of_type(name, value, int)
    number = _number_of_type(name, value, float)
    return float(np.float32(number)) if abs(number) < _LARGEST else number


def _number_of_type(name: str, value: Any, kind: type[int] | type[float]) -> int | float:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = kind(value)
        if number != float(value):
            raise ValueError
    except (ValueError, OverflowError):
        wanted = "a whole number" if kind is int else "a number"
        raise InvalidRequest(f"{NAME}.{name} is {json.dumps(value):.40}; it must be {wanted}") from None
    return number


def _flag(name: str, value: Any) -> bool:
    found = value if isinstance(value, bool) else _FLAGS.get(str(value).lower())
    if found is None:
        raise InvalidRequest(f"{NAME}.{name} is {json.dumps(value):.40}; it must be true or false")
    return found


def _strings(name: str, value: Any) -> list[bytes]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise InvalidRequest(f"{NAME}.{name} is {json.dumps(value):.40}; it must be a string or a list of strings")
    return [string.encode(errors="surrogatepass") for string in strings]


def _guide(name: str, value: Any) -> Given:
    """vLLM's guided decoding: an object, or that as a text."""
    guide = value
    if isinstance(value, str):
        try:
            guide = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{NAME}.{name} is not JSON: {error}") from None
    if not isinstance(guide, dict):
        raise InvalidRequest(f"{NAME}.{name} is {json_type(guide)}; it must be an object")
    for kind, content in guide.items():
        if content is None or content is False:
            continue
        if kind == "json":
            schema = content if isinstance(content, str) else json.dumps(content)
            yield "guided_json", schema.encode(errors="surrogatepass")
        elif kind == "json_object":
            yield "guided_json", b'{"type": "object"}'
        elif kind == "regex" and isinstance(content, str):
            yield "guided_regex", content.encode(errors="surrogatepass")
        elif kind == "choice" and isinstance(content, list) and content:
            yield "guided_regex", _any_of(name, content).encode(errors="surrogatepass")
        else:
            raise InvalidRequest(
                f"{NAME}.{name}.{kind:.40} is {json.dumps(content):.40}; guides here are json (a schema), "
                "json_object (true), regex (a string) and choice (a list of strings)"
            )


def _any_of(name: str, choices: list[Any]) -> str:
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequest(f"{NAME}.{name}.choice is {json.dumps(choices):.40}; it must be a list of strings")
    return "|".join("".join(f"\\{c}" if c in r"\.+*?()|[]{}^$#&-~" else c for c in choice) for choice in choices)

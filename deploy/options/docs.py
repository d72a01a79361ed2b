"""The tables of the docs, in Markdown."""

from __future__ import annotations

from enum import Enum

from autoglm_engine.options.table import EXTENSION, OPTIONS, PROMPTS, VLLM, Option, options_on

_MAX_INT64 = 2**63 - 1
_HEAD = "| input | type | shape | default | range | meaning |\n|---|---|---|---|---|---|\n"


def input_table() -> str:
    return f"\n{_HEAD}{''.join(_row(option) for option in (*PROMPTS.values(), *OPTIONS.values()))}"


def extension_names() -> str:
    return ", ".join(option.name for option in options_on(EXTENSION))


def vllm_names() -> str:
    """`logprobs` has a row of its own."""
    return ", ".join(option.name for option in options_on(VLLM) if option.name != "logprobs")


def _row(option: Option) -> str:
    shape = -1 if option.is_list else 1
    meaning = f"{option.meaning} ([more]({option.see}))" if option.see else option.meaning
    cells = (option.name, option.dtype, f"[{shape}]", _default(option), _range(option), meaning)
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|\n"


def _default(option: Option) -> str:
    default = f"generation config, else {_shown(option.default)}" if option.from_model else _shown(option.default)
    if option.unset:
        return option.unset if option.default is None else f"{default}, {option.unset}"
    return default


def _shown(default: object) -> str:
    if isinstance(default, Enum):
        return str(default.value)
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, (int, float)) else "none"


def _range(option: Option) -> str:
    words = option.allowed or _bounds(option) or ", ".join(option.choices) or _lengths(option)
    return f"JSON: {words}" if option.kind == "JSON" else words


def _bounds(option: Option) -> str:
    if option.low is None:
        return ""
    between = "above {} and at most {}" if option.low_open else "{} ... {}"
    return between.format(_bound(option.low), _bound(option.high))


def _lengths(option: Option) -> str:
    if option.max_bytes:
        return f"up to {option.max_bytes:,} bytes"
    if option.characters is None:
        return ""
    low, high = option.characters
    each = f"{low} ... {high} characters" if low else f"at most {high} characters"
    return f"up to {option.max_items} texts of {each}" if option.max_items else each


def _bound(bound: object) -> str:
    if bound == _MAX_INT64:
        return "2^63-1"
    return f"{bound:,}" if isinstance(bound, (int, float)) else str(bound)

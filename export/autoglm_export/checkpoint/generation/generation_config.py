"""generation_config.json -> the defaults of the serving options.

As in transformers, `do_sample` (false unless it is given) decides: without it the answer is greedy, temperature 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_engine.options.table import OPTIONS, Option

from autoglm_export.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float
    low_included: bool = True

    def __contains__(self, value: float) -> bool:
        return (self.low <= value if self.low_included else self.low < value) and value <= self.high

    def __str__(self) -> str:
        return f"{'' if self.low_included else 'above '}{self.low:g} ... {self.high:g}"


def generation_defaults(generation: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Option name -> default, under the names and in the ranges of the table of options."""
    ranges = {option.name: _range(option, vocab_size) for option in OPTIONS.values() if option.from_model}
    defaults = {name: generation[name] for name in ranges if generation.get(name) is not None}
    if not generation.get("do_sample"):
        defaults["temperature"] = 0.0
    defaults.setdefault("temperature", 1.0)
    for name, value in defaults.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value not in ranges[name]:
            raise CheckpointError(f"generation_config.json has {name} {value!r}; allowed is {ranges[name]}")
    return {name: int(value) if name == "top_k" else float(value) for name, value in defaults.items()}


def _range(option: Option, vocab_size: int) -> Range:
    """A request's -1 of `top_k` is no value of a checkpoint."""
    assert isinstance(option.low, (int, float)), f"{option.name} has no range"
    high = {"vocab_size": vocab_size}[option.high] if isinstance(option.high, str) else option.high
    assert high is not None, f"{option.name} has no range"
    return Range(max(0, option.low), high, low_included=not option.low_open)


def bos_token_id(vocab_size: int, *configs: Mapping[str, Any]) -> int | None:
    """The first config's that is given. None where none is, or it is negative, as some checkpoints say that they have
    none."""
    found = next((c["bos_token_id"] for c in configs if c.get("bos_token_id") is not None), None)
    if type(found) is not int or found < 0:
        return None
    if found >= vocab_size:
        raise CheckpointError(f"bos_token_id is {found}; the model's ids are 0 ... {vocab_size - 1}")
    return found

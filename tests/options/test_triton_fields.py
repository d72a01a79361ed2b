"""Triton's own fields of a request: what the tokenizer makes of `timeout` and of `priority`."""

from __future__ import annotations

from typing import Any

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.options import OptionRules
from autoglm_engine.options.table import OPTIONS
from autoglm_engine.options.triton_fields import MAX_TIMEOUT_US, shortest_deadline_ms

RULES = OptionRules(max_length=64, vocab_size=100, defaults={})


@pytest.mark.parametrize(
    ("deadline_ms", "timeout_us", "parameters", "expected"),
    [
        (None, 0, {}, None),
        (None, 0, {"timeout": 0}, None),
        (70, 0, {}, 70),
        (None, 5_000_000, {}, 5000),
        (None, 0, {"timeout": 1500}, 1.5),
        (70, 5_000_000, {}, 70),
        (9000, 5_000_000, {}, 5000),
        (9000, 5_000_000, {"timeout": 2_000_000}, 2000),
        (None, MAX_TIMEOUT_US, {}, 86_400_000),
    ],
)
def test_the_shortest_limit_holds(
    deadline_ms: int | None, timeout_us: int, parameters: dict[str, Any], expected: float | None
) -> None:
    assert shortest_deadline_ms(deadline_ms, timeout_us, parameters) == expected


@pytest.mark.parametrize("wrong", [-1, 1.5, "5s", True, False, None, [1], MAX_TIMEOUT_US + 1, 2**64 - 1])
def test_another_timeout_is_refused_in_one_sentence(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^timeout is .*; it must be a whole number of microseconds between 0"):
        shortest_deadline_ms(None, 0, {"timeout": wrong})


def test_a_grpc_timeout_is_held_to_the_same_range() -> None:
    with pytest.raises(InvalidRequest, match="timeout is 18446744073709551615; it must be"):
        shortest_deadline_ms(None, 2**64 - 1, {})


@pytest.mark.parametrize(
    ("given", "level"), [({}, 5), ({"priority": 0}, 5), ({"priority": 1}, 1), ({"priority": 9}, 9)]
)
def test_no_priority_is_the_default_one(given: dict[str, Any], level: int) -> None:
    assert RULES.check(given, prompt_length=1).priority == level


@pytest.mark.parametrize("wrong", [-1, 10, 2**31 - 1])
def test_a_priority_has_its_range(wrong: int) -> None:
    with pytest.raises(InvalidRequest, match=f"^priority is {wrong}; it must be between 0 and 9"):
        RULES.check({"priority": wrong}, prompt_length=1)
    assert OPTIONS["priority"].default == 5

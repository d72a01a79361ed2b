"""docs/serving/settings.md has of each setting the default, the range and the choices of the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.settings.file import parse_text
from autoglm_engine.settings.model import ServingSettings

PAGE = (Path(__file__).parents[2] / "docs" / "serving" / "settings.md").read_text(encoding="utf-8")
TABLES = [part.split("\n\n")[0] for part in PAGE.split("| setting | default |")[1:]]
ROWS = re.findall(r"^\| ([a-z_]+) \| ([^|]+) \| ([^|]*?) ?\|", "\n".join(TABLES), flags=re.MULTILINE)
TYPES = {name: type(value) for name, value in dataclasses.asdict(ServingSettings()).items()}
NUMBERS = {name: cell.split(" ... ") for name, _, cell in ROWS if " ... " in cell}
CHOICES = {
    name: cell.split(", ") for name, _, cell in ROWS if TYPES[name] is str and re.fullmatch(r"[a-z]+(, [a-z]+)+", cell)
}
OF_THE_ARTIFACT = {"max_batch_size"}  # its upper end


def settings(name: str, value: Any) -> ServingSettings:
    return ServingSettings(**{name: value})


def accepts(name: str, value: Any) -> bool:
    try:
        settings(name, value)
    except InvalidRequest:
        return False
    return True


def number(name: str, text: str) -> float | int:
    """`86,400,000`, `0: none`, `2^40`, `1e9`."""
    base, _, power = text.split(":")[0].replace(",", "").strip().partition("^")
    value: float | int = TYPES[name](float(base) ** int(power or 1))
    return value


def test_the_page_has_every_setting_and_its_default() -> None:
    shown = {name: default.split(":")[0].strip().replace(",", "") for name, default, _ in ROWS}
    assert set(shown) == set(TYPES)
    for name, default in dataclasses.asdict(ServingSettings()).items():
        assert parse_text(name, shown[name].replace("none", "")) == default, name


def test_every_number_has_a_range() -> None:
    assert set(NUMBERS) == {name for name, kind in TYPES.items() if kind in (int, float)}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_range_ends_where_the_code_ends_it(name: str) -> None:
    *apart, low = (number(name, text) for text in NUMBERS[name][0].split(", "))  # `0, 1 ... 3,600`: 0 is apart
    beyond = 1 if TYPES[name] is int else 1e-4
    assert all(accepts(name, value) for value in (*apart, low)) and not accepts(name, low - beyond)
    if name not in OF_THE_ARTIFACT:
        high = number(name, NUMBERS[name][1])
        assert accepts(name, high) and not accepts(name, high + max(beyond, high * 1e-6))


@pytest.mark.parametrize("name", CHOICES)
def test_the_choices_are_those_of_the_code(name: str) -> None:
    assert all(accepts(name, choice) for choice in CHOICES[name]) and not accepts(name, "other")
    with pytest.raises(InvalidRequest) as refused:
        settings(name, "other")
    assert str(refused.value).endswith(f"allowed are {', '.join(CHOICES[name])}")

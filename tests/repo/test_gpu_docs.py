"""docs/gpu.md says what is so: its figures are those of the code, its commands and files are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from autoglm_perf.gpu.device import MIN_CAPABILITY, RTX_CAPABILITIES
from autoglm_perf.gpu.settings import device_bytes
from autoglm_perf.gpu.shapes import Shape, cache_bytes_per_token, weight_bytes_read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first heading cell is this, without its two heading lines."""
    table = PAGE.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("row", rows("precision"), ids=lambda row: row[0])
def test_the_memory_table_is_the_arithmetic_of_the_code(row: list[str]) -> None:
    spec, precision = Shape().spec(8192), row[0].split(",")[0]
    slots = [(0, 0), (16, 4096), (16, 8192), (32, 4096)]
    expected = [device_bytes(spec, precision, *size) / 1e9 for size in slots]
    expected.insert(1, weight_bytes_read(spec, precision) / 1e9)
    assert [float(cell) for cell in row[1:]] == pytest.approx(expected, abs=0.051)


def test_the_bytes_of_a_token_are_those_of_the_code() -> None:
    assert f"**{cache_bytes_per_token(Shape().spec(8192), 'fp16'):,} bytes**" in PAGE


def test_the_example_of_slots_follows_from_its_formula() -> None:
    found = re.search(
        r"card with (\d+) GB has room for about (\d+) slots of ([\d,]+) in fp16, and for about (\d+) in int4", PAGE
    )
    assert found is not None
    memory, length = int(found[1]) * 1e9, int(found[3].replace(",", ""))
    spec = Shape().spec(8192)
    for precision, slots in (("fp16", found[2]), ("int4", found[4])):
        weights = round(device_bytes(spec, precision, 0, 0) / 1e8) * 1e8
        assert int((memory - weights - 2e9) / (length * cache_bytes_per_token(spec, precision))) == int(slots)


@pytest.mark.parametrize("row", rows("compute capability"), ids=lambda row: row[0])
def test_the_table_of_cards_is_what_the_code_allows(row: list[str]) -> None:
    major, minor = row[0].split(".")
    capability = (int(major), int(minor))
    allowed = [capability >= MIN_CAPABILITY[precision] for precision in ("fp16", "bf16", "int4", "fp8")]
    assert [cell == "yes" for cell in row[2:6]] == allowed
    assert row[6] == "yes"
    assert (row[7] == "yes") is (capability in RTX_CAPABILITIES)


def test_every_variable_of_the_compose_file_is_explained_with_its_default() -> None:
    explained = {}
    for names, defaults, _ in rows("variable"):
        explained |= dict(zip(names.split(", "), defaults.split(", "), strict=True))
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    used["AUTOGLM_CONTROL_KEY"] = "random"
    assert explained == used

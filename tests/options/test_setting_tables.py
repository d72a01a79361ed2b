"""One set of defaults and ranges of settings: what is served, what the docs and the help of the commands say."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import pytest
from autoglm_cli import app
from autoglm_client.async_client import DEFAULT_URL
from autoglm_engine.options.table import OPTIONS
from autoglm_engine.settings import model as serving
from autoglm_engine.settings.model import EngineSettings, ServingSettings
from autoglm_engine.triton.model_config import engine_settings, exits_with_engine
from autoglm_gateway.settings import model as gateway
from autoglm_gateway.settings.model import GatewaySettings
from typer.main import get_command

from tests.support.export.artifacts import ROOT

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
NOT_IN_NUMBERS = {"max_batch_size", "max_held_bytes"}  # whose highest value the artifact, or the machine, sets
GATEWAY_RANGES = {**gateway._RANGES, **gateway._CONNECTION_RANGES}


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Setting -> its other cells, of all tables with this heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    tables = [part.split("\n\n")[0] for part in text.split(heading)[1:]]
    lines = [line for table in tables for line in table.splitlines() if re.match(r"\| [a-z]", line)]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {name: rest for names, *rest in cells for name in names.split(", ")}


SERVING_ROWS = rows("serving/settings.md", "| setting | default | range |")
GATEWAY_ROWS = rows("gateway.md", "| setting | default | values |")


def number(text: str) -> float:
    """`0: none`, `86,400,000`, `2^40`, `4 MiB`."""
    digits, _, unit = text.split(":")[0].replace(",", "").partition(" ")
    base, _, power = digits.partition("^")
    return (float(base) ** float(power) if power else float(base)) * UNITS.get(unit, 1)


def check_range(name: str, cell: str, bounds: tuple[float, float]) -> None:
    low, high = cell.split(" ...")
    assert number(low) == bounds[0], name
    if name not in NOT_IN_NUMBERS:
        assert number(high.strip()) == bounds[1], name


def test_a_config_without_parameters_serves_the_documented_defaults() -> None:
    settings, _ = engine_settings('{"parameters": {}}', {})
    assert dataclasses.asdict(settings).items() <= dataclasses.asdict(ServingSettings()).items()
    assert exits_with_engine('{"parameters": {}}', {}) is ServingSettings().exit_with_engine


def test_the_engines_defaults_are_the_served_ones() -> None:
    assert dataclasses.asdict(EngineSettings()).items() <= dataclasses.asdict(ServingSettings()).items()


@pytest.mark.parametrize("name", serving._RANGES)
def test_the_documented_range_of_a_serving_setting_is_checked(name: str) -> None:
    check_range(name, SERVING_ROWS[name][1], serving._RANGES[name])


@pytest.mark.parametrize("name", serving._CHOICES)
def test_the_documented_choices_of_a_serving_setting_are_those(name: str) -> None:
    assert SERVING_ROWS[name][1] == ", ".join(serving._CHOICES[name])


@pytest.mark.parametrize("name", GATEWAY_RANGES)
def test_the_documented_range_of_a_gateways_setting_is_checked(name: str) -> None:
    check_range(name, GATEWAY_ROWS[name][1], GATEWAY_RANGES[name])


def test_the_gateways_documented_defaults_are_its_own() -> None:
    settings = dataclasses.asdict(GatewaySettings())
    limits = settings.pop("connections")
    del settings["keys"]  # what `keys_file` holds
    assert set(GATEWAY_ROWS) == {*settings, *limits, "connections"}
    for name, default in {**settings, **limits}.items():
        assert documented(GATEWAY_ROWS[name][0], default) == default, name
    assert GATEWAY_ROWS["reasoning_format"][1] == ", ".join(gateway.REASONING_FORMATS)
    assert GATEWAY_ROWS["tool_format"][1] == ", ".join(gateway.TOOL_FORMATS)


def documented(cell: str, default: object) -> object:
    """The default that the cell says, in the type of the real one."""
    if cell == "none":
        return None if default is None else ""
    if isinstance(default, str):
        return cell
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        return number(cell)
    found = tomllib.loads(f"cell = {cell}")["cell"]
    return tuple(found) if isinstance(found, list) else found


def test_a_gateways_answer_may_take_as_long_as_the_server_allows() -> None:
    option = OPTIONS["deadline_ms"]
    assert gateway._RANGES["deadline_ms"] == (option.low, option.high) == (1, serving.DAY_MS)


def parameters(command: str) -> Mapping[str, Any]:
    return {parameter.name: parameter for parameter in get_command(app).commands[command].params}  # type: ignore[attr-defined]


def test_help_of_the_gateway_says_its_defaults() -> None:
    settings = GatewaySettings()
    said = {
        name: found[1]
        for name, parameter in parameters("gateway").items()
        if (found := re.search(r"\[default: ([^\]]*)\]", getattr(parameter, "help", None) or ""))
    }
    said.pop("otlp", None)
    assert len(said) >= 6
    for name, shown in said.items():
        default = settings.served if name == "models" else getattr(settings, name)
        text = ", ".join(default) if isinstance(default, (tuple, Mapping)) else str(default)
        assert shown == text, name


def test_ports_are_the_same_wherever_they_are_a_default() -> None:
    serve = {name: parameter.default for name, parameter in parameters("serve").items()}
    assert (DEFAULT_URL,) == GatewaySettings().servers == (f"127.0.0.1:{serve['grpc_port']}",)
    assert serve["gateway_port"] == GatewaySettings().port
    assert serve["host"] == GatewaySettings().host

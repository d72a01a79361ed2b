"""Groups of options: what a command that takes them gets, and how its help shows them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import typer
from autoglm_cli.app import app
from autoglm_cli.command_help import HelpfulCommand, joined_lines
from autoglm_cli.errors import CommandError
from autoglm_cli.options.connection import ConnectionOptions, urls_of
from autoglm_cli.options.export import BuildOptions, TensorRTOptions, chosen_for_export
from autoglm_cli.options.gateway import (
    AccessOptions,
    ListenOptions,
    ModelOptions,
    TelemetryOptions,
    UpstreamOptions,
    chosen_settings,
)
from autoglm_cli.options.groups import grouped, said
from autoglm_gateway.settings.model import GatewaySettings
from typer.main import get_command
from typer.testing import CliRunner

ENV = {"COLUMNS": "80", "TERM": "dumb"}


@dataclass(frozen=True, slots=True)
class Ports:
    PANEL: ClassVar = "Where it listens"

    port: Annotated[int, typer.Option("--port", "-p", envvar="TEST_PORT", help="A port.")] = 8001
    names: Annotated[list[str] | None, typer.Option("--name")] = None
    secret: Annotated[str | None, typer.Option()] = field(default=None, repr=False)


def called(*arguments: str, env: dict[str, str] | None = None) -> tuple[Any, str]:
    """What the command got, and what was written."""
    got: list[Any] = []

    def command(word: Annotated[str, typer.Argument()], *, ports: Ports, loud: bool = False) -> None:
        got.append((word, ports, loud))

    made = typer.Typer()
    made.command(cls=HelpfulCommand)(grouped(command))
    result = CliRunner().invoke(made, list(arguments), env={**ENV, **(env or {})})
    return (got[0] if got else None), result.output


def test_a_command_gets_its_groups_built() -> None:
    assert called("x")[0] == ("x", Ports(), False)
    assert called("x", "-p", "9", "--name", "a", "--name", "b", "--loud")[0] == ("x", Ports(9, ["a", "b"]), True)
    assert called("x", env={"TEST_PORT": "7"})[0] == ("x", Ports(7), False)


def test_help_has_a_panel_for_each_group_and_no_type_beside_a_flag() -> None:
    _, text = called("--help")
    options, ports = text.split("─ Options ─")[1].split("─ Where it listens ─")
    assert "--loud" in options and "--help" in options and "--port" not in options
    assert all(shown in ports for shown in ("--port", "-p", "A port.", "8001", "TEST_PORT", "--secret"))
    assert "<bool>" not in text


def test_two_groups_with_one_option_are_refused_when_the_command_is_made() -> None:
    def command(*, one: Ports, other: Ports) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'port'"):
        grouped(command)


def test_what_was_said_leaves_the_rest_to_others() -> None:
    assert said(Ports(port=0, names=[])) == {"port": 0}
    assert chosen_for_export(BuildOptions(max_slots=0), TensorRTOptions(compute_capability=["8.9"])) == {
        "max_slots": 0,
        "compute_capabilities": ["8.9"],
    }
    assert chosen_settings(ListenOptions(port=0), AccessOptions(open=True), UpstreamOptions(servers=["a:1"])) == {
        "port": 0,
        "open": True,
        "servers": ("a:1",),
    }
    assert chosen_settings(ModelOptions(models=["phone", "fast=chat"], aliases=["x"])) == {
        "models": {"phone": "phone", "fast": "chat"},
        "aliases": ("x",),
    }
    assert chosen_settings(ModelOptions(aliases=["a=b", "c=d"])) == {"aliases": {"a": "b", "c": "d"}}


def test_each_gateway_option_is_a_setting() -> None:
    groups: tuple[Any, ...] = (UpstreamOptions, ListenOptions, ModelOptions, AccessOptions, TelemetryOptions)
    options = {each.name for group in groups for each in dataclasses.fields(group)}
    assert options <= {each.name for each in dataclasses.fields(GatewaySettings)}


def test_headers_are_not_in_what_is_printed_of_a_connection() -> None:
    assert "secret" not in repr(ConnectionOptions(header=["authorization: secret"]))


@pytest.mark.parametrize("url", ["localhost", "localhost:", "localhost:http", "::1", "a:1,b", "/run/socket"])
def test_an_address_without_a_port_is_refused_before_it_is_asked(url: str) -> None:
    with pytest.raises(CommandError, match=r"must be host:port of a gRPC endpoint, such as 127\.0\.0\.1:8001"):
        urls_of(url)


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("gpu-a:8001", ("gpu-a:8001",)),
        (" a:1 , [::1]:2 ", ("a:1", "[::1]:2")),
        ("dns:///a:1", ("dns:///a:1",)),
        ("", ("127.0.0.1:8001",)),
    ],
)
def test_addresses_are_set_apart_by_commas(text: str, urls: tuple[str, ...]) -> None:
    assert urls_of(text) == urls


def test_paragraphs_of_help_are_wrapped_to_the_screen() -> None:
    assert joined_lines("One\ntwo.\n\nThree\nfour.\n\n\b\nExamples:\n  a\n  b") == (
        "One two.\n\nThree four.\n\n\b\nExamples:\n  a\n  b"
    )
    assert joined_lines(None) is None


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("command", [*get_command(app).commands, "models remove"])  # type: ignore[attr-defined]
def test_help_fits_the_screen(command: str, columns: str) -> None:
    text = CliRunner().invoke(app, [*command.split(), "--help"], env={**ENV, "COLUMNS": columns}).output
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "<bool>" not in text
    assert "…" not in text, "something was cut off"


@pytest.mark.parametrize("option", ["--guided-json", "--guided-grammar"])
def test_a_file_that_cannot_be_read_is_named_with_its_option(option: str, tmp_path: Path) -> None:
    missing, latin = tmp_path / "missing", tmp_path / "latin"
    latin.write_bytes("é".encode("latin-1"))
    for path, why in ((missing, "cannot be read: No such file or directory"), (latin, "is not UTF-8 at byte 0")):
        result = CliRunner().invoke(app, ["generate", "x", option, f"@{path}"], env=ENV)
        assert (result.exit_code, result.stderr) == (1, f"error: {option} names {path}, which {why}\n")

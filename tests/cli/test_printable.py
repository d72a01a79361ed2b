"""What models, servers and files say commands no terminal, on whatever way it gets to one."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from collections.abc import Callable, Iterator

import pytest
from autoglm_cli import app
from autoglm_cli.commands.inspecting import _show
from autoglm_cli.output import SafeConsole
from autoglm_client import ServerError, async_client
from autoglm_client.printable import json_text, visible
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner, Result

from tests.support.client.client_fakes import FakeTransport, Script

# Clears the screen; sets the title; C1 of the same; overwrites the line; turns what is read around; rich's own marks.
HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b2J \r \x08 \u202eabc\u2066 \u200f [bold red]x[/bold red] [/]"
Use = Callable[[FakeTransport], FakeTransport]


def commands_in(text: str) -> set[str]:
    return {
        char
        for char in text
        if (unicodedata.category(char) in ("Cc", "Zl", "Zp") and char not in "\n\t")
        or unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }


@pytest.mark.slow
def test_no_character_of_unicode_commands_and_none_of_a_language_is_lost() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert commands_in(everything) and not commands_in(visible(everything))
    assert (
        visible(everything).encode()
        and json_text(everything).encode()
        and json.loads(json_text(everything)) is not None
    )
    assert visible("\ud83d") == "\\ud83d" and json.loads(json_text({"\ud83d": 1})) == {"\ud83d": 1}
    kept = "naïve 中文 עברית العربية \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER} a\tb\n\\x1b"
    assert visible(kept) == kept
    assert visible("a\x1b[31mb\u202e\x85") == "a\\x1b[31mb\\u202e\\x85" and visible(visible(HOSTILE)) == visible(
        HOSTILE
    )


@pytest.mark.slow
@given(st.recursive(st.text() | st.just(HOSTILE), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_says_the_same_and_commands_nothing(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == value and not commands_in(text) and "\n" not in text


def printed(print_it: Callable[[SafeConsole], None], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    console = SafeConsole()
    print_it(console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_a_console_makes_visible_whatever_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, style="red"))
    for what in (HOSTILE, table, Text(HOSTILE)):
        text = printed(lambda console, what=what: console.print(what, soft_wrap=True), monkeypatch)  # type: ignore[misc]
        assert "\\x1b" in text and not commands_in(text)
    assert "[bold red]x[/bold red] [/]" in printed(lambda console: console.print(HOSTILE, soft_wrap=True), monkeypatch)


def test_a_manifest_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"special_tokens": {HOSTILE: HOSTILE}, "stop_strings": [HOSTILE], "generation_defaults": {HOSTILE: 1}}
    answers = {**texts, "eos_token_ids": [1], "banned_tokens": [[1]], "calls": HOSTILE, "thinking": [HOSTILE, HOSTILE]}
    described = {"model_name": HOSTILE, "bytes": 1, "runtime_details": {HOSTILE: HOSTILE}, "parity": None, **answers}
    text = printed(lambda console: _show(described, verified=False), monkeypatch) or sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[2J" in text and not commands_in(text)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Puts a scripted server in the place of every address."""

    def put(transport: FakeTransport) -> FakeTransport:
        monkeypatch.setattr(async_client, "GrpcTransport", lambda address, **_: transport)
        return transport

    yield put


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": "200", "TERM": "dumb"})


def on_terminal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    with pytest.raises(SystemExit) as ended:
        app(list(arguments))
    assert ended.value.code == 0
    return shown.getvalue()


@pytest.mark.parametrize("command", [("generate", "hi"), ("chat",)])
def test_an_answer_commands_no_terminal(use: Use, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    use(FakeTransport(Script(words=("one ", "\x1b", "[2J", HOSTILE))))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    shown = on_terminal(monkeypatch, *command)
    assert shown.rstrip("\n") == "one \\x1b[2J" + visible(HOSTILE)
    assert not commands_in(shown)


def test_a_program_that_reads_an_answer_gets_it_as_it_is(use: Use) -> None:
    use(FakeTransport(Script(words=("one ", HOSTILE))))
    assert run("generate", "hi").stdout == f"one {HOSTILE}\n"
    as_json = run("generate", "hi", "--json").stdout
    assert json.loads(as_json)["text"] == f"one {HOSTILE}" and not commands_in(as_json)


def test_an_error_of_a_server_commands_no_terminal(use: Use) -> None:
    use(FakeTransport(Script(errors=[ServerError(f"it failed: {HOSTILE}") for _ in range(9)])))
    for result in (run("generate", "hi"), run("chat", stdin="hi\n")):
        assert "error: it failed: \\x1b[2J" in result.stderr and not commands_in(result.output)


def test_figures_and_misuse_command_no_terminal(use: Use) -> None:
    use(FakeTransport(Script(finish_reason=HOSTILE)))
    result = run("generate", "hi", "--stats")
    assert result.exit_code == 0 and "ended by \\x1b[2J" in result.stderr and not commands_in(result.stderr)
    result = run("generate", "hi", f"--{HOSTILE}")
    assert result.exit_code == 2 and not commands_in(result.stderr)

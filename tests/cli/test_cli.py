"""The command line, with the client's transport answering from a script: help, output, errors and exit codes."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from autoglm_cli import app
from autoglm_cli.errors import CommandError, FriendlyGroup
from autoglm_client import Image, InvalidRequestError, QueueFullError, async_client
from typer.main import get_command
from typer.testing import CliRunner, Result

from tests.support.client.client_fakes import FakeTransport, Script, inputs_of

COMMANDS = [
    "demo",
    "export",
    "export-embedder",
    "inspect",
    "repository",
    "serve",
    "gateway",
    "gateway-key",
    "generate",
    "chat",
    "batch",
    "health",
    "bench",
    "profile",
    "models",
]
Use = Callable[[FakeTransport], FakeTransport]


def run(*arguments: str, stdin: str | None = None, columns: str = "200") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": columns, "TERM": "dumb"})


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Puts a scripted server in the place of every address."""

    def put(transport: FakeTransport) -> FakeTransport:
        monkeypatch.setattr(async_client, "GrpcTransport", lambda address, **_: transport)
        return transport

    yield put


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_examples_that_name_only_known_options(command: str) -> None:
    result = run(command, "--help")
    text = result.output
    assert result.exit_code == 0
    examples = re.findall(rf"autoglm {command}\b.*", text.split("Examples:")[1].split("─")[0])
    assert examples
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "─".join(text.split("─")[1:])))
    assert {
        option for line in examples for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line.split("|")[0])
    } <= known


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_all_that_is_written(command: str) -> None:
    """Square brackets, too, which rich takes for its marks and leaves out where no backslash is before them."""
    described = get_command(app).commands[command]  # type: ignore[attr-defined]
    shown = "".join(re.findall(r"[^\s│]", run(command, "--help", columns="500").output))
    texts = [described.help, *(parameter.help for parameter in described.params if getattr(parameter, "help", None))]
    for text in texts:
        written = "".join(text.replace("\b", "").replace("\\[", "[").split())
        assert written in shown, text


@pytest.mark.slow
def test_all_commands_are_listed_and_nothing_asked_shows_help() -> None:
    assert list(get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]
    assert all(command in run("--help").output for command in COMMANDS)
    assert "Usage" in run().output
    assert run("--version").output.strip() == "0.1.0"


def test_generate_streams_the_answer_to_stdout_and_the_figures_to_stderr(use: Use) -> None:
    transport = use(FakeTransport())
    result = run("generate", "hi", "--stats", "-n", "5", "-t", "0", "--stop", "x", "--stop", "y", "--system", "s")
    assert (result.exit_code, result.stdout) == (0, "one two three\n")
    assert all(word in result.stderr for word in ("tokens/s", "prefill", "network", "ended by length"))
    sent = inputs_of(transport.requests[0])
    assert json.loads(sent["messages"][4:]) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi"},
    ]
    assert {"max_tokens", "temperature", "stop"} < set(sent)


def test_generate_reads_stdin_and_raw_leaves_the_template_out(use: Use) -> None:
    transport = use(FakeTransport())
    assert run("generate", "-", "--raw", stdin="from a pipe").exit_code == 0
    assert inputs_of(transport.requests[0])["text_input"][4:] == b"from a pipe"
    refused = run("generate", "x", "--raw", "--system", "s")
    assert refused.exit_code == 1 and "--system goes with the chat template" in refused.stderr


def test_generate_json_has_stable_keys(use: Use) -> None:
    use(FakeTransport())
    answer = json.loads(run("generate", "hi", "--json").stdout)
    assert set(answer) == {
        "text",
        "finish_reason",
        "usage",
        "time_to_first_token_ms",
        "total_ms",
        "tokens_per_second",
        "stages_ms",
        "cache_hit",
        "cache_age_ms",
        "request_id",
        "endpoint",
    }
    assert set(answer["stages_ms"]) == {"queue", "tokenize", "embed", "prefill", "decode", "detokenize", "network"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["generate", "x", "--url", "127.0.0.1:1"],
            1,
            "cannot reach 127.0.0.1:1: no server answers there; start one with `autoglm serve`",
        ),
        (["chat", "--url", "127.0.0.1:1"], 1, "start one with `autoglm serve`"),
        (["health", "--url", "127.0.0.1:1"], 1, "start one with `autoglm serve`"),
        (["generate", "x", "--bogus"], 2, "No such option: --bogus; see"),
        (["generate"], 2, "Missing argument"),
        (["generate", "x", "--image", "no.png"], 1, "the image 'no.png' cannot be read: No such file"),
        (["generate", "x", "--raw", "--image", "no.png"], 1, "--image goes with the chat template"),
        (["generate", "x", "-n", "many"], 2, "'--max-tokens'"),
        (["nonsense"], 2, "No such command"),
        (["batch", "/nowhere/at-all.jsonl"], 1, "/nowhere/at-all.jsonl: No such file"),
        (["inspect", "/nowhere"], 1, "no artifact at /nowhere"),
        (["export", "smollm2", "-o", "/tmp/never", "--name", "x"], 1, "--name and --output both say where"),
        (["models", "remove"], 2, "Missing argument 'name'; see"),
        (["models", "remove", "../x"], 1, "the name is '../x'; allowed are 1 to 48 letters"),
        (["serve", "--repository", "/nowhere"], 1, "there is no model repository at /nowhere"),
        (["serve", "--artifact", "/nowhere"], 1, "autoglm export smollm2"),
        (["export", "/nowhere", "-o", "/tmp/never", "--precision", "int3"], 1, "int3"),
        (["export", "/nowhere", "-o", "/tmp/never", "--runtime", "abacus"], 1, "abacus"),
    ],
)
def test_every_error_is_one_sentence_on_stderr(arguments: list[str], code: int, words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]
    assert "Traceback" not in result.output and result.stdout == ""


def test_the_servers_refusal_is_shown_as_it_is(use: Use) -> None:
    use(FakeTransport(Script(errors=[InvalidRequestError("top_p must be over 0 and at most 1, got 0.0")])))
    result = run("generate", "x", "--top-p", "0")
    assert (result.exit_code, result.stderr.strip()) == (1, "error: top_p must be over 0 and at most 1, got 0.0")


def test_debug_shows_where_it_failed(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_DEBUG", "1")
    use(FakeTransport(Script(errors=[InvalidRequestError("top_p")])))
    assert isinstance(run("generate", "x").exception, InvalidRequestError)


def test_an_unexpected_error_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, context: object) -> None:
        raise ZeroDivisionError("three\nlines\nlong")

    monkeypatch.setattr(FriendlyGroup.__mro__[1], "invoke", broken)
    result = run("health")
    assert result.exit_code == 1
    assert result.stderr.strip() == "error: ZeroDivisionError: three lines long (AUTOGLM_DEBUG=1 shows where)"


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "autoglm_export.export", None)
    result = run("export", "smollm2", "-o", "/tmp/never")
    assert result.exit_code == 1 and "pip install 'autoglm-triton[export]'" in result.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "a:1, https://b:2"])
def test_an_address_of_http_is_not_asked(url: str) -> None:
    result = run("generate", "hi", "--url", url)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "it must be host:port of a gRPC endpoint, without http://" in result.stderr


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_without_a_server_nothing_is_exported_or_installed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("autoglm_cli.commands.serve.run_export", _must_not_be_called)
    monkeypatch.setattr("autoglm_cli.commands.demo.ensure_weights", _must_not_be_called)
    more = ["--export-if-missing", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    result = run(command, "--repository", "model_repository", "--artifact", "nowhere", *(more * (command == "serve")))
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: tritonserver is not installed")


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_without_an_exporter_nothing_is_promised_or_installed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str) -> None:
        raise CommandError(f"{module} wants the extra {extra}")

    monkeypatch.setattr("autoglm_cli.commands.export.needs", missing)
    monkeypatch.setattr("autoglm_cli.commands.demo.ensure_weights", _must_not_be_called)
    more = ["--export-if-missing", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    result = run(command, "--repository", "model_repository", "--artifact", "nowhere", *(more * (command == "serve")))
    assert result.exit_code == 1
    assert result.stderr == "error: autoglm_export.export wants the extra export\n"


def test_without_the_gateways_packages_no_server_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    result = run("serve", "--gateway", "--repository", "model_repository", "--artifact", "nowhere")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: uvicorn is missing: pip install 'autoglm-triton[gateway]'\n",
    )


def _must_not_be_called(*arguments: object, **options: object) -> None:
    pytest.fail("it is too early")


def test_health_says_what_is_ready(use: Use) -> None:
    use(FakeTransport())
    result = run("health")
    assert result.exit_code == 0 and "detokenizer  ready" in result.stderr
    answer = json.loads(run("health", "--json").stdout)
    assert answer["ready"] is True and answer["engine"] == {"running": 0}
    down = run("health", "--json", "--url", "")
    assert down.exit_code == 0  # an empty address is the default one


def test_chat_remembers_and_obeys_commands(use: Use, tmp_path: Path) -> None:
    transport, saved = use(FakeTransport(Script(words=["fine"]))), tmp_path / "talk.json"
    lines = [
        "hello",
        "more",
        "/retry",
        "/stats",
        f"/save {saved}",
        "/nope",
        "/help",
        "/system be brief",
        "x",
        "/reset",
        "y",
        "/exit",
        "never",
    ]
    result = run("chat", "--system", "s", stdin="\n".join(lines) + "\n")
    assert result.exit_code == 0 and result.stdout == "fine\n" * 5
    asked = [[turn["content"] for turn in json.loads(inputs_of(r)["messages"][4:])] for r in transport.requests]
    talk = ["s", "hello", "fine", "more"]
    assert asked == [talk[:2], talk, talk, ["be brief", "x"], ["be brief", "y"]]
    assert [turn["role"] for turn in json.loads(saved.read_text())] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert "/nope is no command" in result.stderr and "tokens/s" in result.stderr


def test_generate_shows_images_before_the_prompt(use: Use, screen: Path) -> None:
    transport = use(FakeTransport(Script(words=["fine"])))
    shown = ("--image", str(screen), "--image", str(screen))
    assert run("generate", *shown, "What is on it?").stdout == "fine\n"
    (asked,) = map(inputs_of, transport.requests)
    (turn,) = json.loads(asked["messages"][4:])
    assert turn["content"] == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is on it?"}]
    assert asked["images"].count(screen.read_bytes()) == 2


def test_chat_shows_an_image_with_the_next_question_and_saves_it(use: Use, tmp_path: Path, screen: Path) -> None:
    busy = Script(words=["fine"], errors=[QueueFullError("the queue is full")] * 3)
    transport, saved = use(FakeTransport(busy)), tmp_path / "talk.json"
    lines = ["/image no.png", f"/image {screen}", "what", "what then", "and now", f"/save {saved}", "/reset", "bye"]
    result = run("chat", stdin="\n".join(lines) + "\n")
    assert "'no.png' cannot be read" in result.stderr and result.stdout == "fine\n" * 3
    asked = [json.loads(inputs_of(request)["messages"][4:]) for request in transport.requests[3:]]
    with_image = [{"type": "image"}, {"type": "text", "text": "what then"}]
    assert [[turn["content"] for turn in turns] for turns in asked] == [
        [with_image],
        [with_image, "fine", "and now"],
        ["bye"],
    ]
    first = json.loads(saved.read_text())[0]["content"]
    assert first[0]["image_url"]["url"] == Image(screen).data_url and first[1]["text"] == "what then"


def test_chat_shows_an_image_in_the_detail_that_is_asked_for(use: Use, tmp_path: Path, screen: Path) -> None:
    """Saved so, too; a file may have spaces in its name."""
    transport, saved = use(FakeTransport(Script(words=["fine"]))), tmp_path / "talk.json"
    spaced = screen.rename(tmp_path / "a screen.png")
    lines = [f"/image {spaced} detail=medium", f"/image {spaced}  detail=low", f"/image {spaced} detail=high", "what"]
    result = run("chat", stdin="\n".join([*lines, f"/save {saved}"]) + "\n")
    assert "detail of an image is 'medium'; allowed are auto, low, high" in result.stderr
    (turn,) = json.loads(inputs_of(transport.requests[0])["messages"][4:])
    assert turn["content"][:-1] == [{"type": "image", "detail": "low"}, {"type": "image"}]
    url = Image(spaced).data_url
    kept = json.loads(saved.read_text())[0]["content"][:-1]
    assert [part["image_url"] for part in kept] == [{"url": url, "detail": "low"}, {"url": url}]


@pytest.fixture
def screen(tmp_path: Path) -> Path:
    path = tmp_path / "screen.png"
    path.write_bytes(Image(np.zeros((2, 3, 3), np.uint8)).file)
    return path


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that runs the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_chat_survives_errors_and_ctrl_c_cancels_only_the_answer(use: Use) -> None:
    def script(request: object) -> Script:
        asked = json.loads(inputs_of(request)["messages"][4:])[-1]["content"]  # type: ignore[arg-type]
        if asked == "long":
            threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
            return Script(words=["w "] * 20_000, pause_s=0.005)
        return Script(words=["fine"], errors=[QueueFullError("the queue is full")] * 3 if asked == "busy" else [])

    transport = use(FakeTransport(script))
    result = run("chat", stdin="busy\nlong\nshort\n")
    assert result.exit_code == 0
    assert "error: the queue is full" in result.stderr and "(cancelled)" in result.stderr
    assert result.stdout.endswith("fine\n")
    assert len(transport.cancelled) == 1 and not transport.aborted


def write_lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def answers_in(path: Path) -> dict[str, dict[str, object]]:
    return {entry["id"]: entry for entry in map(json.loads, path.read_text().splitlines())}


def test_batch_answers_each_line_and_skips_what_is_done(use: Use, tmp_path: Path) -> None:
    transport = use(FakeTransport())
    file = write_lines(
        tmp_path / "in.jsonl",
        {"id": "a", "prompt": "x", "max_tokens": 3},
        {"text_input": "y"},
        {"id": 7, "messages": [{"role": "user", "content": "z"}]},
    )
    output = tmp_path / "out.jsonl"
    output.write_text('{"id": "a", "text": "before"}\n{"id": "7", "text": "cut o')
    result = run("batch", str(file), "-o", str(output), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"asked": 2, "skipped": 1, "failed": 0, "output": str(output)}
    answers = answers_in(output)
    assert (
        set(answers) == {"a", "2", "7"} and answers["a"]["text"] == "before" and answers["7"]["text"] == "one two three"
    )
    assert run("batch", str(file), "-o", str(output)).exit_code == 0
    assert len(transport.requests) == 2


def test_batch_keeps_failed_lines_for_the_next_run(use: Use, tmp_path: Path) -> None:
    use(FakeTransport(Script(errors=[InvalidRequestError("max_tokens is 0")])))
    file = write_lines(tmp_path / "in.jsonl", {"prompt": "x"})
    first = run("batch", str(file))
    assert first.exit_code == 1 and "1 of 1 lines failed" in first.stderr
    assert answers_in(tmp_path / "in.answers.jsonl")["1"]["error"] == "max_tokens is 0"
    assert run("batch", str(file)).exit_code == 0
    assert answers_in(tmp_path / "in.answers.jsonl")["1"]["text"] == "one two three"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a JSON object is needed"),
        ('{"prompt": "x", "heat": 1}', "unknown key 'heat'"),
        ('{"max_tokens": 1}', "exactly one of prompt, messages, text_input is needed, got 0"),
        ('{"prompt": 1}', "prompt must be a string, got 1"),
        ('{"messages": "x"}', "messages must be a list"),
        ('{"prompt": "x", "max_tokens": "ten"}', "line 2: max_tokens must be a whole number"),
        ('{"prompt": "x", "id": "1"}', "the id '1' is that of line 1 already"),
    ],
)
def test_batch_checks_every_line_before_the_first_is_asked(use: Use, tmp_path: Path, line: str, words: str) -> None:
    transport = use(FakeTransport())
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    result = run("batch", str(file))
    assert result.exit_code == 1 and words in result.stderr
    assert not transport.requests


def test_batch_leaves_foreign_files_alone(use: Use, tmp_path: Path) -> None:
    use(FakeTransport())
    file, foreign = write_lines(tmp_path / "in.jsonl", {"prompt": "x"}), tmp_path / "notes.txt"
    foreign.write_text("my notes\nare precious")
    assert "is not a file of answers" in run("batch", str(file), "-o", str(foreign)).stderr
    assert foreign.read_text() == "my notes\nare precious"
    assert "cannot go into the file of the prompts" in run("batch", str(file), "-o", str(file)).stderr


def test_generate_asks_for_the_whole_answer_where_streaming_is_off(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_USE_STREAMING", "false")
    transport = use(FakeTransport())
    assert run("generate", "hi").stdout == "one two three\n"
    assert inputs_of(transport.requests[0])["stream"] == b"\x00"


@pytest.mark.parametrize(
    "arguments", [["gateway"], ["gateway", "--print-config"], ["gateway-key", "alice"], ["serve", "--gateway"]]
)
def test_a_python_that_is_too_old_for_the_gateway_is_one_sentence(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoglm_cli.commands.gateway.running_python", lambda: (3, 10))
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr == "error: the gateway needs Python 3.11 or later, and this is 3.10\n"


@pytest.mark.parametrize("command", ["generate", "chat", "batch", "health", "bench", "profile"])
def test_every_command_that_asks_a_server_can_do_it_over_tls(command: str) -> None:
    described = get_command(app).commands[command]  # type: ignore[attr-defined]
    options = {option for parameter in described.params for option in parameter.opts}
    assert {"--url", "--tls", "--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name", "--header"} <= options


def test_who_asks_for_a_model_that_is_not_there_learns_of_the_option(use: Use) -> None:
    use(FakeTransport(Script(errors=[InvalidRequestError("Request for unknown model: 'autoglm' is not found")])))
    assert run("generate", "hi").stderr == "error: the server has no model 'autoglm'; --model names one that it has\n"


def test_bench_with_an_artifact_needs_no_repository_with_that_model(tmp_path: Path) -> None:
    result = run("bench", "--model", "phone", "--artifact", str(tmp_path))
    assert result.stderr.startswith(f"error: there is no exported model at {tmp_path}")

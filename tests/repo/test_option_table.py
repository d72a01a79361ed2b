"""One table of options: each place where an option can be asked says what the table says, and refuses what it
refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import pytest
from autoglm_cli import app
from autoglm_client import GenerationOptions, async_client
from autoglm_client.option_fields import OPTION_KINDS, OptionChanges
from autoglm_client.transport.requests import generation_request
from autoglm_engine.core import SamplingOptions
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.options import OptionRules
from autoglm_engine.options.request_parameters import _RENAMED
from autoglm_engine.options.sampling_json import NAMES
from autoglm_engine.options.table import (
    CLIENT,
    COMMAND,
    EXTENSION,
    LENGTHS,
    OPENAI,
    OPTIONS,
    PROMPTS,
    VLLM,
    Option,
    Surface,
    options_on,
)
from autoglm_export.checkpoint.generation.generation_config import generation_defaults
from autoglm_export.errors import CheckpointError
from autoglm_gateway.api.schema import ChatRequest
from autoglm_gateway.priorities import BEST, LAST
from pydantic import ValidationError
from typer.main import get_command
from typer.testing import CliRunner

from deploy.options.surfaces import ROOT, made_files, out_of_date
from tests.repo.test_model_repository import config, tensors
from tests.support.client.client_fakes import FakeTransport, inputs_of

RULES = OptionRules(max_length=1024, vocab_size=500, defaults={})
NUMBERS = [option.name for option in OPTIONS.values() if option.low is not None]
NAMED = {"max_length": 1024, "vocab_size": 500, "max_tokens": 256}
SAMPLES: Mapping[str, Any] = {
    "INT32": 1,
    "INT64": 1,
    "FP32": 0.5,
    "BOOL": True,
    "STRING": "a",
    "STRINGS": ["a", "b"],
    "JSON": {"1": 1},
}
TYPES = {"INT32": int, "INT64": int, "FP32": float, "BOOL": bool, "STRING": str, "STRINGS": list, "JSON": dict}
# Where OpenAI's API, or vLLM's field, is narrower or wider than the server; None: the model's own bound.
OPENAI_RANGES = {"temperature": (0, 2), "top_p": (0, 1), "priority": (BEST, LAST), "max_tokens": (1, None)}
AT_THE_GATEWAY = {"logprobs": "top_logprobs"}  # of chats


def documented() -> dict[str, list[str]]:
    """Name -> type, shape, default, range, meaning."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| input | type | shape |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:] if row.startswith("|")]
    return {name: cells for name, *cells in rows}


def on_the_page(option: Option) -> tuple[str, str]:
    """The ends of the documented range, as an error names them."""
    cell = documented()[option.name][3]
    found = re.fullmatch(r"above (\S+) and at most (\S+)|(\S+) \.\.\. (\S+)", cell)
    assert found, cell
    low, high = (text.replace(",", "").replace("2^63-1", str(2**63 - 1)) for text in found.groups() if text)
    return low, f"{NAMED[high]} ({high})" if high in NAMED else high


def refusal(values: Mapping[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as refused:
        RULES.check(values, prompt_length=1)
    return str(refused.value)


def in_chats(name: str) -> dict[str, Any]:
    """The schema of a field that may be null."""
    (schema, null) = ChatRequest.model_json_schema()["properties"][name]["anyOf"][-2:]
    assert null == {"type": "null"}
    return dict(schema)


def test_what_is_made_from_the_table_is_up_to_date() -> None:
    assert list(out_of_date()) == [], "run `make options`"


def test_a_new_row_is_in_every_file_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Option("one_more", "FP32", 0.25, 0, 1, ~Surface(0), max_items=1, characters=(0, 1), meaning="One more.")
    monkeypatch.setitem(OPTIONS, "one_more", row)
    assert set(out_of_date()) == set(made_files())
    for path, text in made_files().items():
        assert "one_more" in text, path


def test_the_engine_computes_with_the_types_and_defaults_of_the_table() -> None:
    kinds = {"STRINGS": tuple, "JSON": (tuple, str)}
    for field in dataclasses.fields(SamplingOptions):
        option = OPTIONS[field.name]
        default = option.default if field.default is dataclasses.MISSING else field.default
        assert default == option.default and type(default) is type(option.default), field.name
        if default is not None:
            assert isinstance(default, kinds.get(option.kind, TYPES[option.kind])), field.name


@pytest.mark.parametrize("name", NUMBERS)
def test_an_error_names_the_documented_range(name: str) -> None:
    option = OPTIONS[name]
    low, high = on_the_page(option)
    wanted = f"it must be above {low} and at most {high}" if option.low_open else f"it must be between {low} and {high}"
    whole = int if option.dtype.startswith("INT") else float
    assert refusal({name: whole(low) - 1}).endswith(f"; {wanted}")
    assert refusal({name: whole(high.split(" ")[0]) + 1}).endswith(f"; {wanted}")


def test_the_client_takes_what_the_table_gives_it() -> None:
    names = [option.name for option in options_on(CLIENT)]
    assert [field.name for field in dataclasses.fields(GenerationOptions)] == names
    assert list(OPTION_KINDS) == names == list(OptionChanges.__annotations__)
    hints, changes = get_type_hints(GenerationOptions), get_type_hints(OptionChanges)
    assert hints == changes
    assert all(field.default is None for field in dataclasses.fields(GenerationOptions))


@pytest.mark.parametrize("option", options_on(CLIENT), ids=lambda option: option.name)
def test_a_request_carries_the_tensor_that_the_server_declares(option: Option) -> None:
    options = GenerationOptions(**{option.name: SAMPLES[option.kind]})
    sent = generation_request("hi", options, stream=True, request_id="r")
    (tensor,) = [tensor for tensor in sent.inputs if tensor.name == option.name]
    dtype, dims = tensors(config("autoglm").input)[option.name]
    assert tensor.datatype == dtype.replace("STRING", "BYTES")
    assert list(tensor.shape) == [1, 2 if dims == (-1,) else 1]
    assert (dtype, dims) == (option.dtype, (-1 if option.is_list else 1,))


def flag_of(name: str) -> str:
    """One is shorter than its name, since help would cut it at 80 columns."""
    return "--template-kwargs" if name == "chat_template_kwargs" else f"--{name.replace('_', '-')}"


@pytest.mark.parametrize("command", ["generate", "chat", "batch"])
def test_a_command_has_the_flags_that_the_table_gives_it(command: str) -> None:
    flags = {flag.name: flag for flag in get_command(app).commands[command].params if flag.param_type_name == "option"}  # type: ignore[attr-defined]
    options = options_on(COMMAND)
    assert set(flags) & {*OPTIONS, *PROMPTS} - {"images"} == {option.name for option in options}
    for option in options:
        flag = flags[option.name]
        assert option.meaning in flag.help and flag.default is None
        assert {flag_of(option.name), option.short} - {""} == set(flag.opts)
        assert flag.multiple == option.is_list and flag.is_flag == (option.kind == "BOOL")


def test_a_command_asks_for_what_its_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = FakeTransport()
    monkeypatch.setattr(async_client, "GrpcTransport", lambda address, **_: transport)
    texts = {"STRING": "a", "STRINGS": "a", "JSON": "{}", "FP32": "0.5", "INT32": "1", "INT64": "1"}
    said = [(flag_of(o.name), *([texts[o.kind]] if o.kind in texts else [])) for o in options_on(COMMAND)]
    result = CliRunner().invoke(app, ["generate", "hi", "--raw", *(word for words in said for word in words)])
    assert result.exit_code == 0, result.output
    sent = inputs_of(transport.requests[0])
    assert sent.keys() - {"text_input", "stream"} == {option.name for option in options_on(COMMAND)}


def test_the_gateway_takes_what_the_table_gives_it() -> None:
    wanted = {AT_THE_GATEWAY.get(option.name, option.name) for option in options_on(OPENAI | EXTENSION)}
    assert {option.name for option in options_on(OPENAI)}.isdisjoint(option.name for option in options_on(EXTENSION))
    assert wanted <= set(ChatRequest.model_fields)
    beside = set(ChatRequest.model_fields) - wanted
    assert not beside & {*OPTIONS, *PROMPTS} - {"messages", "logprobs"}


@pytest.mark.parametrize("name", [name for name in NUMBERS if OPTIONS[name].surfaces & (OPENAI | EXTENSION)])
def test_the_gateway_refuses_what_is_outside_of_the_range(name: str) -> None:
    option, field = OPTIONS[name], AT_THE_GATEWAY.get(name, name)
    low, high = OPENAI_RANGES.get(name, (option.low, None if isinstance(option.high, str) else option.high))
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    for value, bound in ((low, "greater than or equal to"), (high, "less than")):
        if value is None:
            continue
        inside = 1e-6 if option.low_open and name not in OPENAI_RANGES and value == low else value
        ChatRequest.model_validate({**chat, field: inside})
        outside = value - 1 if value == low else value + 1
        with pytest.raises(ValidationError, match=bound) as refused:
            ChatRequest.model_validate({**chat, field: outside})
        (error,) = refused.value.errors()
        assert error["loc"] == (field,)
        assert float(error["msg"].split()[-1]) == (inside if "or equal" in error["msg"] else inside + 1)


@pytest.mark.parametrize("option", options_on(EXTENSION), ids=lambda option: option.name)
def test_the_gateways_own_fields_are_of_the_tables_type(option: Option) -> None:
    schema = in_chats(option.name)
    kinds = {int: "integer", float: "number", bool: "boolean", str: "string", list: "array", dict: "string"}
    assert schema["type"] == kinds[TYPES[option.kind]]
    assert tuple(schema.get("enum", ())) == option.choices
    assert schema.get("maxItems") == option.max_items
    if option.kind == "STRINGS":
        assert option.characters and schema["items"]["maxLength"] == option.characters[1]


def test_texts_of_openais_fields_are_as_long_as_the_server_takes() -> None:
    stop, user = in_chats("stop"), in_chats("user")
    assert stop["maxItems"] == OPTIONS["stop"].max_items
    assert (stop["items"]["minLength"], stop["items"]["maxLength"]) == OPTIONS["stop"].characters
    assert (0, user["maxLength"]) == OPTIONS["user"].characters


def test_the_page_of_the_gateway_knows_the_ranges() -> None:
    page = (ROOT / "gateway" / "autoglm_gateway" / "web" / "page" / "index.html").read_text(encoding="utf-8")
    fields = {name: text for text in re.findall(r"<input [^>]*>", page) for name in re.findall(r'id="(\w+)"', text)}
    numbers = [name for name in fields if name in NUMBERS]
    assert len(numbers) >= 4
    for name in numbers:
        schema = in_chats(name)
        shown = dict(re.findall(r'\b(min|max)="([^"]+)"', fields[name]))
        assert float(shown["min"]) == schema["minimum"]
        assert float(shown["max"]) == schema["maximum"] if "maximum" in schema else True


def test_vllms_parameters_are_those_of_the_table() -> None:
    assert {option.name for option in options_on(VLLM)} == set(NAMES) & set(OPTIONS)


def test_an_alias_is_no_option_and_leads_to_one() -> None:
    aliases = [alias for option in OPTIONS.values() for alias in option.aliases]
    assert len(aliases) == len(set(aliases)) and not set(aliases) & set(OPTIONS)
    assert {alias: option.name for option in OPTIONS.values() for alias in option.aliases}.items() <= _RENAMED.items()


@pytest.mark.parametrize("option", [o for o in OPTIONS.values() if o.from_model], ids=lambda option: option.name)
def test_the_exporter_lets_pass_what_the_server_takes_from_a_checkpoint(option: Option) -> None:
    high = NAMED[option.high] if isinstance(option.high, str) else option.high
    assert high is not None
    key = option.model_key or option.name
    found = generation_defaults({"do_sample": True, key: high}, vocab_size=500)
    assert found[option.name] == high
    room = min(high, 1023) if option.name in LENGTHS else high  # beside a token of the prompt
    rules = OptionRules(1024, 500, {"max_tokens": 1024, **found})
    assert getattr(rules.check({}, prompt_length=1).sampling, option.name) == room
    too_much = 2**31 if option.name in LENGTHS else high + 1
    with pytest.raises(CheckpointError, match=f"{key} {too_much}"):
        generation_defaults({"do_sample": True, key: too_much}, vocab_size=500)


def test_every_row_has_one_sentence_and_a_place_that_exists() -> None:
    for option in (*PROMPTS.values(), *OPTIONS.values()):
        assert option.meaning.endswith(".") and not {"\n", '"', "|"} & set(option.meaning), option.name
        if option.see:
            page, _, place = option.see.partition("#")
            text = (ROOT / "docs" / page).read_text(encoding="utf-8")
            slugs = [re.sub(r"[^\w -]", "", line).lower() for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
            assert place in [slug.replace(" ", "-") for slug in slugs], option.see

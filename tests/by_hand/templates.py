"""Every chat template that llama-cpp-python's source package carries, beside transformers: `make templates-check`.

The package is downloaded into build/templates and read there; nothing of it is kept in the project. Each template is
rendered in several conversations, and each cell of the table says what came of it:

    equal     the bytes of transformers
    plain     tools and calls are told in plain text: the template has no place for them
    as text   the bytes of transformers where arguments are JSON text: with objects the template tells them wrongly
    refused   an error, as transformers has one
    named     an error that names the message that the template passes over; transformers loses it in silence
    error     an error where transformers has none
    differs   other bytes
    LOST      a message or a call leaves no trace, and nothing says so

Content that is null or absent beside calls is "" on both sides. The last columns are the marks of thinking, what was
found of calls, and whether they are read back and held to (`call_round_trip`).
"""

from __future__ import annotations

import collections
import copy
import hashlib
import io
import json
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoglm_engine.errors import EngineError
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.rendering.template_options import template_options
from autoglm_engine.tokenizer.tools.plain_text import in_plain_text, needs_plain_text
from transformers.utils.chat_template_utils import render_jinja_template

from tests.support.gateway.call_round_trip import calls_of

URL = (
    "https://files.pythonhosted.org/packages/ec/e9/e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3/"
    "llama_cpp_python-0.3.36.tar.gz"
)
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FOLDER = Path("build/templates")
TABLE = Path("build/templates-check.md")
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}

Message = dict[str, Any]


def _call(number: int, name: str, **arguments: Any) -> Message:
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(name: str, **properties: Any) -> Message:
    described = {key: {"type": kind, "description": f"the {key}"} for key, kind in properties.items()}
    parameters = {"type": "object", "properties": described, "required": list(described)}
    return {
        "type": "function",
        "function": {"name": name, "description": f"Tells the {name}.", "parameters": parameters},
    }


TOOLS = [_tool("get_weather", city="string", days="integer"), _tool("now")]
SYSTEM = {"role": "system", "content": "Be brief about it."}
ASKED = {"role": "user", "content": "How is the weather in Zürich?"}
SAID = {"role": "assistant", "content": "It rains there."}
AGAIN = {"role": "user", "content": "And tomorrow?"}
ONE = [_call(1, "get_weather", city='Zü"rich', days=3)]
TWO = [*ONE, _call(2, "now")]
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "17 degrees, clouds"}
RESULT_2 = {"role": "tool", "tool_call_id": "call00002", "name": "now", "content": "a quarter past nine"}


def _calls(calls: list[Message], **content: Any) -> Message:
    return {"role": "assistant", **content, "tool_calls": calls}


THOUGHT = {"reasoning_content": "Rain came from the west, it may go on."}
ON, OFF = {"enable_thinking": True, "thinking": True}, {"enable_thinking": False, "thinking": False}


@dataclass(frozen=True, slots=True)
class Case:
    """`variables`: the template's own."""

    messages: list[Message]
    has_tools: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tools(self) -> list[Message] | None:
        return TOOLS if self.has_tools else None


CASES = {
    "plain": Case([ASKED]),
    "system": Case([SYSTEM, ASKED]),
    "turns": Case([ASKED, SAID, AGAIN]),
    "tools": Case([ASKED], True),
    "empty content": Case([ASKED, _calls(ONE, content=""), RESULT], True),
    "text and call": Case([ASKED, _calls(ONE, content="Let me look."), RESULT], True),
    "two calls": Case([ASKED, _calls(TWO, content=""), RESULT, RESULT_2], True),
    "null content": Case([ASKED, _calls(ONE, content=None), RESULT], True),
    "no content": Case([ASKED, _calls(ONE), RESULT], True),
    "thinking on": Case([ASKED, {**SAID, **THOUGHT}, AGAIN], variables=ON),
    "thinking off": Case([ASKED, {**SAID, **THOUGHT}, AGAIN], variables=OFF),
    "thinking, call": Case([ASKED, {**_calls(ONE, content=""), **THOUGHT}, RESULT], True, ON),
}


def templates() -> dict[str, str]:
    if not any(FOLDER.glob("*.jinja")):
        with urllib.request.urlopen(URL, timeout=600) as answer:
            content = answer.read()
        assert hashlib.sha256(content).hexdigest() == SHA256, f"{URL} is another file than it was"
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(content)) as package:
            for member in package:
                if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                    found = package.extractfile(member)
                    assert found is not None, member.name
                    (FOLDER / Path(member.name).name).write_bytes(found.read())
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}


def reference(source: str, case: Case) -> str | None:
    """None where transformers refuses. Content that is null or absent is "" beside calls."""
    given = [{**turn, "content": turn.get("content") or ""} for turn in copy.deepcopy(case.messages)]
    names = {**SPECIAL, **case.variables}
    try:
        texts, _ = render_jinja_template([given], case.tools, chat_template=source, add_generation_prompt=True, **names)
    except Exception:  # of a template: anything
        return None
    return str(texts[0])


def cell(template: ChatTemplate, source: str, case: Case) -> str:
    expected = reference(source, case)
    text = _rendered(template, case)
    if text is None:
        if expected is None:
            return "refused"
        return "named" if any(reference(source, changed) == expected for changed in _changes(case)) else "error"
    if any(_rendered(template, changed) == text for changed in _changes(case)):
        return "LOST"
    if text == expected:
        return "equal"
    if text == reference(source, replace(case, messages=_with_texts(case.messages))):
        return "as text"
    if needs_plain_text(case.messages, case.tools):
        turns = [{**turn, "content": turn.get("content") or ""} for turn in case.messages]
        plain = (in_plain_text(turns, case.tools, has_system=has_system) for has_system in (True, False))
        if text in (reference(source, replace(case, messages=told, has_tools=False)) for told in plain):
            return "plain"
    return "differs"


def _with_texts(messages: list[Message]) -> list[Message]:
    """Arguments as JSON text, which a few templates expect."""
    changed = copy.deepcopy(messages)
    for call in (call for message in changed for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return changed


def _changes(case: Case) -> Iterator[Case]:
    """In each, one message says something else, or one call has other arguments."""
    messages = case.messages
    for at, message in enumerate(messages):
        if not message.get("tool_calls"):
            yield replace(
                case, messages=[*messages[:at], {**message, "content": "Something else."}, *messages[at + 1 :]]
            )
        for index in range(len(message.get("tool_calls", ()))):
            changed = copy.deepcopy(messages)
            changed[at]["tool_calls"][index]["function"]["arguments"] = {"city": "Elsewhere"}
            yield replace(case, messages=changed)


def _rendered(template: ChatTemplate, case: Case) -> str | None:
    options = template_options(json.dumps(case.variables).encode())
    try:
        return template.render(copy.deepcopy(case.messages), case.tools, options=options)
    except EngineError:
        return None


def row(source: str) -> dict[str, str]:
    template = ChatTemplate(source, SPECIAL)
    try:
        cells = {name: cell(template, source, case) for name, case in CASES.items()}
        marks = template.thinking
        found = {"marks": marks.begin if marks else "", **calls_of(template)}
        return {**cells, **{name: _shown(cell) for name, cell in found.items()}}
    finally:
        template.close()


def _shown(cell: str) -> str:
    """In a column of a table."""
    return cell.replace("|", "\\|").replace("\n", "\\n")


def main() -> None:
    rows = {name: row(source) for name, source in templates().items()}
    columns = [*CASES, "marks", "form", "round trip", "grammar"]
    lines = [f"| template | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(cells[column] for column in columns)} |" for name, cells in rows.items()]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = collections.Counter(cells[case] for cells in rows.values() for case in CASES)
    forms, marks = ({cells[name] for cells in rows.values()} - {""} for name in ("form", "marks"))
    right = {name: sum(cells[name] == "right" for cells in rows.values()) for name in ("round trip", "grammar")}
    both = sum(cells["round trip"] == cells["grammar"] == "right" for cells in rows.values())
    num_thinkers = sum(bool(cells["marks"]) for cells in rows.values())
    print("\n".join(lines))
    print(f"\n{len(rows)} templates, cells: {dict(counts.most_common())}; {len(forms)} forms of calls; {TABLE}")
    print(f"thinking: {num_thinkers} show its marks, {len(marks)} different ones")
    print(
        f"calls: {right['round trip']} read back in any cutting, {right['grammar']} held to by a grammar, {both} both"
    )


if __name__ == "__main__":
    main()

"""Every chat template that llama-cpp-python's source package carries, beside transformers: `make templates-check`.

The package is downloaded into build/templates and read there; nothing of it is kept in the project. Each template is
rendered in several conversations, and each cell of the table says what came of it:

    equal     the bytes of transformers
    plain     tools and calls are told in plain text: the template has no place for them
    refused   an error, as transformers has one
    error     an error where transformers has none
    differs   other bytes
    LOST      a message or a call leaves no trace, and nothing says so

The last columns are what was found of calls, and whether they are read back and held to (`call_round_trip`).
"""

from __future__ import annotations

import collections
import copy
import hashlib
import io
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoglm_engine.errors import EngineError
from autoglm_engine.tokenizer.prompt import ChatTemplate
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


CASES: dict[str, tuple[list[Message], bool]] = {
    "plain": ([ASKED], False),
    "system": ([SYSTEM, ASKED], False),
    "turns": ([ASKED, SAID, AGAIN], False),
    "tools": ([ASKED], True),
    "call": ([ASKED, _calls(ONE, content=""), RESULT], True),
    "text and call": ([ASKED, _calls(ONE, content="Let me look."), RESULT], True),
    "two calls": ([ASKED, _calls(TWO, content=""), RESULT, RESULT_2], True),
    "null": ([ASKED, _calls(ONE, content=None), RESULT], True),
    "absent": ([ASKED, _calls(ONE), RESULT], True),
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


def reference(source: str, messages: list[Message], tools: list[Message] | None) -> str | None:
    """None where transformers refuses. Content that is null or absent is "" beside calls."""
    given = [{**turn, "content": turn.get("content") or ""} for turn in copy.deepcopy(messages)]
    try:
        texts, _ = render_jinja_template([given], tools, chat_template=source, add_generation_prompt=True, **SPECIAL)
    except Exception:  # of a template: anything
        return None
    return str(texts[0])


def cell(template: ChatTemplate, source: str, messages: list[Message], tools: list[Message] | None) -> str:
    expected = reference(source, messages, tools)
    try:
        text = template.render(copy.deepcopy(messages), tools)
    except EngineError:
        return "refused" if expected is None else "error"
    if any(_rendered(template, changed, tools) == text for changed in _changes(messages)):
        return "LOST"
    if text == expected:
        return "equal"
    if needs_plain_text(messages, tools):
        plain = in_plain_text([{**turn, "content": turn.get("content") or ""} for turn in messages], tools)
        if text == reference(source, plain, None):
            return "plain"
    return "differs"


def _changes(messages: list[Message]) -> Iterator[list[Message]]:
    """In each, one message says something else, or one call has other arguments."""
    for at, message in enumerate(messages):
        if not message.get("tool_calls"):
            yield [*messages[:at], {**message, "content": "Something else."}, *messages[at + 1 :]]
        for index in range(len(message.get("tool_calls", ()))):
            changed = copy.deepcopy(messages)
            changed[at]["tool_calls"][index]["function"]["arguments"] = {"city": "Elsewhere"}
            yield changed


def _rendered(template: ChatTemplate, messages: list[Message], tools: list[Message] | None) -> str | None:
    try:
        return template.render(messages, tools)
    except EngineError:
        return None


def row(source: str) -> dict[str, str]:
    template = ChatTemplate(source, SPECIAL)
    try:
        cells = {
            name: cell(template, source, messages, TOOLS if has_tools else None)
            for name, (messages, has_tools) in CASES.items()
        }
        return {**cells, **{name: _shown(cell) for name, cell in calls_of(template).items()}}
    finally:
        template.close()


def _shown(cell: str) -> str:
    """In a column of a table."""
    return cell.replace("|", "\\|").replace("\n", "\\n")


def main() -> None:
    rows = {name: row(source) for name, source in templates().items()}
    columns = [*CASES, "form", "round trip", "grammar"]
    lines = [f"| template | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(cells[column] for column in columns)} |" for name, cells in rows.items()]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = collections.Counter(cells[case] for cells in rows.values() for case in CASES)
    forms = collections.Counter(cells["form"] for cells in rows.values())
    right = {name: sum(cells[name] == "right" for cells in rows.values()) for name in ("round trip", "grammar")}
    both = sum(cells["round trip"] == cells["grammar"] == "right" for cells in rows.values())
    print("\n".join(lines))
    print(f"\n{len(rows)} templates, cells: {dict(counts.most_common())}; {len(forms)} forms of calls; {TABLE}")
    print(
        f"calls: {right['round trip']} read back in any cutting, {right['grammar']} held to by a grammar, {both} both"
    )


if __name__ == "__main__":
    main()

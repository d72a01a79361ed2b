"""What a chat template takes of tools, told by its syntax; and the tokens that calls are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .chat_template import parse, template_names

if TYPE_CHECKING:
    from jinja2 import nodes
    from tokenizers import Tokenizer

    from .tools.call_form import CallForm

# Of forms that the gateway has a name for. Some checkpoints call these special, which would keep them out of the text;
# but they are what tells a call.
CALL_TOKENS = frozenset(
    {
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    }
)

# Fields, variables and roles by which tools, results and documents are told.
_TOLD = ("tools", "tool", "tool_response", "tool_responses", "document", "documents")


@dataclass(frozen=True, slots=True)
class ToolWays:
    """What a template takes of tools. `tools`: where they are told; `calls`: as what a turn tells them."""

    tools: Literal["variable", "system item", "plain text"] = "plain text"
    calls: Literal["tool_calls", "metadata", "plain text"] = "plain text"


def tool_ways(source: str) -> ToolWays:
    """Of a template's source. One that has no place for calls is told in plain text. Raises ArtifactError for what is
    no template."""
    given, named = template_names(source)
    calls: Literal["tool_calls", "metadata"] | None = None
    if "tool_calls" in named:
        calls = "tool_calls"
    elif "metadata" in named:  # GLM-4: one turn a call, and a role of its own for what came of it
        calls = "metadata"
    if calls is None:
        return ToolWays()
    if "tools" in given:
        return ToolWays("variable", calls)
    if calls == "metadata" and "tools" in named:
        return ToolWays("system item", calls)
    return ToolWays()


def call_tokens(tokenizer: Tokenizer, form: CallForm | None) -> dict[str, int]:
    """Those that it has, and their ids. `form`: of the model's template."""
    texts = [] if form is None else list(form.texts())
    added = tokenizer.get_added_tokens_decoder()
    return {
        token.content: token_id
        for token_id, token in added.items()
        if token.content in CALL_TOKENS or (_is_mark(token.content) and any(token.content in text for text in texts))
    }


def visible_tokens(tokenizer: Tokenizer, sources: Iterable[str]) -> frozenset[str]:
    """The special tokens that decoding must keep: those that a call is made of, and that the templates write nowhere
    else."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    found = set(special & CALL_TOKENS)
    for inside, outside in map(_strings_of_calls, sources):
        found |= {token for token in special if _is_mark(token) and token in inside and token not in outside}
    return frozenset(found)


def _is_mark(token: str) -> bool:
    """Not space, a bracket or a word that calls have by chance."""
    return len(token.strip()) > 2 and not token.strip().isalnum()


def _strings_of_calls(source: str) -> tuple[str, str]:
    """What a template writes where a turn has calls, and what it writes of other turns; what it writes before all
    turns, or where tools are told, is neither. Raises ArtifactError for what is no template."""

    template = parse(source)
    made: dict[str, list[Sequence[nodes.Node]]] = {}
    for defined, body in _definitions(template):
        for name in defined:
            made.setdefault(name, []).append(body)
    written: dict[str, list[str]] = {"calls": [], "turns": [], "tools": [], "": []}
    used = set[tuple[str, str]]()
    todo: list[tuple[Sequence[nodes.Node], str]] = [(template.body, "")]
    while todo:
        for strings, where, names in _sorted(*todo.pop()):
            written[where].extend(strings)
            new = {(name, where) for name in names} - used
            used |= new
            todo.extend((body, where) for name, _ in sorted(new) for body in made.get(name, ()))
    return "\n".join(written["calls"]), "\n".join(written["turns"])


def _definitions(template: nodes.Template) -> Iterator[tuple[set[str], list[nodes.Node]]]:
    """Macros and variables: their names, and what they stand for. A field of a namespace is one of its own."""
    from jinja2 import nodes

    for node in template.find_all((nodes.Macro, nodes.Assign, nodes.AssignBlock)):
        if isinstance(node, nodes.Macro):
            yield {node.name}, node.body
            continue
        assert isinstance(node, (nodes.Assign, nodes.AssignBlock)), node
        targets = {str(name) for found in _and_inner(node.target) if (name := getattr(found, "name", None))}
        if isinstance(node, nodes.AssignBlock):
            yield targets, node.body
        elif isinstance(node.node, nodes.Call) and node.node.kwargs:
            for given in node.node.kwargs:
                yield {f"{target}.{given.key}" for target in targets}, [nodes.Output([given.value])]
        else:
            yield targets, [nodes.Output([node.node])]


def _and_inner(node: nodes.Node) -> list[nodes.Node]:
    from jinja2 import nodes

    return [node, *node.find_all(nodes.Node)]


def _sorted(body: Sequence[nodes.Node], where: str) -> Iterator[tuple[list[str], str, set[str]]]:
    """Strings, where they are written, and the names that are read beside them."""
    from jinja2 import nodes

    for node in body:
        if isinstance(node, nodes.If):
            yield from _sorted(node.body, _place(node.test, where))
            yield from _sorted([*node.elif_, *node.else_], where)
        elif isinstance(node, nodes.For):
            turns = "turns" if any("message" in name for name in _names(node.iter)) else ""
            yield from _sorted([*node.body, *node.else_], _place(node.iter, where or turns))
        elif not isinstance(node, (nodes.Macro, nodes.Assign, nodes.AssignBlock)):  # these count where they are used
            yield _strings(node), where, _names(node)


def _place(condition: nodes.Node, where: str) -> str:
    from jinja2 import nodes

    if any(_mentions(node, "tool_calls") for node in condition.find_all(nodes.Not)):
        return where
    if _mentions(condition, "tool_calls"):
        return "calls"
    return "tools" if where != "calls" and any(_mentions(condition, word) for word in _TOLD) else where


def _mentions(node: nodes.Node, word: str) -> bool:
    return any(word in (getattr(each, name, None) for name in ("attr", "value", "name")) for each in _and_inner(node))


def _names(node: nodes.Node) -> set[str]:
    """That are read, and fields of them."""
    from jinja2 import nodes

    inner = _and_inner(node)
    fields = [each for each in inner if isinstance(each, nodes.Getattr) and isinstance(each.node, nodes.Name)]
    names = {each.name for each in inner if isinstance(each, nodes.Name)}
    return names | {f"{each.node.name}.{each.attr}" for each in fields if isinstance(each.node, nodes.Name)}


def _strings(node: nodes.Node) -> list[str]:
    from jinja2 import nodes

    constants = [found.value for found in node.find_all(nodes.Const) if isinstance(found.value, str)]
    return [*(found.data for found in node.find_all(nodes.TemplateData)), *constants]

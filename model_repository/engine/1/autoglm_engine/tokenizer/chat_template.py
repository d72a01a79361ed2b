"""A checkpoint's Jinja template, compiled and rendered as transformers'
`apply_chat_template(add_generation_prompt=True)` does: sandboxed, with `raise_exception`, `strftime_now`, loop controls
and the names of the special tokens.

A sandbox keeps a template from the interpreter, not from its time and memory: compiling one, which computes its
constants, and rendering it are for a process that has limits (`template_process`). Reading one (`template_names`) is
for anybody.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autoglm_engine.errors import ArtifactError

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment


class TooLong(Exception):
    """The text has more characters than anybody wants."""


def template_names(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """The variables that a template expects to be given, and the fields and strings that it names in its code. A
    variable that it sets itself before it reads it is none of the former. Raises ArtifactError for what is no
    template."""
    from jinja2 import nodes

    parsed = parse(source)
    try:
        given = _given(parsed, set(), [])
        fields = {node.attr for node in parsed.find_all(nodes.Getattr)}
        strings = {node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)}
        return frozenset(given), frozenset(fields | strings)
    except RecursionError as error:
        raise _unreadable(error) from None


def parse(source: str) -> nodes.Template:
    """Raises ArtifactError for what is no template."""
    from jinja2 import TemplateError

    try:
        return _environment().parse(source)
    except (TemplateError, RecursionError) as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> ArtifactError:
    return ArtifactError(f"the chat template cannot be read: {error}")


def _given(node: nodes.Node, own: set[str], new: list[str]) -> Iterator[str]:
    """Names that are read where the template has not set them for sure. `own`: those that it has; what a branch or a
    loop sets counts inside of it. `new`: gets the names that `own` gets."""
    from jinja2 import nodes

    if isinstance(node, nodes.Name):
        if node.ctx == "store":
            new += [node.name] if node.name not in own else []
            own.add(node.name)
        elif node.name not in own:
            yield node.name
    fields = [node.node, node.target] if isinstance(node, nodes.Assign) else [value for _, value in node.iter_fields()]
    for field in fields:  # an assignment reads before it writes
        is_scope = isinstance(node, (nodes.If, nodes.For, nodes.Macro, nodes.CallBlock))
        inside = list[str]() if is_scope else new
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, nodes.Node):
                yield from _given(child, own, inside)
        own.difference_update(inside if is_scope else ())


def compile_template(source: str) -> Template:
    """Raises TemplateError, and whatever its constants raise."""
    return _environment().from_string(source)


def render(template: Template, names: Mapping[str, Any], max_characters: int) -> str:
    """Raises TooLong before more is put together, and whatever the template raises."""
    return "".join(_bounded(template.generate(names), max_characters))


def _bounded(pieces: Iterator[str], max_characters: int) -> Iterator[str]:
    for piece in pieces:
        max_characters -= len(piece)
        if max_characters < 0:
            raise TooLong
        yield piece


def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import Environment, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks an assistant's words for training; here its body is simply rendered."""

        def __init__(self, environment: Environment) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes HTML; a prompt is not HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

"""How a model writes its calls, told by its chat template: renderings of marked calls are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from autoglm_engine.errors import InvalidRequest

from .call_form import INDEX, KEY, CallForm
from .compared_texts import common_end
from .found_tags import find_tags
from .marked_answers import ALPHA, BETA, KEY_A, KEY_B, SAID, Answers, Render, Unreadable, with_places

_ARGUMENTS: Mapping[str, Any] = {KEY_B: 'zq"vé\n', KEY_A: {"zqin": [1, 2.5, True, None, {}]}}
_ONE: Mapping[str, Any] = {KEY_B: "zqvalue"}
_PYTHON_TAG = "<|python_tag|>"  # Llama's templates render it for tools of their own only, models write it for all
_DECODER = json.JSONDecoder()


def find_call_form(source: str, render: Render, end_tokens: Collection[str] = ()) -> CallForm | None:
    """None where calls are written in no way that is known. `source`: of the template. `end_tokens`: that end an
    answer, and are never in its text."""
    for as_text in (False, True):
        for short_ids in (False, True):
            try:
                answers = Answers.of(render, short_ids=short_ids, as_text=as_text)
                form = _form(answers)
            except (InvalidRequest, Unreadable, RecursionError):  # the last one of what a template makes of arguments
                continue
            also = (*form.also, *([_PYTHON_TAG] if not form.opening.startswith("<") and _PYTHON_TAG in source else []))
            return _without_ends(replace(form, also=also), end_tokens)
    return None


def _form(answers: Answers) -> CallForm:
    """Raises Unreadable, or InvalidRequest."""
    form = _of_json(answers) or _of_tags(answers)
    form = replace(form, short_ids=answers.short_ids, arguments_as_text=answers.as_text)
    return _with_lead(answers, form)


def _of_json(answers: Answers) -> CallForm | None:
    """Of calls whose arguments are one JSON object."""
    text = answers.calling((ALPHA, _ARGUMENTS))
    if (place := _json_place(text, _ARGUMENTS)) is None:
        return None
    opening, middle = _head(text[: place[0]], ALPHA)
    name_field, arguments_field = _fields(text, _ARGUMENTS)
    two = _two(answers)
    between = None
    if two is not None:
        first = _json_place(two, _ONE)
        second = _json_place(two, {}, first[1]) if first else None
        if first is not None and second is not None and BETA in two[first[1] : second[0]]:
            between, other = _head(two[first[1] : second[0]], BETA)
            opening, middle, between = _with_index(opening, middle, between, other)
    written = text[place[0] : place[1]]
    return CallForm(
        opening,
        middle,
        with_places(text[place[1] :]),
        between,
        name_field=name_field,
        arguments_field=arguments_field,
        spacing=_spacing(written),
        is_sorted=_is_sorted(list(json.loads(written))),
    )


def _of_tags(answers: Answers) -> CallForm:
    def after(arguments: Mapping[str, Any]) -> str:
        text = answers.calling((ALPHA, arguments))
        return text[_name_end(text, ALPHA) :]

    middle, tags, closing = find_tags(after)
    text = answers.calling((ALPHA, _ONE))
    opening = with_places(text[: _name_end(text, ALPHA) - len(ALPHA)])
    between = None
    if (two := _two(answers)) is not None:
        rest = two[two.find("zqvalue") + len("zqvalue") :].removeprefix(tags.quote)
        rest = rest.removeprefix(tags.after_value.replace(KEY, KEY_B))
        between = with_places(rest[: _name_end(rest, BETA) - len(BETA)])
        other = rest[_name_end(rest, BETA) :].removesuffix(closing)
        opening, middle, between = _with_index(opening, with_places(middle), between, with_places(other))
    ordered = answers.calling((ALPHA, {KEY_B: "x", KEY_A: "y"}))
    is_sorted = ordered.find(KEY_A) < ordered.find(KEY_B)
    return CallForm(opening, with_places(middle), with_places(closing), between, tags=tags, is_sorted=is_sorted)


def _two(answers: Answers) -> str | None:
    """An answer with two calls; None where the template has no place for the second."""
    try:
        text = answers.calling((ALPHA, _ONE), (BETA, {}))
    except (InvalidRequest, Unreadable):
        return None
    return text if BETA in text else None


def _json_place(text: str, value: Mapping[str, Any], begin: int = 0) -> tuple[int, int] | None:
    """Where the object begins and ends."""
    for found in re.finditer(r"\{", text[begin:]):
        at = begin + found.start()
        try:
            read, end = _DECODER.raw_decode(text, at)
        except ValueError:
            continue
        if read == value:
            return at, end
    return None


def _head(text: str, name: str) -> tuple[str, str]:
    """What stands before the name, and after it."""
    if (at := text.rfind(name)) < 0:
        raise Unreadable
    return with_places(text[:at]), with_places(text[at + len(name) :])


def _name_end(text: str, name: str) -> int:
    """Of the last place where it is, before any argument."""
    until = text.find(KEY_B)
    at = text.rfind(name, 0, until if until >= 0 else len(text))
    if at < 0:
        raise Unreadable
    return at + len(name)


def _fields(text: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Of the object that a call is; "" where it is none."""
    for found in re.finditer(r"\{", text):
        try:
            read, _ = _DECODER.raw_decode(text, found.start())
        except ValueError:
            continue
        names = [key for key, value in read.items() if value == ALPHA]
        values = [key for key, value in read.items() if value == arguments]
        if names and values:
            return names[0], values[0]
    return "", ""


def _with_index(opening: str, middle: str, between: str, other: str) -> tuple[str, str, str]:
    """A number that grows from call to call becomes a place. `other`: the middle of the second call."""
    if middle != other:
        middle, other = (re.sub(r"\d+", INDEX, text) for text in (middle, other))
        if middle != other:
            raise Unreadable
    first, second = (list(re.finditer(r"\d+", text))[-1:] for text in (opening, between))
    if first and second and int(second[0].group()) == int(first[0].group()) + 1:
        opening, between = (
            f"{text[: found.start()]}{INDEX}{text[found.end() :]}"
            for text, found in ((opening, first[0]), (between, second[0]))
        )
    return opening, middle, between


def _spacing(written: str) -> tuple[str, str] | None:
    value = json.loads(written)
    for spacing in ((", ", ": "), (",", ":")):
        if written in (json.dumps(value, ensure_ascii=is_ascii, separators=spacing) for is_ascii in (False, True)):
            return spacing
    return None


def _is_sorted(keys: list[str]) -> bool:
    return keys == sorted(keys)


def _with_lead(answers: Answers, form: CallForm) -> CallForm:
    """What is written before the opening only where a call begins an answer is not of the opening."""
    try:
        text = answers.calling((ALPHA, _ONE), content=SAID)
    except (InvalidRequest, Unreadable):
        text = ""
    opening, also = form.opening, tuple[str, ...]()
    said, name = text.find(SAID), text.find(ALPHA)
    text_first = 0 <= said < name
    if text_first:
        before = text[said + len(SAID) : text.find(KEY_B)]
        before, _ = _head(before, ALPHA)
        if INDEX in form.opening:
            before = re.sub(r"\d+(?=\D*$)", INDEX, before)
        opening = form.opening[len(form.opening) - common_end(form.opening, before) :]
        also = (before.strip(),) if not opening.strip() and before.strip() else ()
        if form.opening.strip() and not opening.strip():
            raise Unreadable
    opening, lead = opening.lstrip(), answers.lead + form.opening.removesuffix(opening.lstrip())
    return replace(form, opening=opening, lead=lead, text_first=text_first, also=also)


def _without_ends(form: CallForm, end_tokens: Collection[str]) -> CallForm:
    for token in end_tokens:
        between = None if form.between is None or token in form.between else form.between
        opening = form.opening.rpartition(token)[2].lstrip()
        form = replace(form, opening=opening, closing=form.closing.partition(token)[0], between=between)
    return form

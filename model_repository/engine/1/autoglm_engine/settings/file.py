"""Serving settings from a file, and to and from the texts that the environment and config.pbtxt hold."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoglm_engine.errors import InvalidRequest

from .model import ServingSettings
from .redis_url import shown_redis_url

Value = str | int | float | bool
VARIABLE_PREFIX = "AUTOGLM_"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(ServingSettings)}


def read_settings(path: Path) -> dict[str, Value]:
    """What the file sets. Raises InvalidRequest for a file of another kind, an unknown name, a value of another type or
    outside its range."""
    found = _parse(path)
    for name, value in found.items():
        _check_type(name, value)
    ServingSettings(**found)
    return found


def settings_of(texts: Mapping[str, str], chosen: Mapping[str, Value], environ: Mapping[str, str]) -> ServingSettings:
    """The environment goes first, then what a file chose, then `texts`, the parameters of config.pbtxt."""
    values: dict[str, Any] = {name: parse_text(name, text) for name, text in texts.items()}
    values |= chosen
    values |= {name: parse_text(name, environ[variable(name)]) for name in _DEFAULTS if variable(name) in environ}
    return ServingSettings(**values)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{VARIABLE_PREFIX}{name.upper()}"


def parse_text(name: str, text: str) -> Value:
    """Raises InvalidRequest for an unknown name and for a text that is not of the setting's type."""
    kind = type(_default(name))
    try:
        return _FLAGS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise InvalidRequest(f"the setting {name} is {text!r}; it must be {_KINDS[kind]}") from None


def as_text(value: Value) -> str:
    """For the environment; `parse_text` reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def default_text(name: str) -> str:
    """As `as_text`."""
    return as_text(_default(name))


def as_toml(settings: ServingSettings) -> str:
    """A file that `read_settings` reads back to the same settings, or refuses where a password in them is hidden."""
    shown = dataclasses.asdict(settings) | {"redis_url": shown_redis_url(settings.redis_url)}
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in shown.items())


def _parse(path: Path) -> dict[str, Any]:
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise InvalidRequest(f"{path} has the suffix {path.suffix!r}; settings are read from .toml and .json")
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} holds {type(found).__name__}; it must hold one table of settings")
    return found


def _parse_toml(text: str) -> dict[str, Any]:
    """Only where a file is read: Python 3.10 has no parser, and no model's process needs one."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise InvalidRequest(
                "Python 3.10 reads .toml with the package tomli: pip install tomli, or use .json"
            ) from None
    found: dict[str, Any] = tomllib.loads(text)
    return found


_PARSERS: Mapping[str, Callable[[str], object]] = {".toml": _parse_toml, ".json": json.loads}


def _default(name: str) -> Any:
    if name not in _DEFAULTS:
        near = difflib.get_close_matches(name, _DEFAULTS, 1)
        known = f"did you mean {near[0]}?" if near else f"known are {', '.join(_DEFAULTS)}"
        raise InvalidRequest(f"there is no setting {name!r:.80}; {known}")
    return _DEFAULTS[name]


def _check_type(name: str, value: object) -> None:
    kind = type(_default(name))
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        shown = "of another type" if name == "redis_url" else repr(value)
        raise InvalidRequest(f"the setting {name} is {shown}; it must be {_KINDS[kind]}")

"""The gateway's settings from a file, and back."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from .error import SettingsError
from .keys import KEYS_VARIABLE, Key, read_keys
from .model import GatewaySettings

_NOT_IN_FILES = ("keys",)


def read_settings(path: Path) -> dict[str, Any]:
    """What the file sets. Raises SettingsError for what is no TOML, an unknown name and a value of another type."""
    try:
        found = tomllib.loads(_text_of(path))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no TOML: {error}") from None
    return _typed(GatewaySettings, found)


def settings_of(values: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> GatewaySettings:
    """With the keys of the file that `values` name, or of the environment. `aliases` may be names alone where there is
    one model to mean. Raises SettingsError."""
    default = GatewaySettings()
    names = tuple(values.get("models") or (values.get("model", default.model),))
    aliases = values.get("aliases", tuple(default.aliases) if len(names) == 1 else ())
    if not isinstance(aliases, Mapping):
        if aliases and len(names) > 1:
            raise SettingsError(f"the alias {aliases[0]!r:.80} says not which of {', '.join(names):.200} it means")
        aliases = dict.fromkeys(aliases, names[0])
    return GatewaySettings(**{**values, "aliases": aliases, "keys": _keys(values.get("keys_file", ""), environ)})


def as_toml(settings: GatewaySettings) -> str:
    """A file that `read_settings` reads back to the same settings. What is None is left out: TOML has no word for
    it."""
    shown = {name: getattr(settings, name) for name in _names()}
    return "".join(f"{name} = {_toml(value)}\n" for name, value in shown.items() if value is not None)


def _keys(file: str, environ: Mapping[str, str]) -> tuple[Key, ...]:
    said = environ.get(KEYS_VARIABLE, "")
    if file and said:
        raise SettingsError(f"keys come from keys_file or from ${KEYS_VARIABLE}, not from both")
    if file:
        return read_keys(_text_of(Path(file)), file)
    return read_keys(said, f"${KEYS_VARIABLE}") if said else ()


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8") from None


def _names(kind: type = GatewaySettings) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.name not in _NOT_IN_FILES)


def _typed(kind: type, found: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """`found` for the fields of `kind`; where one of them is a group of settings, it is built."""
    kinds = get_type_hints(kind)
    values = dict[str, Any]()
    for name, value in found.items():
        if name not in _names(kind):
            near = difflib.get_close_matches(name, _names(kind), 1)
            known = f"did you mean {group}{near[0]}?" if near else f"known are {', '.join(_names(kind))}"
            raise SettingsError(f"there is no setting {group + name!r:.80}; {known}")
        if dataclasses.is_dataclass(kinds[name]) and isinstance(value, Mapping):
            values[name] = kinds[name](**_typed(kinds[name], value, f"{group}{name}."))
        elif not _is_of(kinds[name], value):
            shown = _SHOWN.get(kinds[name], "a table")
            raise SettingsError(f"the setting {group}{name} is {value!r:.80}; it must be {shown}")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return values


def _is_of(kind: Any, value: Any) -> bool:
    match value:
        case bool():
            return kind is bool
        case int():
            return kind in (int, int | None, float, float | None)
        case float():
            return kind in (float, float | None)
        case str():
            return kind in (str, str | None)
        case list():
            return kind == tuple[str, ...] and all(isinstance(item, str) for item in value)
        case Mapping():
            return bool(kind == Mapping[str, str]) and all(isinstance(item, str) for item in value.values())
    return False


_SHOWN: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    float | None: "a number",
    str: "a string",
    str | None: "a string",
    tuple[str, ...]: "a list of strings",
    Mapping[str, str]: "a table of strings",
}


def _toml(value: Any) -> str:
    """Strings of JSON are strings of TOML, but for control characters that nobody has in a setting."""
    if dataclasses.is_dataclass(value):
        value = {name: part for name in _names(type(value)) if (part := getattr(value, name)) is not None}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)

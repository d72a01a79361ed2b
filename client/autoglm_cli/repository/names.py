"""The config.pbtxt files of a family of models, made of those in the tree: the same text, comments too, but for the
names and for what a family has for itself. Each place must be there once, else the tree's file is not what this
knows."""

from __future__ import annotations

import re
from collections.abc import Mapping

from autoglm_client.model_names import ENSEMBLE, ModelNames

_DEFAULT = ModelNames.of(ENSEMBLE)


def renamed(text: str, model: str, names: ModelNames) -> str:
    """`text`: of the tree's `model`, for the model in its place among `names`. Raises ValueError where a place is
    missing."""
    text = _replace(text, f'name: "{model}"', f'name: "{names.of_default(model)}"')
    if model == _DEFAULT.ensemble:
        for step in _DEFAULT.steps:
            text = _replace(text, f'      model_name: "{step}"', f'      model_name: "{names.of_default(step)}"')
    return text


def with_parameters(text: str, values: Mapping[str, str]) -> str:
    """With other values of these parameters, each of which must be there. Raises ValueError for one that is not, and
    for a value that a line cannot hold."""
    for name, value in values.items():
        if not re.fullmatch(r'[^"\\\x00-\x1f\x7f]*', value):
            raise ValueError(
                f"the parameter {name} is {value!r:.80}; a quote, a backslash or a control character cannot be in it"
            )
        before, after = f'parameters {{ key: "{name}" value {{ string_value: "', '" } }'
        found = re.findall(re.escape(before) + '[^"]*' + re.escape(after), text)
        text = _replace(text, found[0] if found else f"{before}...{after}", f"{before}{value}{after}")
    return text


def _replace(text: str, old: str, new: str) -> str:
    """Where it begins a line."""
    place = re.compile(f"^{re.escape(old)}", re.MULTILINE)
    if (count := len(place.findall(text))) != 1:
        raise ValueError(f"{old.strip()} is there {count} times; it must be there once")
    return place.sub(lambda _: new, text)

"""The inputs of the config.pbtxt files that take options."""

from __future__ import annotations

import re

from autoglm_engine.options.table import OPTIONS, Option

from .regions import with_region, without_region

INPUTS, MAP = "options", "option maps"
TOKENIZER = "tokenizer"
MODELS = (TOKENIZER, "autoglm", "ensemble", "vllm_model")


def config(model: str, text: str) -> str:
    """Its config.pbtxt with every option as an input, but for names that it has for tensors of its own."""
    own = set(re.findall(r'\{ name: "(\w+)"', without_region(text, INPUTS)))
    options = [option for option in OPTIONS.values() if option.name not in own]
    made = with_region(text, INPUTS, "".join(_input(option, is_step=model == TOKENIZER) for option in options))
    return made if model == TOKENIZER else with_region(made, MAP, "".join(_mapped(option) for option in options))


def _input(option: Option, *, is_step: bool) -> str:
    """`is_step`: of a model that Triton batches, unlike an ensemble."""
    ragged = ", allow_ragged_batch: true" if is_step and option.is_list else ""
    dims = -1 if option.is_list else 1
    return f'  {{ name: "{option.name}", data_type: TYPE_{option.dtype}, dims: [ {dims} ], optional: true{ragged} }},\n'


def _mapped(option: Option) -> str:
    return f'      input_map {{ key: "{option.name}", value: "{option.name}" }}\n'

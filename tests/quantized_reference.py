"""transformers with the weights, and for fp8 the activations, that an engine of some precision really multiplies.

Whatever differs from it, beyond rounding of 16-bit results, is wrong in the lowering and not the precision's price.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from autoglm_export.families import FAMILIES
from autoglm_export.reference import Reference
from autoglm_export.spec import ModelSpec
from autoglm_export.weights import Source, source_names

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Record = Callable[[torch.Tensor], None]
_E4M3, _LARGEST = torch.float8_e4m3fn, 448.0


def quantize_reference(
    reference: Reference,
    spec: ModelSpec,
    precision: str,
    scales: Mapping[tuple[str, ...], Any],
    record: Record = lambda rows: None,
) -> None:
    """Change the model in place; `scales`: see `tensorrt_networks.Defined`. `record` is given all activations that a
    linear layer rounds to E4M3, before that."""
    parameters = dict(reference.model.named_parameters())
    modules = dict(reference.model.named_modules())
    with torch.no_grad():
        for name, source in source_names(spec, FAMILIES[spec.family]).items():
            if name in ("embed", "lm_head"):
                _replace(parameters[source.name], source, lambda rows: rows.to(torch.float16).float())
            elif name.endswith(".weight"):
                _linear(name.removesuffix(".weight"), source, precision, scales, parameters, modules, record)


def _linear(
    name: str,
    source: Source,
    precision: str,
    scales: Mapping[tuple[str, ...], Any],
    parameters: Any,
    modules: Any,
    record: Record,
) -> None:
    parameter = parameters[source.name]
    if precision in _TYPES:
        _replace(parameter, source, lambda rows: rows.to(_TYPES[precision]).float())
    elif precision == "fp8":
        _replace(parameter, source, _fp8_rows)
        if source.part == 0:  # gate and up of one matrix have the same inputs
            _round_inputs(modules[source.name.removesuffix(".weight")], _of_group(name, scales)[1], record)
    else:
        _replace(parameter, source, lambda rows: _int4_rows(name, len(rows), scales))


def _replace(parameter: torch.Tensor, source: Source, change: Any) -> None:
    count = len(parameter) // source.parts
    rows = slice(source.part * count, (source.part + 1) * count)
    parameter[rows] = change(parameter[rows].clone())


def _fp8_rows(rows: torch.Tensor) -> torch.Tensor:
    scale = rows.abs().amax(dim=1, keepdim=True) / _LARGEST
    return (rows / scale).clamp(-_LARGEST, _LARGEST).to(_E4M3).float() * scale


def _round_inputs(module: torch.nn.Module, largest: float, record: Record) -> None:
    step = largest / _LARGEST

    def rounded(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        record(inputs[0])
        return ((inputs[0] / step).clamp(-_LARGEST, _LARGEST).to(_E4M3).float() * step, *inputs[1:])

    module.register_forward_pre_hook(rounded)


def _int4_rows(name: str, count: int, scales: Mapping[tuple[str, ...], Any]) -> torch.Tensor:
    """The `count` rows of one layer out of the group that it was quantised with; key and value have as many rows."""
    group, weight = _of_group(name, scales)
    rows, place = weight.restored(), group.index(name)
    start = 0 if place == 0 else len(rows) - (len(group) - place) * count
    return torch.from_numpy(rows[start : start + count].copy())


def _of_group(name: str, scales: Mapping[tuple[str, ...], Any]) -> tuple[tuple[str, ...], Any]:
    return next((group, found) for group, found in scales.items() if name in group)

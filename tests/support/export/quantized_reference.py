"""transformers with the weights, and for fp8 the activations, that an engine of some precision really multiplies.

Whatever differs from it, beyond rounding of 16-bit results, is wrong in the lowering and not the precision's price.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from autoglm_export.checkpoint.families import FAMILIES
from autoglm_export.checkpoint.weights import Source, source_names
from autoglm_export.model.spec import ModelSpec
from autoglm_export.parity.reference import Reference

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Record = Callable[[torch.Tensor], None]
_E4M3, _LARGEST = torch.float8_e4m3fn, 448.0


def quantize_reference(
    reference: Reference,
    spec: ModelSpec,
    precision: str,
    scales: Mapping[tuple[str, ...], Any],
    record: Record = lambda rows: None,
    kv_dtype: str = "bf16",
) -> None:
    """Change the model in place; `scales`: see `tensorrt_networks.Defined`. `record` is given all activations that a
    linear layer rounds to E4M3, before that. `kv_dtype`: the 16-bit type beside fp8."""
    parameters = dict(reference.model.named_parameters())
    modules = dict(reference.model.named_modules())
    with torch.no_grad():
        for name, source in source_names(spec, FAMILIES[spec.family]).items():
            if name in ("embed", "lm_head"):
                _replace(parameters[source.name], source, lambda rows: rows.to(torch.float16).float())
            elif name.endswith(".weight"):
                layer = name.removesuffix(".weight")
                if precision == "fp8":
                    Fp8(kv_dtype, scales, parameters, modules, record).change(layer, source)
                else:
                    _linear(layer, source, precision, scales, parameters[source.name])


def _linear(
    name: str, source: Source, precision: str, scales: Mapping[tuple[str, ...], Any], parameter: torch.Tensor
) -> None:
    if precision in _TYPES:
        dtype = torch.bfloat16 if name.endswith((".output", ".down")) else _TYPES[precision]
        _replace(parameter, source, lambda rows: rows.to(dtype).float())
    else:
        _replace(parameter, source, lambda rows: _int4_rows(name, len(rows), scales))


def _replace(parameter: torch.Tensor, source: Source, change: Any) -> None:
    count = len(parameter) // source.parts
    rows = slice(source.part * count, (source.part + 1) * count)
    parameter[rows] = change(parameter[rows].clone())


@dataclass(frozen=True)
class Fp8:
    """Layers in E4M3, and those without a scale in the 16-bit type. What is dequantised is so with a scale of the type
    that it is multiplied in: bfloat16, or float32 beside float16."""

    kv_dtype: str
    scales: Mapping[tuple[str, ...], Any]
    parameters: Mapping[str, torch.Tensor]
    modules: Mapping[str, torch.nn.Module]
    record: Record

    def change(self, name: str, source: Source) -> None:
        parameter = self.parameters[source.name]
        if not any(name in group for group in self.scales):
            _replace(parameter, source, lambda rows: rows.to(_TYPES[self.kv_dtype]).float())
            return
        _replace(parameter, source, self._rounded_weight)
        step = self._scale(torch.tensor(_of_group(name, self.scales)[1] / _LARGEST))
        self._round_inputs(self.modules[source.name.removesuffix(".weight")], source, step)

    def _scale(self, scale: torch.Tensor) -> torch.Tensor:
        return scale.to(torch.bfloat16).float() if self.kv_dtype == "bf16" else scale

    def _rounded_weight(self, rows: torch.Tensor) -> torch.Tensor:
        scale = self._scale(rows.abs().amax(dim=1, keepdim=True) / _LARGEST)
        return _e4m3(rows / scale) * scale

    def _round_inputs(self, module: torch.nn.Module, source: Source, step: torch.Tensor) -> None:
        """Of the rows of a matrix that are this layer: gate and up may be parts of one."""

        def rounded(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
            self.record(inputs[0])
            size = outputs.shape[-1] // source.parts
            part = slice(source.part * size, (source.part + 1) * size)
            changed = outputs.clone()
            bias = None if module.bias is None else module.bias[part]
            changed[..., part] = torch.nn.functional.linear(_e4m3(inputs[0] / step) * step, module.weight[part], bias)
            return changed

        module.register_forward_hook(rounded)


def _e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-_LARGEST, _LARGEST).to(_E4M3).float()


def _int4_rows(name: str, count: int, scales: Mapping[tuple[str, ...], Any]) -> torch.Tensor:
    """The `count` rows of one layer out of the group that it was quantised with; key and value have as many rows."""
    group, weight = _of_group(name, scales)
    rows, place = weight.restored(), group.index(name)
    start = 0 if place == 0 else len(rows) - (len(group) - place) * count
    return torch.from_numpy(rows[start : start + count].copy())


def _of_group(name: str, scales: Mapping[tuple[str, ...], Any]) -> tuple[tuple[str, ...], Any]:
    return next((group, found) for group, found in scales.items() if name in group)

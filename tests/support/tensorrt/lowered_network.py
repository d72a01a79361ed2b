"""A runner on the fake GPU of the network that the lowering defines, computed in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorrt_rtx as trt
from autoglm_export.model.spec import ModelSpec
from autoglm_export.runtimes import image_details
from autoglm_export.tensorrt.engine_weights import EngineWeights
from autoglm_export.tensorrt.options import checked_kv_dtype
from autoglm_export.tensorrt.profiles import profiles_of

from tests.support.tensorrt.checked_artifacts import add_reference
from tests.support.tensorrt.contract_network import GpuBench, spec_of
from tests.support.tensorrt.fake_tensorrt import Arrays, FakeNetwork, FakeTensor
from tests.support.tensorrt.tensorrt_networks import Defined, define_network
from tests.support.tensorrt.trt_interpreter import Interpreter

NUM_SLOTS, CHUNK, MAX_LENGTH, NUM_CANDIDATES = 3, 8, 20, 5
CALIBRATION = [np.random.default_rng(2).integers(0, 97, 200).astype(np.int32)]
CACHE_TYPES = {"fp16": "float16", "bf16": "bfloat16"}
TYPES: dict[Any, Any] = {
    trt.DataType.FLOAT: np.float32,
    trt.DataType.INT32: np.int32,
    trt.DataType.HALF: np.float16,
    trt.DataType.BF16: ml_dtypes.bfloat16,
}


def open_lowered(folder: Path, precision: str, **details: Any) -> GpuBench:
    """Of GLM-4's layers. `details`: of the manifest, in place of the usual ones."""
    made = lowered(folder, precision, **details)
    made.open()
    return made


def lowered(
    folder: Path, precision: str, attention: str = "fused", spec: str | ModelSpec = "glm4", **details: Any
) -> GpuBench:
    """Not open, and with the reference that an export writes."""
    made = GpuBench(
        folder,
        spec,
        rtx=True,
        max_length=MAX_LENGTH,
        prefill_chunk=CHUNK,
        num_candidates=NUM_CANDIDATES,
        cache_dtype=CACHE_TYPES[checked_kv_dtype(precision, None)],
        **{"num_slots": NUM_SLOTS, **image_details(spec_of(spec)), **details},
    )
    defined = define_network(
        made.spec,
        made.weights,
        precision,
        cache_length=made.shapes.cache_length,
        num_candidates=NUM_CANDIDATES,
        texts=CALIBRATION if precision == "fp8" else (),
        attention=attention,
        feature_rows=made.shapes.feature_rows,
    )
    made.trt.network = _lowered(made, defined)
    add_reference(made, precision, EngineWeights(defined.network))
    return made


def _lowered(bench: GpuBench, defined: Defined) -> FakeNetwork:
    """The definition as an engine: its own tensors, the lowering's profiles."""
    definition = defined.definition
    tensors: dict[str, FakeTensor] = {}
    for index in range(definition.num_inputs):
        tensor = definition.get_input(index)
        tensors[tensor.name] = FakeTensor(TYPES[tensor.dtype], tuple(tensor.shape), is_input=True)
    for index in range(definition.num_outputs):
        tensor = definition.get_output(index)
        alias = tensor.name.replace("present", "past") if tensor.name.startswith("present") else ""
        tensors[tensor.name] = FakeTensor(TYPES[tensor.dtype], tuple(tensor.shape), False, alias)
    shapes = bench.shapes
    features = {name: tensor.shape for name, tensor in tensors.items() if name == "image_features"}
    profiles = tuple(
        {name: (profile.smallest[name], profile.largest[name]) for name in profile.largest}
        | {name: (shape, shape) for name, shape in features.items()}
        for profile in profiles_of(bench.spec, shapes.num_slots, CHUNK, shapes.cache_length)
    )
    interpreter = Interpreter(definition, trt)

    def compute(inputs: Arrays, outputs: Arrays) -> None:
        bench.decoder.calls.append(inputs["token_ids"].shape)
        bench.decoder.keys.append(len(inputs["key_positions"]))
        found = interpreter.run(inputs, in_place=True)
        for name, values in found.items():
            if not name.startswith("present"):
                outputs[name][...] = values

    return FakeNetwork(tensors, profiles, lambda given: shapes.outputs(given["token_ids"][0]), compute)

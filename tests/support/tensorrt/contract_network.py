"""The network of a TensorRT artifact in numpy, by the contract of its inputs and outputs, and a runner of it on
fakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from autoglm_engine.core import Logits, Span, StepBatch
from autoglm_engine.manifest import CacheShape, FileRecord, Manifest
from autoglm_engine.runners.base import run_step
from autoglm_engine.runners.device_check.approval import approve
from autoglm_engine.runners.tensorrt.load import open_runner
from autoglm_engine.runners.tensorrt.runner import TensorRTRunner
from autoglm_engine.runners.tensorrt.shapes import TensorShapes
from autoglm_export.model.decoder import build_decoder
from autoglm_export.model.spec import ModelSpec
from autoglm_export.tensorrt.profiles import attention_lengths_of, cache_length_of, prefill_lengths_of

from tests.support.engine.fakes import rank
from tests.support.export.numpy_runner import NumpyOps, Rows
from tests.support.export.tiny_decoders import SPECS, random_weights
from tests.support.tensorrt.fake_cuda import FakeCuda
from tests.support.tensorrt.fake_tensorrt import (
    PLAN,
    Arrays,
    Compute,
    FakeNetwork,
    FakeRTX,
    FakeTensor,
    FakeTensorRT,
    Shape,
)


@dataclass
class ContractOps(NumpyOps):
    """One row of a call. Keys and values are written in place, and read back as half precision."""

    inputs: Arrays = field(default_factory=dict)
    row: int = 0

    def attention(self, qkv: Rows, layer: int, query_norm: str | None, key_norm: str | None) -> Rows:
        spec, count = self.spec, len(qkv)
        sizes = np.cumsum([spec.num_heads, spec.num_kv_heads]) * spec.head_size
        query, key, value = (part.reshape(count, -1, spec.head_size) for part in np.split(qkv, sizes, axis=1))
        if query_norm and key_norm:
            query, key = self._norm(query, self.weights[query_norm]), self._norm(key, self.weights[key_norm])
        begin, positions = int(self.inputs["write_indices"][self.row]), self.inputs["position_ids"][self.row]
        key_positions = self.inputs["key_positions"]
        keys, values = (self.inputs[f"past_{kind}_{layer}"][self.row] for kind in ("key", "value"))
        assert begin >= 0 and begin + count <= keys.shape[1], "a write past the end of a slot, which TensorRT ignores"
        keys[:, begin : begin + count] = self._rotate(key).transpose(1, 0, 2)
        values[:, begin : begin + count] = value.transpose(1, 0, 2)
        group = spec.num_heads // spec.num_kv_heads
        seen_keys, seen_values = (
            np.repeat(x[:, key_positions].astype(np.float32), group, axis=0) for x in (keys, values)
        )
        scores = np.einsum("qhd,hkd->hqk", self._rotate(query), seen_keys) * self.scale()
        scores = np.where(self.hidden(key_positions, positions), -np.inf, scores)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return np.einsum("hqk,hkd->qhd", shares, seen_values).reshape(count, -1).astype(np.float32)

    def scale(self) -> np.float32:
        return np.float32(self.spec.head_size**-0.5)

    def hidden(self, keys: npt.NDArray[np.int32], queries: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """[queries, keys], from their positions: what a token does not see."""
        return np.asarray(keys[None, :] > queries[:, None])

    def select_rows(self, x: Rows) -> Rows:
        index = int(self.inputs["logit_indices"][self.row, 0])
        return x[index : index + 1]


@dataclass
class ContractDecoder:
    """The `compute` of a `FakeNetwork`. `calls`: (rows, tokens) of each that ran. `keys`: how many positions it
    read."""

    spec: ModelSpec
    weights: Mapping[str, Rows]
    num_candidates: int
    calls: list[tuple[int, int]] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    def compute(self, inputs: Arrays, outputs: Arrays) -> None:
        num_rows, _ = inputs["token_ids"].shape
        self.calls.append(inputs["token_ids"].shape)
        self.keys.append(len(inputs["key_positions"]))
        none = np.empty(0, np.float32)
        for row in range(num_rows):
            _check_row(inputs, row)
            positions = inputs["position_ids"][row]
            span = Span(row, int(positions[0]), inputs["token_ids"][row].copy(), True)
            ops = ContractOps(self.spec, self.weights, span, none, none, inputs=inputs, row=row)
            build_decoder(self.spec, ops)
            assert ops.result is not None
            outputs["logits"][row] = ops.result[0]
        self._rank(inputs, outputs)

    def _rank(self, inputs: Arrays, outputs: Arrays) -> None:
        found = rank(
            outputs["logits"],
            inputs["logit_factor"],
            inputs["logit_offset"],
            inputs["inverse_temperature"][:, 0],
            self.num_candidates,
            lambda row: outputs["logits"][row],
        )
        outputs["candidate_logits"][:], outputs["candidate_ids"][:] = found.logits, found.token_ids
        outputs["log_sum_exp"][:, 0] = found.log_sum_exp


def _check_row(inputs: Arrays, row: int) -> None:
    """A live row writes where it stands, and its padding goes on from there; an idle one is as the contract has it."""
    begin, positions = int(inputs["write_indices"][row]), inputs["position_ids"][row]
    keys, spare = inputs["key_positions"], inputs["past_key_0"].shape[2] - len(positions)
    np.testing.assert_array_equal(keys, np.arange(len(keys)))
    if begin == positions[0]:
        np.testing.assert_array_equal(positions, begin + np.arange(len(positions)))
        assert begin + inputs["logit_indices"][row, 0] < len(keys), "a token whose own position is not read"
        return
    assert begin == spare and not positions.any() and not inputs["token_ids"][row].any()
    assert (inputs["logit_indices"][row], inputs["inverse_temperature"][row]) == (0, 1)


def contract_network(shapes: TensorShapes, compute: Compute) -> FakeNetwork:
    """An engine of the contract that `compute` computes."""
    inputs, outputs = shapes.inputs(-1, -1, -1), shapes.outputs(-1)
    cache = np.float16 if shapes.cache_dtype == "float16" else ml_dtypes.bfloat16
    tensors = {name: FakeTensor(_dtype(name, cache), shape, True) for name, shape in inputs.items()}
    for name, shape in outputs.items():
        alias = name.replace("present", "past") if name.startswith("present") else ""
        tensors[name] = FakeTensor(_dtype(name, cache), shape, False, alias)

    def ranges(rows: int, tokens: int) -> dict[str, tuple[Shape, Shape]]:
        smallest = shapes.inputs(1, 1, shapes.attention_lengths[0])
        largest = shapes.inputs(rows, tokens, shapes.cache_length)
        return {name: (smallest[name], largest[name]) for name in inputs}

    batched = ranges(shapes.batched_rows, shapes.batched_length)
    profiles = (ranges(shapes.num_slots, 1), ranges(1, shapes.prefill_chunk), batched)
    return FakeNetwork(tensors, profiles, lambda given: shapes.outputs(given["token_ids"][0]), compute)


def _dtype(name: str, cache: Any) -> Any:
    if name.startswith(("past", "present")):
        return cache
    return np.float32 if name.startswith(("log", "inverse", "candidate_logits")) and "indices" not in name else np.int32


def contract_manifest(
    folder: Path,
    spec: ModelSpec,
    *,
    num_slots: int,
    max_length: int,
    prefill_chunk: int,
    num_candidates: int,
    runtime: str = "tensorrt",
    **details: Any,
) -> Manifest:
    """Of an artifact whose plan is in `folder`."""
    (folder / "engine.plan").write_bytes(PLAN)
    return Manifest(
        model_name="tiny",
        family=spec.family,
        runtime=runtime,
        runtime_version="11.4.0",
        precision="fp16",
        num_slots=num_slots,
        max_length=max_length,
        prefill_chunk=prefill_chunk,
        vocab_size=spec.vocab_size,
        cache=CacheShape(spec.num_layers, spec.num_kv_heads, spec.head_size, "float16"),
        eos_token_ids=(0,),
        bos_token_id=None,
        generation_defaults={},
        spec=spec.as_json(),
        runtime_details={
            "engine": "engine.plan",
            "module": "tensorrt",
            "cache_dtype": "float16",
            "cache_length": (length := cache_length_of(max_length, prefill_chunk)),
            "attention_lengths": attention_lengths_of(length),
            "prefill_lengths": prefill_lengths_of(prefill_chunk),
            "num_candidates": num_candidates,
            "profiles": {
                "batched_prefill": {"batch": [1, min(8, num_slots)], "sequence": [1, min(128, prefill_chunk)]}
            },
            "attention": "fused",
            "compute_capabilities": ["8.0", "8.9"],
            "weight_streaming": False,
            **details,
        },
        files={"engine.plan": FileRecord.of(folder / "engine.plan")},
    )


def spec_of(variant: str | ModelSpec) -> ModelSpec:
    return SPECS[variant] if isinstance(variant, str) else variant


class GpuBench:
    """A runner on a fake GPU, and all that it stands on. `open` may be put off to arrange for a failure."""

    def __init__(
        self,
        folder: Path,
        variant: str | ModelSpec = "one-kv-head",
        *,
        rtx: bool = False,
        num_slots: int = 5,
        max_length: int = 24,
        prefill_chunk: int = 16,
        num_candidates: int = 6,
        **details: Any,
    ) -> None:
        self.folder, self.spec = folder, spec_of(variant)
        self.weights = random_weights(self.spec)
        self.manifest = contract_manifest(
            folder,
            self.spec,
            num_slots=num_slots,
            max_length=max_length,
            prefill_chunk=prefill_chunk,
            num_candidates=num_candidates,
            **details,
        )
        self.shapes = TensorShapes.of(self.manifest)
        self.decoder = ContractDecoder(self.spec, self.weights, num_candidates)
        self.cuda = FakeCuda()
        module = FakeRTX if rtx else FakeTensorRT
        self.trt = module(self.cuda, contract_network(self.shapes, self.decoder.compute))

    def open(self) -> TensorRTRunner:
        environ = {"XDG_CACHE_HOME": str(self.folder)}
        self.runner = open_runner(self.folder, self.manifest, self.trt, self.cuda, environ, approve=approve)
        self.loaded = list(zip(self.decoder.calls, self.decoder.keys, strict=True))
        self.decoder.calls.clear()
        self.decoder.keys.clear()
        return self.runner

    def step(self, *spans: Span) -> Logits:
        """The whole rows of one step."""
        return run_step(self.runner, StepBatch(spans))

    def cache(self, slot: int) -> bytes:
        """All keys and values of a slot but those of the spare positions."""
        self.cuda.synchronize()
        parts = []
        for name, address in self.runner._cache.addresses(slot).items():
            if name.startswith("past"):
                shape = self.shapes.cache(1)
                view = self.cuda.bytes_at(address, self.shapes.bytes_per_slot).view(np.float16).reshape(shape)
                parts.append(view[:, :, : self.manifest.max_length].tobytes())
        return b"".join(parts)

    def poison(self) -> None:
        """Every position of every slot holds what nobody may see."""
        self.cuda.synchronize()
        for name, address in self.runner._cache.addresses().items():
            if name.startswith("past"):
                size = self.shapes.num_slots * self.shapes.bytes_per_slot
                self.cuda.bytes_at(address, size).view(np.float16)[:] = 6e4

    def table(self, name: str) -> Logits:
        """`logit_factor` or `logit_offset` of all slots."""
        self.cuda.synchronize()
        address = self.runner._logit_state.addresses[name]
        size = self.shapes.num_slots * self.shapes.vocab_size
        return self.cuda.bytes_at(address, size * 4).view(np.float32).reshape(self.shapes.num_slots, -1).copy()

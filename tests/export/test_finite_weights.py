"""A checkpoint with a weight that is no finite number, or becomes none on the way, is refused, and the tensor is
named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from autoglm_export.artifact import Options, lower
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import ExportError, TensorError, UnsupportedModel
from autoglm_export.export import export
from autoglm_export.quantize.int4 import best_scales
from autoglm_export.quantize.rounding import held, round_columns
from autoglm_export.runtimes import RUNTIMES
from autoglm_export.tensorrt import linear as tensorrt_linear

from tests.support.export.plain_checkpoints import (
    QUERY,
    gguf_tensors,
    raw_safetensors,
    spoilt,
    tensors_of,
    write_folder,
    write_gguf_file,
)

WRONG = [np.nan, np.inf, -np.inf]
RUNS = [("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("native", "int8")]


@pytest.mark.parametrize(("runtime", "precision"), RUNS)
@pytest.mark.slow
def test_an_export_of_what_is_not_finite_is_refused(runtime: str, precision: str, tmp_path: Path) -> None:
    for name, wrong in zip((QUERY, "model.norm.weight", "lm_head.weight"), WRONG, strict=True):
        write_folder(tmp_path / "model", {name: spoilt(tensors_of()[name], wrong)})
        with pytest.raises(TensorError, match=rf"the tensor {name} holds 1 values? that are no finite numbers"):
            export(tmp_path / "model", tmp_path / "out", runtime=runtime, precision=precision, max_length=16)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", WRONG)
def test_every_tensor_of_a_folder_is_looked_at(wrong: float, tmp_path: Path) -> None:
    for name, values in tensors_of().items():
        write_folder(tmp_path, {name: spoilt(values, wrong)})
        with pytest.raises(TensorError, match=rf"the tensor {name} holds 1 "):
            list(open_checkpoint(tmp_path).weights.values())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wrong", WRONG)
def test_half_precision_is_looked_at_too(wrong: float, dtype: Any, tmp_path: Path) -> None:
    write_folder(tmp_path)
    tensors = {name: values.astype(dtype) for name, values in tensors_of().items()}
    tensors[QUERY] = spoilt(tensors[QUERY], wrong)
    (tmp_path / "model.safetensors").write_bytes(raw_safetensors(tensors))
    with pytest.raises(TensorError, match=f"the tensor {QUERY} holds 1 "):
        list(open_checkpoint(tmp_path).weights.values())


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_a_gguf_file_is_looked_at_with_its_scales(kind: str, wrong: float, tmp_path: Path) -> None:
    """The scale of a block is a float16, so one of them spoils 32 weights."""
    name = "token_embd.weight"
    path = write_gguf_file(tmp_path / "m.gguf", kind=kind)
    assert open_checkpoint(path).weights["embed"].shape == (300, 64)
    values = gguf_tensors()[name]
    if kind == "F32":
        write_gguf_file(path, {name: spoilt(values, wrong)})
    else:
        _spoil_first_half(path, name, wrong)
    with pytest.raises(TensorError, match=rf"the tensor {name} holds \d+ values that are no finite numbers"):
        _ = open_checkpoint(path).weights["embed"]


def _spoil_first_half(path: Path, name: str, wrong: float) -> None:
    import gguf

    found = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    content = bytearray(path.read_bytes())
    content[found.data_offset : found.data_offset + 2] = np.float16(wrong).tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize(("runtime", "precision"), RUNS)
@pytest.mark.parametrize("largest", [1e38, 3e38])
@pytest.mark.slow
def test_what_overflows_on_the_way_is_refused_or_finite(
    runtime: str, precision: str, largest: float, tmp_path: Path
) -> None:
    """Finite weights that are near the end of float32: rotating, mixing and summing them up leads past it."""
    values = np.full_like(tensors_of()[QUERY], largest)
    write_folder(
        tmp_path / "model",
        {QUERY: values, "model.layers.1.mlp.down_proj.weight": np.full((64, 64), largest, np.float32)},
    )
    source = open_checkpoint(tmp_path / "model")
    texts = [np.arange(40, dtype=np.int32)] if precision == "int8" else []
    options = Options(runtime, precision, 2, 16, 16)
    if (runtime, precision) == ("onnx", "fp32"):
        lower(source.spec, source.weights, tmp_path, options)
        return
    with pytest.raises(ExportError, match=r"leaves the range of float32|beyond 65504"):
        lower(source.spec, source.weights, tmp_path, options, texts=texts)


def test_precisions_of_gpus_refuse_what_they_cannot_hold() -> None:
    large = np.array([[3.4e38, 1.0]], np.float32)
    for dtype in (ml_dtypes.bfloat16, np.float16):
        with pytest.raises(UnsupportedModel, match="beyond"):
            held("query", large, dtype)
        for wrong in WRONG:
            with pytest.raises(UnsupportedModel, match="beyond"):
                held("query", spoilt(large, wrong), dtype)
    with pytest.raises(UnsupportedModel, match="int4: a block has the scale"):
        best_scales(np.full((2, 32), 1e7, np.float32), np.ones(32, np.float32), 32, np.float16)
    with pytest.raises(TensorError, match="query leaves the range"):
        round_columns(np.full((2, 4), np.inf, np.float32), name="query")
    values, scales = tensorrt_linear.fp8_columns([np.full((2, 4), 3e38, np.float32)], np.float32)
    assert np.isfinite(values.astype(np.float32)).all() and np.isfinite(scales).all()


def test_every_runtime_reads_weights_that_are_looked_at() -> None:
    """A runtime that is added here must be tried above, or be one whose engine only a GPU builds."""
    assert set(RUNTIMES) == {runtime for runtime, _ in RUNS} | {"tensorrt", "tensorrt-rtx"}

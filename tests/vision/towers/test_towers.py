"""Which tower an artifact has, where it is computed, and what no image is larger than."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from autoglm_engine.errors import ArtifactError, InvalidRequest
from autoglm_engine.manifest import CacheShape, Manifest
from autoglm_engine.runners import towers
from autoglm_engine.runners.onnx.device import tower_device
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.triton.model_config import device
from autoglm_engine.vision.asked_size import AskedSize
from autoglm_engine.vision.processor import preprocess
from autoglm_engine.vision.resize import token_grid
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.model.spec import RopeSpec
from autoglm_export.vision_artifact import lower_vision
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.export.tiny_glm4v import image_file
from tests.support.tensorrt.fake_gpu import CUDA, FakeGpu
from tests.support.vision.settings import vision_settings

ROPE = RopeSpec(1e4, 16, interleaved=True, sections=(2, 3, 3))


@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    limits=st.lists(st.integers(1, 7000), min_size=3, max_size=3).map(sorted),
    grows_small=st.booleans(),
)
@example(height=28, width=5600, limits=[1, 6144, 6144], grows_small=False)
@example(height=2400, width=1080, limits=[1, 6144, 6144], grows_small=False)
def test_no_image_is_larger_than_the_largest(height: int, width: int, limits: list[int], grows_small: bool) -> None:
    """Whatever limits its request asks for within those of the artifact."""
    least, asked, most = (tokens * 1568 for tokens in limits)
    settings = vision_settings(min_pixels=least, max_pixels=most, grows_small=grows_small)
    for size in (AskedSize(), AskedSize(asked, None), AskedSize(asked, asked), AskedSize(None, asked)):
        try:
            rows, columns = token_grid(height, width, size.within(settings, "it"))
        except InvalidRequest:
            continue
        assert rows * columns <= settings.largest_tokens


def test_the_largest_image_of_the_published_settings() -> None:
    """Of 6,144 tokens by its pixels, a strip that is made larger up to there has 36 rows and 1,120 columns begun."""
    assert vision_settings(min_pixels=12_544, max_pixels=9_633_792).largest_tokens == 7259


def test_shared_memory_holds_the_largest_image() -> None:
    settings = vision_settings(min_pixels=12_544, max_pixels=9_633_792)
    assert settings.feature_bytes == 7259 * settings.hidden_size * 4


@pytest.fixture
def seeing(tiny_glm4v: Path, tmp_path: Path) -> Manifest:
    vision = open_checkpoint(tiny_glm4v).vision
    assert vision is not None
    return Manifest(
        model_name="tiny",
        family="glm4v",
        runtime="onnx",
        runtime_version=onnxruntime.__version__,
        precision="fp16",
        num_slots=2,
        max_length=64,
        prefill_chunk=16,
        vocab_size=288,
        cache=CacheShape(num_layers=2, num_kv_heads=1, head_size=32, dtype="float16"),
        eos_token_ids=(256,),
        bos_token_id=None,
        generation_defaults={},
        spec={},
        vision=lower_vision(vision, ROPE, tmp_path),
    )


class CudaSession:
    """ONNX Runtime's session, which says that it has CUDA's kernels."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.get_inputs, self.get_outputs, self.run = real.get_inputs, real.get_outputs, real.run

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]


def test_a_tower_is_computed_by_cuda_where_the_decoder_is(
    seeing: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: Any, providers: Any) -> CudaSession:
        asked.extend(providers)
        return CudaSession(real(path, options, providers=["CPUExecutionProvider"]))

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(towers, "tower_device", lambda chosen: chosen)
    tower = open_tower(tmp_path, seeing, device="cuda")
    assert asked[0][0] == CUDA and asked[0][1]["use_tf32"] == "0", "float32 is what the manifest says"
    assert tower.encode(preprocess(image_file(56, 84), tower.settings)).shape == (6, 64)


def test_a_tower_that_cuda_cannot_compute_is_refused(
    seeing: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself would go on with the CPU."""
    monkeypatch.setattr(towers, "tower_device", lambda chosen: chosen)
    monkeypatch.setattr(towers, "providers_of", lambda chosen, **how: ["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match="could not load its CUDA kernels"):
        open_tower(tmp_path, seeing, device="cuda")


def test_the_device_of_a_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()

    def no_gpu() -> FakeGpu:
        raise ArtifactError("this machine has no usable NVIDIA GPU")

    with pytest.raises(ArtifactError, match="has no CUDA kernels"):
        tower_device("cuda", open_cuda=lambda: gpu)
    assert tower_device("auto", open_cuda=lambda: gpu) == "cpu"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    assert tower_device("cpu", open_cuda=no_gpu) == tower_device("auto", open_cuda=no_gpu) == "cpu"
    with pytest.raises(ArtifactError, match="no usable NVIDIA GPU"):
        tower_device("cuda", open_cuda=no_gpu)
    assert tower_device("auto", open_cuda=lambda: gpu) == "cuda" and gpu.is_closed
    with pytest.raises(ArtifactError, match="the device is 'tpu'"):
        tower_device("tpu", open_cuda=no_gpu)


def test_the_environment_chooses_the_device_first() -> None:
    config = '{"parameters": {"device": {"string_value": "cpu"}}}'
    assert device("{}", {}) == "auto"
    assert device(config, {}) == "cpu"
    assert device(config, {"AUTOGLM_DEVICE": "cuda"}) == "cuda"


def test_a_tower_of_a_runtime_that_does_not_fit_is_refused(seeing: Manifest, tmp_path: Path) -> None:
    def refusal(runtime: str) -> str:
        other = dataclasses.replace(seeing, vision=vision_settings(runtime=runtime))
        with pytest.raises(ArtifactError) as caught:
            open_tower(tmp_path, other)
        return str(caught.value)

    assert (
        refusal("native") == "the vision tower is of the runtime 'native'; this engine has onnx, tensorrt, tensorrt-rtx"
    )
    assert refusal("tensorrt") == "the vision tower is of the runtime tensorrt, the artifact of onnx; export it again"

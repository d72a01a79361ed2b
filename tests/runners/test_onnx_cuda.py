"""ONNX Runtime on a GPU, proved without one: the same runner and graph, with the caches on a fake device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from autoglm_engine.core import Logits, Span, StepBatch
from autoglm_engine.errors import ArtifactError, DeviceError, InvalidRequest
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.onnx.device import open_memory
from autoglm_engine.runners.onnx.memory import CacheLayout, GpuMemory, HostMemory
from autoglm_engine.runners.onnx.runner import OnnxRunner
from autoglm_engine.runners.registry import installed_version, load_runner
from autoglm_engine.settings.model import plain_settings
from autoglm_export.errors import UnsupportedModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.export.tiny_decoders import SPECS, expected_logits, onnx_runner, random_weights
from tests.support.tensorrt.fake_gpu import CUDA, FakeCudaSession, FakeGpu

Ids = np.typing.NDArray[np.int32]
SPEC = SPECS["llama"]
LENGTH = 24  # positions of a slot


def some_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, SPEC.vocab_size, count).astype(np.int32)


def span(slot: int, start: int, ids: Ids, wants_logits: bool = True) -> Span:
    return Span(slot, start, ids, wants_logits)


def step(runner: OnnxRunner, *spans: Span) -> Logits:
    return runner.forward(StepBatch(spans)).copy()


def close(actual: Logits, expected: Logits) -> None:
    """The worst of 2,400 rows was 6e-3 off by rounding to half precision; a token out of place is 1e-1 off and more."""
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 2e-2


def content(runner: OnnxRunner, gpu: FakeGpu) -> np.typing.NDArray[np.float16]:
    """A copy of the slots' positions [layers, 2, slots, kv heads, LENGTH, head_size], the spare one left out."""
    layout = runner.memory.layout
    block = gpu.bytes_at(runner.memory.address, layout.num_bytes)
    return block.view(np.float16).reshape(layout.shape)[..., :LENGTH, :].copy()


OnGpu = tuple[OnnxRunner, FakeGpu]


@pytest.fixture
def on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], OnGpu]:
    """Variant -> its runner on a fake GPU."""
    real = onnxruntime.InferenceSession

    def make(variant: str) -> OnGpu:
        gpu = FakeGpu()

        def session(path: str, options: Any, providers: Any) -> FakeCudaSession:
            assert providers[0][0] == CUDA
            return FakeCudaSession(gpu, real(path, options, providers=["CPUExecutionProvider"]))

        spec = SPECS[variant]
        onnx_runner(tmp_path, spec, random_weights(spec), precision="fp16").close()
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
        manifest = Manifest.load(tmp_path)
        memory = open_memory("cuda", manifest, open_cuda=lambda: gpu)
        return OnnxRunner(tmp_path, manifest, num_threads=1, memory=memory), gpu

    return make


@pytest.fixture
def llama(on_gpu: Callable[[str], OnGpu]) -> OnGpu:
    return on_gpu("llama")


@pytest.mark.parametrize("variant", SPECS)
def test_prefill_chunks_and_decode_agree_with_the_reference(variant: str, on_gpu: Callable[[str], OnGpu]) -> None:
    (runner, gpu), ids = on_gpu(variant), some_ids(14)
    expected = expected_logits(SPECS[variant], random_weights(SPECS[variant]), ids)
    close(step(runner, span(1, 0, ids[:5]))[0], expected[4])
    close(step(runner, span(1, 5, ids[5:6]))[0], expected[5])
    close(step(runner, span(1, 6, ids[6:]))[0], expected[-1])
    for position in range(len(ids)):
        rows = step(runner, *(span(slot, position, ids[position : position + 1]) for slot in (0, 4)))
        close(rows[0], expected[position])
        close(rows[1], expected[position])
    assert not gpu.copies, "a step copies no cache"


def test_idle_slots_keep_their_tokens_full_ones_too(llama: OnGpu) -> None:
    (runner, gpu), kept = llama, some_ids(LENGTH, seed=1)
    step(runner, span(1, 0, kept[:16], wants_logits=False), span(2, 0, kept[:16], wants_logits=False))
    step(runner, span(2, 16, kept[16:], wants_logits=False))
    before = content(runner, gpu)
    step(runner, span(0, 0, kept[:1]), span(4, 0, kept[:1]))
    np.testing.assert_array_equal(content(runner, gpu)[:, :, 1:4], before[:, :, 1:4])
    assert np.isfinite(content(runner, gpu)).all(), "nothing was left uncleared"
    expected = expected_logits(SPEC, random_weights(SPEC), kept)
    close(step(runner, span(1, 16, kept[16:17]))[0], expected[16])


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.slow
def test_any_mix_of_spans_equals_the_reference(llama: OnGpu, data: st.DataObject) -> None:
    """Random steps and copies; each slot has its own sequence, and takes a random piece of it or none. What an example
    leaves in the slots must not disturb the next."""
    runner, _ = llama
    sequences = {slot: some_ids(LENGTH, seed=data.draw(st.integers(0, 99))) for slot in range(5)}
    done = dict.fromkeys(sequences, 0)
    for _ in range(5):
        source, target = data.draw(st.permutations(range(5)))[:2]
        if data.draw(st.booleans()) and done[source]:
            done[target] = data.draw(st.integers(1, done[source]))
            runner.copy_prefix(source, target, done[target])
            sequences[target] = np.concatenate([sequences[source][: done[target]], some_ids(LENGTH - done[target])])
        spans = []
        for slot in data.draw(st.permutations(range(5)))[: data.draw(st.integers(1, 5))]:
            count = min(data.draw(st.sampled_from([1, 1, 1, 2, 7])), LENGTH - done[slot])
            if count:
                spans.append(span(slot, done[slot], sequences[slot][done[slot] : done[slot] + count]))
                done[slot] += count
        for row, s in zip(step(runner, *spans), spans, strict=True):
            close(row, expected_logits(SPEC, random_weights(SPEC), sequences[s.slot][: done[s.slot]])[-1])


def test_a_copied_prefix_is_that_long_and_the_source_stays(llama: OnGpu) -> None:
    (runner, gpu), ids = llama, some_ids(9)
    step(runner, span(3, 0, ids))
    before = content(runner, gpu)
    runner.copy_prefix(3, 0, 4)
    after = content(runner, gpu)
    np.testing.assert_array_equal(after[:, :, 0, :, :4], before[:, :, 3, :, :4])
    assert not after[:, :, 0, :, 4:].any()
    np.testing.assert_array_equal(after[:, :, 1:], before[:, :, 1:])


def test_closing_frees_the_device_once(llama: OnGpu, caplog: pytest.LogCaptureFixture) -> None:
    runner, gpu = llama
    runner.close()
    assert gpu.is_closed
    assert not gpu.blocks
    runner.memory.close()
    assert "not freed in good order" not in caplog.text


def test_kernels_that_cannot_be_loaded_free_the_device(tmp_path: Path) -> None:
    """This ONNX Runtime has no CUDA kernels, and goes on with the CPU's where it is asked for them."""
    onnx_runner(tmp_path, SPEC, random_weights(SPEC), precision="fp16").close()
    manifest, gpu = Manifest.load(tmp_path), FakeGpu()
    memory = GpuMemory(CacheLayout.of(manifest), gpu)
    with pytest.warns(UserWarning, match=CUDA), pytest.raises(ArtifactError, match="could not load its CUDA kernels"):
        OnnxRunner(tmp_path, manifest, num_threads=1, memory=memory)
    assert gpu.is_closed
    assert not gpu.blocks


def with_packages(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)


def no_gpu() -> FakeGpu:
    raise ArtifactError("this machine has no NVIDIA GPU")


CHOICES: list[tuple[str, str, bool, bool, type | str]] = [  # device, precision, CUDA kernels, GPU -> memory or error
    ("cuda", "fp16", True, True, GpuMemory),
    ("auto", "fp16", True, True, GpuMemory),
    ("cpu", "fp16", True, True, HostMemory),
    ("auto", "fp16", False, True, HostMemory),
    ("auto", "fp16", True, False, HostMemory),
    ("auto", "int8", True, True, HostMemory),
    ("cuda", "fp16", False, True, "has no CUDA kernels: pip uninstall onnxruntime onnxruntime-gpu, then"),
    ("cuda", "fp16", True, False, "this machine has no NVIDIA GPU"),
    ("cuda", "int8", True, True, "compute fp16, the artifact is int8: export it with --precision fp16"),
    ("tpu", "fp16", True, True, "the device is 'tpu'; allowed are auto, cpu, cuda"),
]


@pytest.mark.parametrize(("device", "precision", "has_kernels", "has_gpu", "expected"), CHOICES)
def test_the_device_is_chosen_or_refused_in_a_sentence(
    device: str,
    precision: str,
    has_kernels: bool,
    has_gpu: bool,
    expected: type | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    onnx_runner(tmp_path, SPEC, random_weights(SPEC), precision=precision).close()
    providers = [CUDA] * has_kernels + ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    open_cuda: Callable[[], FakeGpu] = FakeGpu if has_gpu else no_gpu
    if isinstance(expected, str):
        with pytest.raises(ArtifactError, match=expected):
            open_memory(device, Manifest.load(tmp_path), open_cuda=open_cuda)
    else:
        assert isinstance(open_memory(device, Manifest.load(tmp_path), open_cuda=open_cuda), expected)


def test_a_gpu_that_fails_at_once_is_told_by_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_runner(tmp_path, SPEC, random_weights(SPEC), precision="fp16").close()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    gpu = FakeGpu(failure=DeviceError("the GPU could not clear memory: unspecified launch failure"))
    with pytest.raises(ArtifactError, match="could not clear memory: unspecified launch failure"):
        open_memory("cuda", Manifest.load(tmp_path), open_cuda=lambda: gpu)
    assert gpu.is_closed
    assert not gpu.blocks


def test_a_cache_that_does_not_fit_is_refused_and_the_gpu_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_runner(tmp_path, SPEC, random_weights(SPEC), precision="fp16").close()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    gpu = FakeGpu(memory=1000)
    with pytest.raises(ArtifactError, match="not enough GPU memory for 5 slots of 24 tokens"):
        open_memory("cuda", Manifest.load(tmp_path), open_cuda=lambda: gpu)
    assert gpu.is_closed


def test_an_fp16_artifact_runs_on_the_cpu_and_says_that_it_is_slow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, ids = onnx_runner(tmp_path, SPEC, random_weights(SPEC), precision="fp16"), some_ids(8)
    assert "the CPU computes an fp16 artifact in float32" in caplog.text
    expected = expected_logits(SPEC, random_weights(SPEC), ids)
    step(runner, span(2, 0, ids[:7]))
    step(runner, span(0, 0, ids[:1]), span(4, 0, ids[:1]))
    close(step(runner, span(2, 7, ids[7:]))[0], expected[-1])


def test_a_weight_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    weights["layers.1.up.weight"][3, 5] = 7e4
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.up\.weight has a value of magnitude 70000"):
        onnx_runner(tmp_path, SPEC, weights, precision="fp16")


def test_onnxruntime_gpu_counts_as_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_runner(tmp_path, SPEC, random_weights(SPEC)).close()
    manifest = Manifest.load(tmp_path)
    with_packages(monkeypatch, {"onnxruntime-gpu": manifest.runtime_version})
    load_runner(tmp_path, manifest, num_threads=1).close()
    assert installed_version("onnxruntime") == manifest.runtime_version
    with_packages(monkeypatch, {})
    with pytest.raises(ArtifactError, match="needs the package onnxruntime"):
        load_runner(tmp_path, manifest, num_threads=1)


def test_the_setting_names_what_it_may_be() -> None:
    with pytest.raises(InvalidRequest, match="the setting device is 'gpu'; allowed are auto, cpu, cuda"):
        plain_settings(device="gpu")


def test_a_prefix_is_copied_head_by_head_in_every_part() -> None:
    gpu = FakeGpu()
    layout = CacheLayout(num_layers=1, num_slots=2, num_kv_heads=3, length=5, head_size=4, dtype=np.dtype(np.float16))
    memory = GpuMemory(layout, gpu)
    memory.copy_prefix(1, 0, 2)
    memory.copy_prefix(1, 1, 2)
    places = [(to - memory.address, since - memory.address, *rest) for to, _, since, *rest in gpu.copies]
    assert places == [(0, 120, 40, 16, 3), (240, 360, 40, 16, 3)]


def test_a_run_that_fails_on_the_gpu_is_a_failure_of_the_device(llama: OnGpu) -> None:
    """Upon which the engine's process ends: a GPU that failed once answers nothing more."""
    runner, _ = llama
    runner._session.failure = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    with pytest.raises(DeviceError, match="the step could not be computed: CUDA failure 700"):
        step(runner, span(0, 0, some_ids(3)))

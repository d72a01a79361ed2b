"""Loading a TensorRT artifact: what it refuses, in one sentence; that nothing is left behind, whatever fails and
when."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Adjustments, Span, StepBatch
from autoglm_engine.errors import ArtifactError, DeviceError
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.runners.tensorrt import plan_reader
from autoglm_engine.runners.tensorrt.kernel_cache import KernelCache
from autoglm_engine.runners.tensorrt.module import load_module, new_log
from autoglm_engine.runners.tensorrt.runner import RESERVE_BYTES
from autoglm_engine.triton.loaded_model import warm_up

from tests.support.tensorrt.contract_network import GpuBench
from tests.support.tensorrt.fake_tensorrt import FakeTensor, Specialisation


@pytest.fixture
def bench(tmp_path: Path) -> GpuBench:
    """Not open."""
    return GpuBench(tmp_path)


def refused(bench: GpuBench, message: str) -> None:
    """One sentence, and nothing is left."""
    with pytest.raises(ArtifactError, match=message) as caught:
        bench.open()
    assert "\n" not in str(caught.value)
    assert not bench.cuda.leaks


# ---- which TensorRT


def load(bench: GpuBench, monkeypatch: pytest.MonkeyPatch, module: Any, **changes: Any) -> None:
    name = bench.manifest.runtime_details["module"]
    monkeypatch.setitem(sys.modules, name, module)
    load_runner(bench.folder, dataclasses.replace(bench.manifest, **changes), num_threads=1)


def module_of(version: str) -> ModuleType:
    module = ModuleType("a tensorrt")
    module.__dict__["__version__"] = version
    return module


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_another_version_is_refused(bench: GpuBench, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    message = r"built with TensorRT 11\.4\.0, this machine has 11\.4\.1; export it again"
    with pytest.raises(ArtifactError, match=message):
        load(bench, monkeypatch, module_of("11.4.1"), runtime=runtime)


def test_a_missing_package_is_named(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match=r"needs the package tensorrt 11\.4\.0, which is not installed"):
        load(bench, monkeypatch, None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(ArtifactError, match="needs the package cuda-python, which is not installed"):
        load(bench, monkeypatch, module_of("11.4.0"))


def test_an_unknown_module_is_never_imported(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.manifest.runtime_details["module"] = "os"
    with pytest.raises(ArtifactError, match="built with 'os'; this engine knows tensorrt, tensorrt_rtx"):
        load(bench, monkeypatch, sys.modules["os"])


def test_a_manifest_without_details_is_refused(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ArtifactError,
        match="lacks attention_lengths, compute_capabilities, prefill_lengths, weight_streaming; export it again",
    ):
        load(bench, monkeypatch, None, runtime_details={"module": "tensorrt", "engine": "engine.plan"})


def test_the_real_tensorrt_takes_the_log_and_refuses_what_is_no_plan(tmp_path: Path) -> None:
    """Without its stream readers: those want a driver to begin with."""
    trt = pytest.importorskip("tensorrt_rtx")
    assert load_module("tensorrt_rtx", trt.__version__) is trt
    bench = GpuBench(tmp_path)
    bench.trt = SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt) if name != "IStreamReaderV2"})
    refused(bench, "TensorRT cannot load the artifact's engine: .+")
    assert isinstance(new_log(trt), trt.ILogger)


def test_the_real_tensorrt_has_what_is_asked_of_it() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    context = "set_optimization_profile_async set_device_memory set_input_shape set_tensor_address execute_async_v3"
    engine = "get_device_memory_size_for_profile_v2 get_weight_streaming_automatic_budget streamable_weights_size"
    engine += " weight_streaming_budget_v2 create_runtime_config create_execution_context num_io_tensors"
    engine += " get_tensor_name get_tensor_shape"
    assert not [
        name for name in (context + " is_stream_capturable").split() if not hasattr(trt.IExecutionContext, name)
    ]
    assert not [name for name in engine.split() if not hasattr(trt.ICudaEngine, name)]
    assert hasattr(trt.IRuntimeConfig, "set_execution_context_allocation_strategy")
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER != trt.DynamicShapesKernelSpecializationStrategy.LAZY
    assert not [
        name
        for name in ("create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy")
        if not hasattr(trt.IRuntimeConfig, name)
    ]
    assert not [name for name in ("serialize", "deserialize") if not hasattr(trt.IRuntimeCache, name)]
    assert not [name for name in ("read", "seek") if not hasattr(trt.IStreamReaderV2, name)]
    assert len({trt.SeekPosition.SET, trt.SeekPosition.CUR, trt.SeekPosition.END}) == 3
    assert trt.CudaGraphStrategy.DISABLED != trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert trt.ILogger.INTERNAL_ERROR <= trt.ILogger.ERROR <= trt.ILogger.WARNING <= trt.ILogger.INFO


# ---- what does not fit this machine


def test_another_compute_capability_is_refused(bench: GpuBench) -> None:
    bench.cuda.compute_capability = "12.0"
    refused(bench, r"built for GPUs of compute capability 8\.0, 8\.9, this machine's has 12\.0; export it again")


def test_no_compute_capability_is_any(tmp_path: Path) -> None:
    bench = GpuBench(tmp_path, compute_capabilities=[])
    bench.cuda.compute_capability = "10.3"
    bench.open()


def test_a_plan_that_is_none_is_refused_on_one_line(bench: GpuBench) -> None:
    (bench.folder / "engine.plan").write_bytes(b"something else")
    refused(bench, "TensorRT cannot load the artifact's engine: the magic tag is wrong")


def test_a_tensorrt_that_does_not_start_is_refused(bench: GpuBench) -> None:
    bench.trt.refuses.add("Runtime")
    refused(bench, "TensorRT does not start on this machine: .*CUDA initialization failure")


def test_a_context_that_cannot_be_made_is_refused(bench: GpuBench) -> None:
    bench.trt.refuses.add("create_execution_context")
    refused(bench, "TensorRT cannot prepare the artifact's engine: out of memory")


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_a_context_refuses_is_refused(bench: GpuBench, call: str) -> None:
    bench.trt.refuses.add(call)
    refused(bench, "TensorRT (refuses|could not enqueue)")


def test_too_little_memory_is_told_with_what_to_do(bench: GpuBench) -> None:
    bench.cuda.total_memory = 20_000
    refused(bench, "not enough GPU memory for 5 slots of 24 tokens .* export it with fewer or shorter slots")


def test_an_engine_of_another_model_is_refused(bench: GpuBench) -> None:
    tensors = dict(bench.trt.network.tensors)
    tensors["past_key_0"] = FakeTensor(np.float16, (-1, 2, 32, 16), True)
    bench.trt.network = dataclasses.replace(bench.trt.network, tensors=tensors)
    refused(
        bench, r"past_key_0 has the shape \(-1, 2, 32, 16\) in the artifact's engine, \(-1, 1, 48, 16\) in its manifest"
    )
    del tensors["past_key_0"]
    bench = GpuBench(bench.folder)
    bench.trt.network = dataclasses.replace(bench.trt.network, tensors=tensors)
    refused(bench, "engine and manifest disagree about past_key_0; export it again")


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"cache_length": 39}, "the artifact's cache has 39 positions; 24 tokens need 40"),
        ({"profiles": {}}, "does not know 'batched_prefill'"),
        ({"profiles": []}, r"has runtime_details\.profiles \[\], which gives no batched_prefill"),
        ({"profiles": {"batched_prefill": {"batch": [1], "sequence": [1, 16]}}}, "gives no batched_prefill with batch"),
        (
            {"profiles": {"batched_prefill": {"batch": [1, 6], "sequence": [1, 16]}}},
            "batches have 6 rows, there are 5 slots",
        ),
        ({"prefill_lengths": [4, 8]}, r"pads prompts to \(4, 8\) tokens, its chunks have 16 and those of a batch 16"),
        ({"attention_lengths": [16, 32]}, r"attention reads \(16, 32\) positions, its cache has 48: export"),
        ({"cache_dtype": "float64"}, "does not know 'float64'"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(bench: GpuBench, details: dict[str, Any], message: str) -> None:
    bench.manifest.runtime_details.update(details)
    refused(bench, message)


# ---- how it is loaded


def test_memory_is_told_to_the_byte(bench: GpuBench) -> None:
    memory = bench.open().memory
    on_device = sum(num_bytes for purpose, num_bytes in memory.items() if purpose not in ("pinned", "weights"))
    assert on_device == bench.cuda.used
    assert memory["key_value_cache"] == 2 * 5 * 1 * 48 * 16 * 2
    assert memory["activations"] == 3072


def test_all_contexts_share_the_activations_of_the_larger_profile(bench: GpuBench) -> None:
    bench.open()
    assert len({context._activations for context in bench.trt.contexts}) == 1
    assert bench.trt.contexts[0]._activations[1] == 3000
    assert [context.profile for context in bench.trt.contexts] == [0, 0, 0, 0, 1, 2]


def test_rtx_compiles_decode_kernels_at_once(tmp_path: Path) -> None:
    bench = GpuBench(tmp_path, rtx=True)
    bench.open()
    kinds = [context.specialisation for context in bench.trt.contexts]
    assert kinds == [Specialisation.EAGER] * 4 + [Specialisation.LAZY] * 2


@pytest.mark.parametrize(
    ("total_memory", "budget"),
    [(1 << 32, 3 << 18), (600 << 20, 3 << 18), ((576 << 20) + 100_000, 75_820), (300 << 20, 0)],
)
def test_weights_are_streamed_where_they_leave_no_room(tmp_path: Path, total_memory: int, budget: int) -> None:
    bench = GpuBench(tmp_path, weight_streaming=True)
    bench.cuda.total_memory = total_memory
    memory = bench.open().memory
    assert bench.trt.engine is not None
    assert bench.trt.engine.weight_streaming_budget_v2 == budget
    assert memory["weights"] == bench.trt.engine.weight_streaming_budget_v2


def test_weights_stay_where_they_are_unless_they_are_streamed(bench: GpuBench) -> None:
    bench.open()
    assert bench.trt.engine is not None
    assert bench.trt.engine.weight_streaming_budget_v2 == -1


def test_every_call_that_a_step_may_make_is_run_at_load(tmp_path: Path) -> None:
    """Decode in all shapes; prefill at all lengths, one that is odd, and in batches of all sizes."""
    bench = GpuBench(tmp_path, prefill_lengths=[4, 16], profiles=batched_of(4, 4), attention_lengths=[8, 16, 48])
    bench.open()
    decode = [((rows, 1), keys) for rows in (1, 2, 4, 5) for keys in (8, 16, 48)]
    prefill = [(1, 4), (1, 16), (1, 15), (2, 4), (4, 4)]
    assert bench.loaded == decode + [(shape, keys) for keys in (8, 48) for shape in prefill]
    assert not any(bench.cache(slot).strip(b"\0") for slot in range(5)), (
        "something other than a spare position was written"
    )


def batched_of(rows: int, tokens: int) -> dict[str, Any]:
    return {"batched_prefill": {"batch": [1, rows], "sequence": [1, tokens]}}


def test_too_little_memory_left_after_load_is_told_with_the_figures(bench: GpuBench) -> None:
    bench.cuda.total_memory = RESERVE_BYTES + 50_000
    refused(bench, "not enough GPU memory for 5 slots .*255 MiB are free after load, 256 MiB must be.; export it with")


def test_what_contexts_and_graphs_took_is_told(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what the driver's free memory lacks beside the blocks that were asked for."""
    free = bench.cuda.free_memory
    monkeypatch.setattr(bench.cuda, "free_memory", lambda: free() - (len(bench.cuda.graphs) << 20))
    assert bench.open().memory["graphs"] == 4 << 20


# ---- how its plan is read


def test_a_plan_is_read_in_pieces(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_reader, "_PIECE", 3)
    bench.open()
    assert bench.trt.was_streamed


def test_a_binding_without_stream_readers_gets_the_whole_plan(bench: GpuBench) -> None:
    bench.trt.has_stream_readers = False
    bench.open()
    assert not bench.trt.was_streamed


# ---- kernels that were compiled


@pytest.fixture
def rtx(tmp_path: Path) -> Callable[[], GpuBench]:
    return lambda: GpuBench(tmp_path, rtx=True)


def kept(folder: Path) -> list[Path]:
    return list((folder / "autoglm").glob("*"))


def test_compiled_kernels_are_there_at_the_next_start(rtx: Callable[[], GpuBench], tmp_path: Path) -> None:
    first = rtx()
    first.open()
    first.trt.compiles = b"more kernels"  # which prefill's lengths get in the background
    first.runner.close()
    second = rtx()
    second.open()
    assert [cache.read for cache in (*first.trt.caches, *second.trt.caches)] == [b"", b"more kernels"]
    (file,) = kept(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600


def test_kernels_of_another_gpu_are_another_file(rtx: Callable[[], GpuBench], tmp_path: Path) -> None:
    for capability in ("8.0", "8.9"):
        bench = rtx()
        bench.cuda.compute_capability = capability
        bench.open()
        assert bench.trt.caches[0].read == b""
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("damage", [lambda old: old[:-1], lambda old: b"", lambda old: old[:40] + b"x" + old[41:]])
def test_damaged_kernels_are_compiled_again(
    rtx: Callable[[], GpuBench], tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    rtx().open().close()
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    bench = rtx()
    bench.open().close()
    assert bench.trt.caches[0].read == b""
    assert "is damaged: its kernels are compiled again" in caplog.text
    assert file.read_bytes() == whole


def test_kernels_that_the_runtime_refuses_are_told_of(
    rtx: Callable[[], GpuBench], caplog: pytest.LogCaptureFixture
) -> None:
    rtx().open().close()
    bench = rtx()
    bench.trt.accepts = False
    bench.open()
    assert "is of no use to this TensorRT-RTX" in caplog.text


def test_a_runtime_that_does_not_give_its_kernels_says_so(
    rtx: Callable[[], GpuBench], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = rtx()
    bench.trt.refuses.add("serialize")
    bench.open()
    assert "does not give what it compiled" in caplog.text
    assert not kept(tmp_path)


def test_a_runtime_that_takes_no_kernels_is_refused(rtx: Callable[[], GpuBench]) -> None:
    bench = rtx()
    bench.trt.refuses.add("set_runtime_cache")
    refused(bench, "TensorRT-RTX takes no cache for its kernels")


def test_a_file_that_others_may_write_is_not_read(rtx: Callable[[], GpuBench], tmp_path: Path) -> None:
    rtx().open().close()
    kept(tmp_path)[0].chmod(0o666)
    bench = rtx()
    bench.open()
    assert bench.trt.caches[0].read == b""


def test_a_folder_that_cannot_be_written_costs_nothing_else(
    rtx: Callable[[], GpuBench], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "autoglm").write_text("a file")
    rtx().open().close()
    assert "compiled kernels are not kept for the next start: " in caplog.text


def test_a_process_of_the_same_id_that_writes_too_is_left_alone(
    rtx: Callable[[], GpuBench], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In another container that shares the folder; or it was killed while it wrote."""
    rtx().open().close()
    (file,) = kept(tmp_path)
    half = file.with_suffix(f".{os.getpid()}")
    file.rename(half)
    rtx().open().close()
    assert sorted(kept(tmp_path)) == sorted([file, half])
    assert "not kept" not in caplog.text


def test_a_runtime_that_compiles_nothing_keeps_nothing(bench: GpuBench, tmp_path: Path) -> None:
    bench.open().close()
    assert not kept(tmp_path)


def test_the_folder_is_the_users_cache() -> None:
    assert KernelCache("a", {"HOME": "/home/a"}).path.parent == Path("/home/a/.cache/autoglm")
    assert KernelCache("a", {"HOME": "/home/a", "XDG_CACHE_HOME": "/b"}).path.parent == Path("/b/autoglm")
    assert KernelCache("a", {}).path != KernelCache("b", {}).path


def test_the_service_warms_it_up(bench: GpuBench) -> None:
    warm_up(bench.open())
    assert bench.decoder.calls == [(1, 16), (1, 1)]


# ---- failures of the GPU

REPEATS = 2


def work(bench: GpuBench) -> None:
    """Every kind of call that a runner has."""
    ids = np.arange(3, dtype=np.int32)
    told = Adjustments(True, np.arange(50, dtype=np.int32), *np.ones((2, 50), np.float32))
    few = Adjustments(False, ids, *np.ones((2, 3), np.float32))
    for _ in range(REPEATS):
        spans = (Span(0, 0, ids[:1], True, told), Span(3, 0, ids, True, few), Span(2, 0, ids, False))
        found = bench.runner.issue(StepBatch(spans)).result()
        found.full_row(1)
        bench.runner.copy_prefix(0, 1, 1)


def number_of_calls(folder: Path, act: Callable[[GpuBench], object]) -> tuple[int, int]:
    """Before and after `act` on an open runner."""
    bench = GpuBench(folder)
    bench.open()
    before = len(bench.cuda.calls)
    act(bench)
    return before, len(bench.cuda.calls)


@pytest.mark.slow
@pytest.mark.parametrize("is_final", [False, True])
def test_whatever_fails_at_load_is_one_sentence_and_leaves_nothing(tmp_path: Path, is_final: bool) -> None:
    last, _ = number_of_calls(tmp_path, lambda bench: None)
    assert last > 50
    for number in range(1, last + 1):
        bench = GpuBench(tmp_path)
        bench.cuda.fail_at, bench.cuda.is_final = number, is_final
        try:
            bench.open().close()
        except ArtifactError as error:
            assert str(error).startswith("the GPU could not")
        else:
            assert bench.cuda.calls[number - 1] == "capture" and not is_final
        assert not bench.cuda.leaks, f"after call {number}, {bench.cuda.calls[number - 1]}"


@pytest.mark.slow
@pytest.mark.parametrize("is_final", [False, True])
def test_whatever_fails_in_a_step_is_final_and_leaves_nothing(tmp_path: Path, is_final: bool) -> None:
    before, after = number_of_calls(tmp_path, work)
    assert after > before + 30
    for number in range(before + 1, after + 1):
        bench = GpuBench(tmp_path)
        bench.cuda.fail_at, bench.cuda.is_final = number, is_final
        bench.open()
        with pytest.raises(DeviceError, match=r"^the GPU could not \w+: injected$"):
            work(bench)
        calls = len(bench.cuda.calls)
        with pytest.raises(DeviceError, match=r"failed before .* restart the server"):
            work(bench)
        with pytest.raises(DeviceError, match="failed before"):
            bench.runner.copy_prefix(0, 1, 1)
        assert len(bench.cuda.calls) == calls
        bench.runner.close()
        assert not bench.cuda.leaks


@pytest.mark.parametrize("name", ["synchronize", "destroy_graph", "free", "free_pinned", "destroy_event", "close"])
def test_a_failing_close_frees_the_rest(bench: GpuBench, name: str, caplog: pytest.LogCaptureFixture) -> None:
    runner = bench.open()
    bench.cuda.failing = name
    runner.close()
    assert not bench.cuda.leaks
    assert "not freed in good order" in caplog.text


def test_a_refused_enqueue_is_final(bench: GpuBench) -> None:
    runner = bench.open()
    bench.trt.refuses.add("execute_async_v3")
    batch = StepBatch((Span(0, 0, np.arange(3, dtype=np.int32), True),))
    with pytest.raises(DeviceError, match="could not enqueue a step: execute_async_v3 is refused"):
        runner.issue(batch)
    bench.trt.refuses.clear()
    with pytest.raises(DeviceError, match="failed before"):
        runner.issue(batch)


def test_closing_is_waiting_and_may_be_done_twice(bench: GpuBench) -> None:
    runner = bench.open()
    pending = runner.issue(StepBatch((Span(0, 0, np.arange(3, dtype=np.int32), True),)))
    runner.close()
    runner.close()
    assert not bench.cuda.leaks
    assert bench.decoder.calls == [(1, 16)]
    for use in (pending.result, lambda: runner.copy_prefix(0, 1, 2), lambda: runner.issue(pending)):
        with pytest.raises(ValueError, match="the runner is closed"):
            use()

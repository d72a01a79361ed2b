"""The GPU benchmark without a GPU: its arithmetic, its table, its refusals, and each of its parts on what is here."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Candidates, StepBatch
from autoglm_engine.manifest import Manifest
from autoglm_engine.runner import Limits
from autoglm_export.weights import weight_shapes
from autoglm_perf import gpu, gpu_bench, gpu_generate
from autoglm_perf.gpu import Gpu, NoGpu, best_runtime, find_gpu, why_not_precision, why_not_runtime
from autoglm_perf.gpu_bandwidth import Bandwidth, measure_bandwidth
from autoglm_perf.gpu_bench import check_same, choose_runtime, measure_generate, measure_ours, sized
from autoglm_perf.gpu_report import append_jsonl, comparisons, gpu_machine, table
from autoglm_perf.gpu_samples import figure, time_each
from autoglm_perf.gpu_settings import GpuBenchSettings, InvalidSetting, device_bytes, parse_batches
from autoglm_perf.gpu_shapes import (
    RandomWeights,
    Shape,
    cache_bytes_per_token,
    floor_ms,
    num_parameters,
    step_bytes,
    weight_bytes_read,
)
from autoglm_perf.gpu_steps import EngineLimits, build_artifact, fill, loaded, time_decode, time_prefill
from rich.console import Console

ROOT = Path(__file__).parent.parent
GLM4_9B = Shape().spec(2048)
TINY = Shape(2, 64, 2, 1, 32, 96, 120)
ADA = Gpu("NVIDIA L4", (8, 9), 24 * 10**9, "13.0")
HOPPER = Gpu("NVIDIA H100", (9, 0), 80 * 10**9, "13.0")
TURING = Gpu("NVIDIA T4", (7, 5), 16 * 10**9, "13.0")
BANDWIDTH = Bandwidth(read=1e12, copy=0.9e12)


# ---- what a step must read


def test_the_shape_is_glm_4_9b() -> None:
    assert num_parameters(GLM4_9B) == pytest.approx(9.4e9, rel=0.002)
    assert GLM4_9B.num_heads * GLM4_9B.head_size == GLM4_9B.hidden_size


def test_the_cache_of_a_token_is_40_kib_at_glm_4_9b() -> None:
    assert cache_bytes_per_token(GLM4_9B, "fp16") == 2 * 40 * 2 * 128 * 2 == 40_960
    assert cache_bytes_per_token(GLM4_9B, "int4") == 40_960, "the cache is not quantised"


def test_a_step_reads_every_weight_once_but_the_embedding() -> None:
    spec = TINY.spec(64)
    attention = 64 * 64 + 2 * (32 * 64) + 64 * 64
    linear = 2 * (attention + 3 * 96 * 64) + 120 * 64
    norms = 2 * 4 * 64 + 64
    assert weight_bytes_read(spec, "fp16") == 2 * (linear + norms)
    assert weight_bytes_read(spec, "fp8") == linear + 2 * norms
    assert weight_bytes_read(spec, "int4") == round(linear * (0.5 + 2 / 128) + 2 * norms)
    assert weight_bytes_read(spec, "fp32") == 4 * (linear + norms)


def test_a_tied_embedding_is_read_as_the_output_layer() -> None:
    untied = TINY.spec(64)
    tied = dataclasses.replace(untied, tied_embeddings=True)
    assert weight_bytes_read(tied, "fp16") == weight_bytes_read(untied, "fp16")
    assert num_parameters(tied) < num_parameters(untied)


def test_the_floor_grows_with_batch_and_length_from_that_of_the_weights() -> None:
    weights = weight_bytes_read(GLM4_9B, "fp16")
    assert step_bytes(GLM4_9B, "fp16", batch=1, length=0) == weights
    assert step_bytes(GLM4_9B, "fp16", batch=16, length=512) == weights + 16 * 512 * 40_960
    assert floor_ms(weights, 1e12) == pytest.approx(17.55, abs=0.05), "17.5 GB at 1 TB/s"


# ---- random weights


def test_random_weights_are_those_that_the_spec_needs() -> None:
    spec = TINY.spec(64)
    weights = RandomWeights(spec)
    assert {name: weights[name].shape for name in weights} == weight_shapes(spec)
    assert all(weights.shape(name) == weights[name].shape for name in weights)
    assert all(weights[name].dtype == np.float32 for name in weights)
    assert len(weights) == len(weight_shapes(spec))


def test_random_weights_are_equal_by_name_and_differ_between_names() -> None:
    weights, again = RandomWeights(TINY.spec(64)), RandomWeights(TINY.spec(64))
    np.testing.assert_array_equal(weights["layers.0.up.weight"], again["layers.0.up.weight"])
    assert not np.array_equal(weights["layers.0.up.weight"], weights["layers.1.up.weight"])
    assert not np.array_equal(weights["embed"], RandomWeights(TINY.spec(64), seed=1)["embed"])
    assert (weights["final_norm"] == 1).all()


def test_random_weights_keep_activations_near_one() -> None:
    weight = RandomWeights(Shape(num_layers=1).spec(64))["layers.0.query.weight"]
    product = weight @ np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    assert 0.5 < product.std() < 2.0


# ---- samples


def test_a_figure_is_median_and_spread_in_milliseconds() -> None:
    made = figure("ours", "decode", 4, 4, [value / 1000 for value in range(20, 0, -1)], floor=5.25)
    assert (made.median_ms, made.p10_ms, made.p90_ms, made.num_samples) == (10.5, 3.0, 19.0, 20)
    assert made.tokens_per_second == pytest.approx(4 / 0.0105)
    assert made.times_the_floor == pytest.approx(2.0)
    assert made.as_json()["times_the_floor"] == made.times_the_floor


def test_one_sample_is_its_own_spread_and_none_is_an_error() -> None:
    made = figure("ours", "prefill", 1, 10, [0.002])
    assert (made.median_ms, made.p10_ms, made.p90_ms) == (2.0, 2.0, 2.0)
    assert made.times_the_floor is None
    with pytest.raises(ValueError, match="ours prefill 1: no samples"):
        figure("ours", "prefill", 1, 10, [])


def test_the_warm_up_is_not_timed() -> None:
    now, seen = [0.0], []

    def act(index: int) -> None:
        seen.append(index)
        now[0] += 10.0 if index < 2 else 1.0

    assert time_each(act, warm_up=2, count=3, clock=lambda: now[0]) == [1.0, 1.0, 1.0]
    assert seen == [0, 1, 2, 3, 4]


# ---- which GPU, which runtime


class FakeDriver(types.ModuleType):
    """cuda.bindings.driver of a machine with this GPU."""

    class CUdevice_attribute:  # noqa: N801 - cuda-python's name
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = "major"
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = "minor"

    def __init__(self, status: int = 0, count: int = 1) -> None:
        super().__init__("cuda.bindings.driver")
        self.cuInit: Callable[..., Any] = lambda flags: (status,)
        self.cuDeviceGetCount = lambda: (0, count)
        self.cuDeviceGet = lambda index: (0, index)
        self.cuDeviceGetName = lambda size, device: (0, b"NVIDIA L4".ljust(size, b"\0"))
        self.cuDeviceGetAttribute = lambda name, device: (0, {"major": 8, "minor": 9}[name])
        self.cuDeviceTotalMem = lambda device: (0, 24 * 10**9)
        self.cuDriverGetVersion = lambda: (0, 13000)


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)


def test_the_gpu_is_described_by_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, FakeDriver())
    assert find_gpu() == ADA
    assert ADA.capability_text == "8.9"


@pytest.mark.parametrize(
    ("driver", "message"),
    [(FakeDriver(status=100), r"no usable NVIDIA GPU: .* answered 100"), (FakeDriver(count=0), "the NVIDIA driver shows no GPU")],
)  # fmt: skip
def test_no_gpu_is_one_sentence(driver: FakeDriver, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, driver)
    with pytest.raises(NoGpu, match=message):
        find_gpu()


def test_a_driver_that_cannot_be_loaded_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(flags: int) -> Any:
        raise RuntimeError("libcuda is not there\nand many more lines")

    driver = FakeDriver()
    driver.cuInit = fail
    with_driver(monkeypatch, driver)
    with pytest.raises(NoGpu, match=r"no usable NVIDIA GPU: libcuda is not there$"):
        find_gpu()


def test_without_cuda_python_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(NoGpu, match=r"cuda-python: pip install 'autoglm-triton\[tensorrt\]'"):
        find_gpu()


def with_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: object() if name in names else None)


def test_the_best_runtime_is_the_first_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, "tensorrt", "tensorrt_rtx")
    assert best_runtime(HOPPER) == "tensorrt"
    with_packages(monkeypatch, "tensorrt_rtx")
    assert best_runtime(ADA) == "tensorrt-rtx"
    with pytest.raises(NoGpu, match=r"does not run on compute capability 9\.0; allowed are 7\.5, .*: use tensorrt"):
        best_runtime(HOPPER)


def test_onnx_runtime_must_be_the_one_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, "onnxruntime")
    assert why_not_runtime("onnx", ADA, lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]) is None
    reason = why_not_runtime("onnx", ADA, lambda: ["CPUExecutionProvider"])
    assert reason is not None
    assert "on the CPU only: pip install 'autoglm-triton[onnx-gpu]'" in reason


@pytest.mark.parametrize(
    ("precision", "runtime", "card", "message"),
    [
        ("fp8", "tensorrt", ADA, None),
        ("fp8", "tensorrt", Gpu("A100", (8, 0), 1, "13.0"), r"fp8 needs compute capability 8\.9; A100 has 8\.0"),
        ("bf16", "tensorrt-rtx", TURING, r"bf16 needs compute capability 8\.0; NVIDIA T4 has 7\.5"),
        ("fp16", "tensorrt-rtx", TURING, None),
        ("int8", "tensorrt", ADA, "the runtime tensorrt has no int8 on a GPU; allowed are fp16, bf16, fp8, int4"),
    ],
)
def test_precisions_need_their_hardware(precision: str, runtime: str, card: Gpu, message: str | None) -> None:
    reason = why_not_precision(precision, runtime, card)
    assert reason is None if message is None else re.fullmatch(message, reason or "")


def test_a_runtime_that_is_asked_for_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, "tensorrt", "tensorrt_rtx")
    assert choose_runtime("auto", "fp8", ADA) == "tensorrt"
    assert choose_runtime("tensorrt-rtx", "int4", ADA) == "tensorrt-rtx"
    with pytest.raises(InvalidSetting, match="'abacus' is not known; allowed are auto, tensorrt, tensorrt-rtx, onnx"):
        choose_runtime("abacus", "fp16", ADA)
    with pytest.raises(NoGpu, match="use tensorrt"):
        choose_runtime("tensorrt-rtx", "fp16", HOPPER)


# ---- settings


def settings(**changes: Any) -> GpuBenchSettings:
    small = {"past": 8, "prefill_tokens": 20, "prefill_chunk": 16, "warm_up": 2, "samples": 4, "rounds": 2}
    common = {"runtime": "tensorrt", "precision": "fp16", "shape": TINY, "batches": (1, 2), "max_length": 64}
    return GpuBenchSettings(**{**common, **small, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": (0,)}, r"the batch size is 0; allowed is 1 \.\.\. 1024"),
        ({"batches": ()}, "no batch size is given"),
        ({"past": 65}, r"the past is 65; allowed is 1 \.\.\. 64"),
        ({"prefill_tokens": 65}, r"the prefill tokens is 65"),
        ({"samples": 0}, "the samples is 0"),
        ({"past": 60}, r"past 60, warm-up 2 and samples 4 need 66 positions; the slots have 64"),
    ],
)
def test_settings_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        settings(**changes)


def test_batches_are_read_in_order() -> None:
    assert parse_batches("8,1,8, 2") == (1, 2, 8)
    with pytest.raises(InvalidSetting, match="'1;2'; they must be whole numbers"):
        parse_batches("1;2")


def test_what_does_not_fit_the_card_is_refused_with_figures() -> None:
    big = GpuBenchSettings("tensorrt", "fp16")
    assert device_bytes(big.spec(), "fp16", 16, 2048) == pytest.approx(18.8e9 + 16 * 2048 * 40_960, rel=0.002)
    big.refuse_what_does_not_fit(HOPPER)
    with pytest.raises(InvalidSetting, match=r"need 20\.1 GB; NVIDIA T4 has 16\.0 GB: try --precision int4"):
        big.refuse_what_does_not_fit(TURING)


def test_a_shrunk_shape_keeps_the_heads() -> None:
    assert sized(40, 4096, 13696, 151552) == Shape()
    assert sized(2, 512, 1024, 32000).num_heads == 4
    with pytest.raises(InvalidSetting, match="hidden size is 300; it must be a multiple of 256"):
        sized(2, 300, 1024, 32000)
    with pytest.raises(InvalidSetting, match="layers 0"):
        sized(0, 512, 1024, 32000)


# ---- steps, through a runner that only writes down


class NotedRunner:
    """Takes steps and checks that they go where the last one ended."""

    def __init__(self, num_slots: int, chunk: int) -> None:
        self.limits = Limits(num_slots, 64, chunk, TINY.vocab_size)
        self.steps: list[list[tuple[int, int, int, bool]]] = []

    def issue(self, batch: StepBatch) -> NotedRunner:
        self.steps.append([(s.slot, s.start, len(s.token_ids), s.wants_logits) for s in batch.spans])
        return self

    def result(self) -> Candidates:
        row = np.zeros((1, 1), np.float32)
        return Candidates(row.astype(np.int32), row, row[0], lambda index: row[0])

    def close(self) -> None: ...


def test_decode_steps_go_on_behind_the_past() -> None:
    runner = NotedRunner(num_slots=4, chunk=16)
    assert len(time_decode(runner, 2, 8, warm_up=1, samples=2)) == 2
    assert runner.steps == [[(0, 8 + i, 1, True), (1, 8 + i, 1, True)] for i in range(3)]


def test_prefill_goes_in_chunks_and_wants_only_the_last_logits() -> None:
    runner = NotedRunner(num_slots=1, chunk=16)
    time_prefill(runner, 20, warm_up=0, samples=2)
    assert runner.steps == [[(0, 0, 16, False)], [(0, 16, 4, True)]] * 2
    fill(runner, 0, list(range(16)))
    assert runner.steps[-1] == [(0, 0, 16, True)]


def test_every_batch_size_is_measured_in_every_round() -> None:
    runner = NotedRunner(num_slots=2, chunk=16)
    figures = measure_ours(runner, settings(), BANDWIDTH)
    assert [(f.system, f.what, f.batch, f.tokens, f.num_samples) for f in figures] == [
        ("autoglm tensorrt", "decode", 1, 1, 8),
        ("autoglm tensorrt", "decode", 2, 2, 8),
        ("autoglm tensorrt", "prefill", 1, 20, 10),
    ]
    spec = TINY.spec(64)
    assert figures[1].floor_ms == pytest.approx(1e3 * step_bytes(spec, "fp16", 2, 8 + 2 + 2) / 1e12)
    assert figures[2].floor_ms is None


# ---- the parts that a CPU can do


def test_an_artifact_of_random_weights_is_built_and_loads(tmp_path: Path) -> None:
    spec = TINY.spec(64)
    limits = EngineLimits(num_slots=2, max_length=64, prefill_chunk=16)
    built = build_artifact(
        spec, RandomWeights(spec), tmp_path, runtime="onnx", precision="fp32", limits=limits, options={}
    )
    assert built == Manifest.load(tmp_path)
    with loaded(tmp_path, num_threads=1) as runner:
        assert (runner.limits.num_slots, runner.limits.vocab_size) == (2, TINY.vocab_size)
    with pytest.raises(TypeError, match="abacus"), loaded(tmp_path, num_threads=1, abacus=True):
        pass
    same = settings(runtime="onnx", precision="fp32")
    check_same(built, same, tmp_path)
    with pytest.raises(InvalidSetting, match="has the num_slots 2; asked for is 4"):
        check_same(built, dataclasses.replace(same, batches=(4,)), tmp_path)


def test_bandwidth_is_bytes_a_second() -> None:
    found = measure_bandwidth("cpu", buffer_bytes=1 << 24)
    assert 1e8 < found.read < 1e13
    assert 1e8 < found.copy < 1e13


def test_transformers_generate_is_timed_token_by_token() -> None:
    model = gpu_generate.random_model(TINY.spec(64), "float32", "cpu")
    assert sum(p.numel() for p in model.parameters()) == num_parameters(TINY.spec(64))
    times = gpu_generate.time_generate(model, 2, past=8, steps=3, warm_up=1, calls=2)
    assert (len(times.prefill), len(times.decode)) == (2, 2 * 3)
    assert all(seconds > 0 for seconds in (*times.prefill, *times.decode))


def test_the_baseline_of_a_quantised_engine_is_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(gpu_generate, "random_model", lambda spec, dtype, device: made.append(dtype))
    times = gpu_generate.GenerateTimes([0.01] * 4, [0.001] * 6)
    monkeypatch.setattr(gpu_generate, "time_generate", lambda *arguments, **options: times)
    figures = measure_generate(settings(precision="int4"), BANDWIDTH)
    assert made == ["float16"]
    assert figures[0].floor_ms == pytest.approx(1e3 * step_bytes(TINY.spec(64), "fp16", 1, 12) / 1e12)
    assert [(f.what, f.batch) for f in figures] == [("decode", 1), ("decode", 2), ("prefill", 1)]
    measure_generate(settings(precision="bf16"), BANDWIDTH)
    assert made[1] == "bfloat16"


# ---- report


def some_figures() -> list[Any]:
    return [
        figure("autoglm tensorrt", "decode", 1, 1, [0.020, 0.021, 0.022], floor=17.5),
        figure("autoglm tensorrt", "prefill", 1, 1024, [0.1]),
        figure("transformers", "decode", 1, 1, [0.042]),
        figure("transformers", "decode", 64, 64, [0.1]),
    ]


def test_the_table_has_every_figure() -> None:
    console = Console(width=120, record=True, file=(Path(os.devnull)).open("w"))  # noqa: SIM115 - nothing is written
    console.print(table("title", some_figures()))
    text = console.export_text()
    console.file.close()
    assert re.search(r"autoglm tensorrt\W+decode\W+1\W+21\.00\W+20\.00 \.\.\. 22\.00\W+17\.50\W+1\.20\W+48\W+3\W", text)
    assert re.search(r"prefill\W+1\W+100\.00\W+100\.00 \.\.\. 100\.00\W+-\W+-\W+10,240", text)


def test_only_what_both_measured_is_compared() -> None:
    assert comparisons(some_figures()) == ["decode, batch 1: 2.00 times the speed of transformers generate"]


def test_a_line_says_what_it_depends_on(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gpu.jsonl"
    here = gpu_machine(ADA, BANDWIDTH)
    append_jsonl(path, here, {"precision": "fp16"}, some_figures())
    append_jsonl(path, here, {"precision": "fp16"}, some_figures()[:1])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 5
    assert lines[0]["median_ms"] == 21.0
    assert lines[0]["machine"]["gpu"]["name"] == "NVIDIA L4"
    assert lines[0]["machine"]["gpu"]["read_bytes_per_second"] == 1e12
    assert lines[0]["settings"] == {"precision": "fp16"}


# ---- the command


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoglm_perf.gpu_bench", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_the_command_says_so_in_one_sentence_and_fails() -> None:
    done = run_bench()
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"Error: .*GPU.*\n", done.stderr)


def test_the_help_has_examples_and_needs_no_gpu() -> None:
    done = run_bench("--help")
    assert done.returncode == 0
    assert 'make bench-gpu BENCH_FLAGS="--precision int4' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "abacus"}, "Error: the runtime 'abacus' is not known"),
        ({"hidden": 300}, "Error: the hidden size is 300"),
        ({"batch": "x"}, "Error: the batch sizes are 'x'"),
        ({"past": 5000}, "Error: the past is 5000"),
        ({"batch": "512", "max_length": 8192}, "Error: weights and 512 slots of 8192 tokens need"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_driver(monkeypatch, FakeDriver())
    with_packages(monkeypatch, "tensorrt")
    with pytest.raises(gpu_bench.typer.Exit) as caught:
        gpu_bench.main(**arguments)
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err.startswith(message)


def test_the_gpu_tests_are_collected_without_a_gpu_and_left_out_by_default() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/gpu"]
    asked = subprocess.run([*command, "-m", "gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert len(re.findall(r"^tests/gpu/test_\w+\.py::", asked.stdout, flags=re.MULTILINE)) > 20
    default = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "no tests collected" in default.stdout

"""The GPU benchmark without a GPU: its steps, its parts on what is here, its table and its command."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Candidates, Span, StepBatch
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Limits
from autoglm_export.auto_runtime.random_weights import RandomWeights
from autoglm_perf.gpu import bench as gpu_bench
from autoglm_perf.gpu import generate as gpu_generate
from autoglm_perf.gpu.bandwidth import measure_bandwidth
from autoglm_perf.gpu.bench import check_same, measure_generate, measure_ours
from autoglm_perf.gpu.checks import WrongAnswer, check_decode
from autoglm_perf.gpu.report import append_jsonl, comparisons, gpu_machine, table
from autoglm_perf.gpu.samples import figure
from autoglm_perf.gpu.settings import InvalidSetting
from autoglm_perf.gpu.shapes import num_parameters, step_bytes
from autoglm_perf.gpu.steps import EngineLimits, StepRunner, build_artifact, fill, loaded, time_decode, time_prefill
from rich.console import Console

from tests.support.perf.gpu_fakes import ADA, BANDWIDTH, TINY, FakeDriver, settings, with_driver, with_packages

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


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
        return Candidates(row.astype(np.int32), row, row[0], lambda index: np.ones(TINY.vocab_size, np.float32))

    def close(self) -> None: ...


def test_decode_steps_go_on_behind_the_past() -> None:
    runner = NotedRunner(num_slots=4, chunk=16)
    seconds, rows = time_decode(runner, 2, 8, warm_up=1, samples=2)
    assert len(seconds) == 2
    assert rows.shape == (2, TINY.vocab_size)
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


# ---- what is timed is checked


class WrongRunner:
    """`real`, but that its answers are shifted where `is_wrong` says so of a step's spans."""

    def __init__(self, real: StepRunner, is_wrong: Callable[[tuple[Span, ...]], bool]) -> None:
        self.real, self.limits, self.is_wrong = real, real.limits, is_wrong

    def issue(self, batch: StepBatch) -> Any:
        found = np.array(self.real.issue(batch).result())
        if self.is_wrong(batch.spans):
            found[-1:] = np.roll(found[-1:], 1, axis=1)
        return SimpleNamespace(result=lambda: found)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StepRunner]:
    """A right engine, on the CPU."""
    spec, folder = TINY.spec(64), tmp_path_factory.mktemp("small")
    limits = EngineLimits(num_slots=2, max_length=64, prefill_chunk=16)
    build_artifact(spec, RandomWeights(spec), folder, runtime="onnx", precision="fp32", limits=limits, options={})
    with loaded(folder, num_threads=1) as runner:
        yield runner


def test_what_a_right_engine_computes_is_told_beside_its_times(small: StepRunner) -> None:
    figures = measure_ours(small, settings(precision="fp32"), BANDWIDTH)
    assert [figure.what for figure in figures] == ["decode", "decode", "prefill"]
    assert all(figure.error is not None and figure.error < 1e-4 for figure in figures)


@pytest.mark.parametrize(
    ("is_wrong", "message"),
    [
        (
            lambda spans: len(spans) == 2,
            r"^decode of 2 rows at 14 tokens is 1\.\d+ off in slot 1 from what prefill gives",
        ),
        (
            lambda spans: spans[0].start > 8 and len(spans) == 1,
            r"^decode of 1 rows at 14 tokens is 1\.\d+ off in slot 0",
        ),
        (lambda spans: len(spans[0].token_ids) == 4, r"^prefill of 20 tokens is 1\.\d+ off in slot 0 from what decode"),
    ],
)
def test_a_wrong_engine_has_no_times(small: StepRunner, is_wrong: Any, message: str) -> None:
    with pytest.raises(WrongAnswer, match=message):
        measure_ours(WrongRunner(small, is_wrong), settings(precision="fp32"), BANDWIDTH)


def test_no_number_is_no_answer(small: StepRunner) -> None:
    rows = np.full((2, TINY.vocab_size), np.nan, np.float32)
    with pytest.raises(WrongAnswer, match="is nan off in slot 0 from what prefill gives"):
        check_decode(rows, small, [1, 2, 3], "fp32")


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


@pytest.mark.parametrize(("runtime", "forms"), [("tensorrt", [None, "plain"]), ("onnx", [None])])
def test_what_is_built_is_checked_as_an_export_is(
    runtime: str, forms: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(
        gpu_bench, "build_artifact", lambda *given, **how: asked.append(how["options"].get("attention"))
    )
    monkeypatch.setattr(gpu_bench, "tried", lambda manifest, make, *given: make("plain"))
    with Path(os.devnull).open("w") as nowhere:
        gpu_bench._build(settings(runtime=runtime), tmp_path, Console(file=nowhere))
    assert asked == forms


# ---- report


def some_figures() -> list[Any]:
    return [
        figure("autoglm tensorrt", "decode", 1, 1, [0.020, 0.021, 0.022], floor=17.5, error=0.0021),
        figure("autoglm tensorrt", "prefill", 1, 1024, [0.1]),
        figure("transformers", "decode", 1, 1, [0.042]),
        figure("transformers", "decode", 64, 64, [0.1]),
    ]


def test_the_table_has_every_figure() -> None:
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(table("title", some_figures()))
    text = console.export_text()
    row = r"autoglm tensorrt\W+decode\W+1\W+21\.00\W+20\.00 \.\.\. 22\.00\W+17\.50\W+1\.20\W+48\W+0\.002\W+3\W"
    assert re.search(row, text)
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
    command = [sys.executable, "-m", "autoglm_perf.gpu.bench", *arguments]
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

"""Which GPU and runtime are taken, which settings are refused, and with what sentence."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from autoglm_perf.gpu.bench import choose, sized
from autoglm_perf.gpu.device import Gpu, NoGpu, best_runtime, find_gpu, why_not_precision, why_not_runtime
from autoglm_perf.gpu.settings import GpuBenchSettings, InvalidSetting, device_bytes, parse_batches
from autoglm_perf.gpu.shapes import Shape

from tests.support.perf.gpu_fakes import ADA, HOPPER, TURING, FakeDriver, settings, with_driver, with_packages

# ---- which GPU, which runtime


def test_the_gpu_is_described_by_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, FakeDriver())
    assert find_gpu() == ADA
    assert ADA.capability_text == "8.9"


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (FakeDriver(status=100), r"no usable NVIDIA GPU: .* answered 100"),
        (FakeDriver(count=0), "the NVIDIA driver shows no GPU"),
    ],
)
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
    for name in ("cuda", "cuda.bindings"):  # another test may have imported it
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NoGpu, match=r"cuda-python: pip install 'autoglm-triton\[tensorrt\]'"):
        find_gpu()


def test_the_best_runtime_is_the_first_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, "tensorrt", "tensorrt_rtx")
    assert best_runtime(HOPPER) == "tensorrt"
    with_packages(monkeypatch, "tensorrt_rtx")
    assert best_runtime(ADA) == "tensorrt-rtx"
    with pytest.raises(NoGpu, match=r"does not run on compute capability 9\.0; allowed are 8\.0, .*: use tensorrt"):
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
        ("fp16", "onnx", TURING, None),
        ("int8", "tensorrt", ADA, "the runtime tensorrt has no int8 on a GPU; allowed are bf16, fp16, fp8, int4"),
    ],
)
def test_precisions_need_their_hardware(precision: str, runtime: str, card: Gpu, message: str | None) -> None:
    reason = why_not_precision(precision, runtime, card)
    assert reason is None if message is None else re.fullmatch(message, reason or "")


def test_a_runtime_that_is_asked_for_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, "tensorrt", "tensorrt_rtx")
    assert choose("auto", "fp8", ADA) == ("tensorrt", "fp8")
    assert choose("tensorrt-rtx", None, ADA) == ("tensorrt-rtx", "bf16")
    with pytest.raises(InvalidSetting, match="'abacus' is not known; allowed are auto, tensorrt, tensorrt-rtx, onnx"):
        choose("abacus", "fp16", ADA)
    with pytest.raises(NoGpu, match="use tensorrt"):
        choose("tensorrt-rtx", "fp16", HOPPER)
    for runtime in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(
            NoGpu, match=rf"attention of {runtime} needs compute capability 8\.0; NVIDIA T4 has 7\.5: use onnx"
        ):
            choose(runtime, "fp16", TURING)


# ---- settings


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

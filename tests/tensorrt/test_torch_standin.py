"""The torch stand-in for TensorRT on the CPU: it computes the contract, under the real runner and the check of a
GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from autoglm_engine.runners.device_check.loading import check_on

from tests.gpu import torch_standin
from tests.support.export.artifacts import ROOT
from tests.support.export.tiny_decoders import SPECS, expected_logits, random_weights
from tests.support.perf.gpu_fakes import TINY
from tests.support.tensorrt.checked_artifacts import add_reference
from tests.support.tensorrt.contract_network import GpuBench
from tests.support.tensorrt.fake_cuda import FakeCuda
from tests.support.tensorrt.torch_decoder import TorchDecoder, TorchWeights
from tests.support.tensorrt.torch_tensorrt import TorchTensorRT

LIMITS = {"num_slots": 3, "max_length": 64, "prefill_chunk": 16}


@pytest.mark.parametrize("variant", sorted(SPECS))
def test_the_decoder_computes_what_is_written_out(variant: str) -> None:
    spec, weights = SPECS[variant], random_weights(SPECS[variant])
    ids = np.random.default_rng(5).integers(0, spec.vocab_size, 20).astype(np.int32)
    inputs = {
        "token_ids": torch.from_numpy(ids[None]),
        "position_ids": torch.arange(20)[None],
        "write_indices": torch.zeros(1, dtype=torch.int32),
        "key_positions": torch.arange(24),
        "logit_indices": torch.tensor([[19]]),
    }
    for layer in range(spec.num_layers):
        for kind in ("key", "value"):
            shape = (1, spec.num_kv_heads, 32, spec.head_size)
            inputs[f"past_{kind}_{layer}"] = torch.full(shape, torch.nan).index_fill_(2, torch.arange(20, 24), 500.0)
    found = TorchDecoder(spec, TorchWeights(weights), 32).logits(inputs)
    np.testing.assert_allclose(found[0].numpy(), expected_logits(spec, weights, ids)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache_dtype", ["float16", "bfloat16"])
def test_it_passes_the_check_of_a_gpu(cache_dtype: str, tmp_path: Path) -> None:
    standin = torch_standin.make(tmp_path, TINY.spec(64), LIMITS, cache_dtype, "cpu")
    cuda = FakeCuda()
    found = check_on(tmp_path, standin.manifest, standin.trt(cuda), cuda, {"XDG_CACHE_HOME": str(tmp_path)})
    assert found["worst_error"] < 0.01
    assert found["equal_tokens"] == found["tokens"] == 32
    assert not cuda.leaks


def test_steps_are_timed_by_batch_size(tmp_path: Path) -> None:
    standin = torch_standin.make(tmp_path, TINY.spec(64), LIMITS, "bfloat16", "cpu")
    cuda = FakeCuda()
    found = torch_standin.measure(standin, cuda, [1, 3], steps=3)
    assert [(row["batch"], row["graphs"]) for row in found] == [(1, True), (3, True)]
    assert all(0 < row["host_ms"] <= row["whole_ms"] for row in found)
    assert not cuda.leaks


def test_what_torch_cannot_compute_is_refused_in_a_sentence(tmp_path: Path) -> None:
    bench = GpuBench(tmp_path, "glm4")
    add_reference(bench)

    def compute(inputs: object, outputs: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    bench.trt = TorchTensorRT(bench.cuda, bench.trt.network)
    trt = bench.trt
    trt.network = type(trt.network)(**{**vars(trt.network), "compute": compute})
    bench.cuda.enqueue = lambda operation: operation()  # type: ignore[method-assign]
    with pytest.raises(Exception, match="could not enqueue a step: operation not permitted when stream is capturing"):
        bench.open()


@pytest.mark.slow
def test_it_runs_as_it_is_documented() -> None:
    written = [(ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"), torch_standin.__doc__ or ""]
    commands = [re.findall(r"PYTHONPATH=(\S+) python3? (tests/gpu/torch_standin\.py)", text) for text in written]
    assert commands[0] == commands[1] and len(commands[0]) == 1
    paths, program = commands[0][0]
    command = [sys.executable, program, "--help"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

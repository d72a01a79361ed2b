"""A GPU is checked before it serves: each way to compute something else is found and told, the right one passes."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.errors import ArtifactError, DeviceError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.device_check import approval as device_approval
from autoglm_engine.runners.device_check import check as device_check
from autoglm_engine.runners.device_check.loading import check_on
from autoglm_engine.runners.device_check.pattern import KINDS, POISON, pattern, poison, restored, scaled, stored
from autoglm_engine.runners.device_check.reference import DeviceReference
from autoglm_engine.runners.runtime_details import check_details
from autoglm_export.tensorrt.device_reference import text_logits

from tests.support.export.numpy_runner import Rows
from tests.support.export.tiny_decoders import SPECS, expected_logits, random_weights
from tests.support.tensorrt.checked_artifacts import PlainWeights, add_reference
from tests.support.tensorrt.contract_network import ContractOps, GpuBench


@pytest.fixture
def bench(tmp_path: Path) -> GpuBench:
    """Of GLM-4's layers; not open."""
    made = GpuBench(tmp_path, "glm4", prefill_chunk=8)
    add_reference(made)
    return made


def record(bench: GpuBench) -> dict[str, Any]:
    return check_on(bench.folder, bench.manifest, bench.trt, bench.cuda, {"XDG_CACHE_HOME": str(bench.folder)})


def refused(bench: GpuBench, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        bench.open()
    assert "\n" not in str(caught.value)
    assert not bench.cuda.leaks


# ---- the right engine passes


@pytest.mark.parametrize("variant", sorted(SPECS))
def test_what_every_family_computes_is_approved(variant: str, tmp_path: Path) -> None:
    bench = GpuBench(tmp_path, variant)
    add_reference(bench)
    found = record(bench)
    assert found["worst_error"] < 5e-3 < found["bound"]
    assert (found["equal_tokens"], found["tokens"]) == (23, 23)
    assert not bench.cuda.leaks


@pytest.mark.parametrize("num_slots", [1, 2, 3, 9])
def test_any_number_of_slots_is_checked(num_slots: int, tmp_path: Path) -> None:
    bench = GpuBench(tmp_path, "glm4", num_slots=num_slots, prefill_chunk=8)
    add_reference(bench)
    assert record(bench)["worst_error"] < 5e-3
    rows = {rows for rows, _ in bench.decoder.calls}
    assert max(rows) == num_slots


def test_slots_are_zero_after_it(bench: GpuBench) -> None:
    bench.open()
    assert not any(any(bench.cache(slot)) for slot in range(bench.manifest.num_slots))


# ---- each fault is found


def nothing_hidden(self: ContractOps, keys: Any, queries: Any) -> Any:
    return np.zeros((len(queries), len(keys)), np.bool_)


def one_too_many(self: ContractOps, keys: Any, queries: Any) -> Any:
    return keys[None] > queries[:, None] + 1


def one_too_few(self: ContractOps, keys: Any, queries: Any) -> Any:
    return (keys[None] >= queries[:, None]) & (keys[None] > 0)


def chunk_not_causal(self: ContractOps, keys: Any, queries: Any) -> Any:
    return np.broadcast_to(keys > queries.max(), (len(queries), len(keys)))


def beyond_a_block(self: ContractOps, keys: Any, queries: Any) -> Any:
    """A kernel that reads whole blocks of 16 keys, from some length on."""
    ends = np.where(queries >= 16, queries // 16 * 16 + 15, queries)
    return keys[None] > ends[:, None]


FAULTS = {
    "nothing hidden": nothing_hidden,
    "one too many": one_too_many,
    "one too few": one_too_few,
    "a chunk that is not causal": chunk_not_causal,
    "beyond a block": beyond_a_block,
}


@pytest.mark.parametrize("variant", ["glm4", "llama", "one-kv-head"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_mask_is_refused(fault: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (fault, variant) == ("a chunk that is not causal", "one-kv-head"):
        pytest.skip("of one layer only the last token's logits can be seen, and that sees the whole chunk")
    bench = GpuBench(tmp_path, variant, prefill_chunk=8)
    add_reference(bench)
    monkeypatch.setattr(ContractOps, "hidden", FAULTS[fault])
    refused(
        bench,
        r"^this GPU \(NVIDIA L4, compute capability 8\.9, driver 580\.65\.06\) does not compute what the model is",
    )


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.2, 5.7])
def test_a_wrong_scale_is_refused(factor: float, bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ContractOps.scale
    monkeypatch.setattr(ContractOps, "scale", lambda self: right(self) * np.float32(factor))
    refused(bench, "attention is .* off in decode of .* tokens in slot ., .*where rounding explains 0.02")


def test_a_nan_is_refused(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ContractOps.attention

    def attention(self: ContractOps, qkv: Rows, layer: int, *norms: str | None) -> Rows:
        found = right(self, qkv, layer, *norms)
        return found * np.float32(np.nan) if int(self.inputs["position_ids"][self.row, -1]) == 22 else found

    monkeypatch.setattr(ContractOps, "attention", attention)
    refused(bench, "attention is nan off in decode of 23 tokens in slot 2, 3 rows together")


def test_a_fault_of_one_bucket_is_found(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen by the number of rows."""
    monkeypatch.setattr(
        ContractOps,
        "hidden",
        lambda self, keys, queries: keys[None] > queries[:, None] + (len(self.inputs["token_ids"]) == 5),
    )
    refused(bench, "attention is .* off in decode of 1 tokens in slot 2, 3 rows together")


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
def test_a_poisoned_key_is_found_whatever_its_score(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer's scores of the key that is let in here are all negative: it would have no weight."""
    bench = GpuBench(tmp_path, "glm4", num_slots=16, max_length=300, prefill_chunk=64)
    add_reference(bench)
    monkeypatch.setattr(
        ContractOps,
        "hidden",
        lambda self, keys, queries: keys[None] > queries[:, None] + (self.inputs["token_ids"].shape == (rows, 1)),
    )
    refused(bench, "attention is .* off in decode of ")


@pytest.mark.parametrize("num_keys", [256, 1024, 4096, 5008])
def test_a_fault_of_one_number_of_positions_is_found(
    num_keys: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are chosen by it, too."""
    bench = GpuBench(tmp_path, "glm4", num_slots=1, max_length=5000, prefill_chunk=8)
    assert num_keys in bench.shapes.attention_lengths
    add_reference(bench)
    monkeypatch.setattr(
        ContractOps, "hidden", lambda self, keys, queries: keys[None] > queries[:, None] + (len(keys) == num_keys)
    )
    refused(bench, "attention is .* off in decode of ")


def test_a_fault_of_a_later_layer_is_found_in_the_text(bench: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ContractOps.attention

    def attention(self: ContractOps, qkv: Rows, layer: int, *norms: str | None) -> Rows:
        return -right(self, qkv, layer, *norms) if layer else right(self, qkv, layer, *norms)

    monkeypatch.setattr(ContractOps, "attention", attention)
    refused(bench, r"\d+ of 23 tokens of a text are not the reference's, the first at place \d+; export it again")


# ---- when it is done


def test_it_is_not_done_again_on_such_a_gpu_with_such_a_driver(
    bench: GpuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.manifest.runtime_details["device_check"] = record(bench)
    monkeypatch.setattr(device_approval, "check_device", None)
    again = GpuBench(bench.folder, "glm4", prefill_chunk=8, **bench.manifest.runtime_details)
    again.open()
    assert again.runner.limits.num_slots == 5


@pytest.mark.parametrize(
    ("where", "value"), [("name", "NVIDIA L40S"), ("driver", "590.1"), ("compute_capability", "8.0")]
)
def test_it_is_done_on_another_gpu_or_driver(
    where: str, value: str, bench: GpuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.manifest.runtime_details["device_check"] = record(bench)
    checks = []
    monkeypatch.setattr(
        device_approval, "check_device", lambda *found: checks.append(found) or device_check.check_device(*found)
    )
    again = GpuBench(bench.folder, "glm4", prefill_chunk=8, **bench.manifest.runtime_details)
    setattr(again.cuda, where, value)
    again.open()
    assert len(checks) == 1
    monkeypatch.setattr(ContractOps, "hidden", nothing_hidden)
    wrong = GpuBench(bench.folder, "glm4", prefill_chunk=8, **bench.manifest.runtime_details)
    setattr(wrong.cuda, where, value)
    refused(wrong, f"{value}.* does not compute what the model is")


@pytest.mark.parametrize("change", [{"attention": "plain"}, {"version": "11.4.1"}])
def test_the_check_of_another_engine_counts_for_nothing(change: dict[str, str], bench: GpuBench) -> None:
    found = record(bench) | change
    manifest = dataclasses.replace(bench.manifest)
    manifest.runtime_details["device_check"] = found
    assert not device_approval.is_approved(manifest, bench.cuda.device)


def test_an_artifact_without_a_reference_is_served_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        GpuBench(tmp_path).open()
    assert "is not checked: the artifact has no reference; export it again to have one" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("is_final", [False, True])
def test_a_gpu_that_fails_during_it_leaves_nothing(is_final: bool, bench: GpuBench) -> None:
    bench.open()
    last = len(bench.cuda.calls)
    first = next(number for number, name in enumerate(bench.cuda.calls) if bench.cuda.calls[number - 1] == "launch")
    for number in range(first, last, 37):
        again = GpuBench(bench.folder, "glm4", prefill_chunk=8, **bench.manifest.runtime_details)
        again.cuda.fail_at, again.cuda.is_final = number, is_final
        with pytest.raises(ArtifactError, match="the GPU could not"):
            again.open()
        assert not again.cuda.leaks, f"after call {number}, {again.cuda.calls[number - 1]}"


# ---- what the manifest says


def test_the_manifest_keeps_what_was_found(bench: GpuBench) -> None:
    found = record(bench)
    assert {name: found[name] for name in ("device", "compute_capability", "driver", "version", "capacity")} == {
        "device": "NVIDIA L4",
        "compute_capability": "8.9",
        "driver": "580.65.06",
        "version": "11.4.0",
        "capacity": 32,
    }
    bench.manifest.runtime_details["device_check"] = found
    bench.manifest.save(bench.folder)
    loaded = Manifest.load(bench.folder)
    check_details(loaded, bench.folder)
    assert loaded.runtime_details["device_check"] == found
    without = dataclasses.replace(loaded, runtime_details={**loaded.runtime_details, "device_check": None})
    assert loaded.digest == without.digest, "where it was checked changes no answer"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"driver": 580}, "device_check.driver 580; it must be a text"),
        ({"worst_error": "small"}, 'worst_error "small"; it must be a number of 0 or more'),
        ({"capacity": 0}, "device_check.capacity 0; it must be a whole number"),
        ({"bound": True}, "device_check.bound true; it must be a number above 0"),
    ],
)
def test_a_record_that_is_none_is_refused(change: dict[str, Any], message: str, bench: GpuBench) -> None:
    bench.manifest.runtime_details["device_check"] = record(bench) | change
    with pytest.raises(ArtifactError, match=message):
        check_details(bench.manifest, bench.folder)


def test_a_reference_that_is_not_listed_is_refused(bench: GpuBench) -> None:
    del bench.manifest.files["reference.npz"]
    with pytest.raises(ArtifactError, match="which is none of the artifact"):
        check_details(bench.manifest, bench.folder)


def test_a_file_that_is_no_reference_is_refused(bench: GpuBench) -> None:
    (bench.folder / "reference.npz").write_bytes(b"nothing")
    refused(bench, "reference.npz is no reference to check a GPU by: .*; export it again")


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": (1, 7, 99)},
        {"lengths": (0, 7, 23)},
        {"decode": np.zeros((3, 5), np.float32)},
        {"text": np.full(24, 97, np.int32)},
        {"text": np.full(3, 9, np.int32)},
        {"token_ids": np.zeros((2, 8), np.int32)},
    ],
)
def test_the_reference_of_another_model_is_refused(change: dict[str, Any], bench: GpuBench) -> None:
    path = bench.folder / "reference.npz"
    dataclasses.replace(DeviceReference.load(path), **change).save(path)
    refused(bench, "is of another model than its manifest; export it again|is no reference to check a GPU by")


# ---- the reference itself


@pytest.mark.parametrize("variant", sorted(SPECS))
def test_the_text_is_computed_as_written_out(variant: str) -> None:
    spec, weights = SPECS[variant], random_weights(SPECS[variant])
    text = np.random.default_rng(3).integers(0, spec.vocab_size, 40).astype(np.int32)
    found = text_logits(spec, PlainWeights(weights), text, places=9)
    np.testing.assert_allclose(found, expected_logits(spec, weights, text)[-9:], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_pattern_is_held_exactly(dtype: str) -> None:
    for kind in KINDS:
        numbers = pattern(kind, 2, 300, 64)
        for exponent in (-12, -5, 0, 6):
            values = scaled(numbers, exponent)
            np.testing.assert_array_equal(restored(stored(values, dtype), dtype), values)
        assert abs(numbers.mean()) < 1 and 70 < numbers.std() < 77
        np.testing.assert_array_equal(pattern(kind, 2, 100, 64), numbers[:, :100])
    assert not np.array_equal(pattern("key", 1, 50, 64), pattern("value", 1, 50, 64))
    values = poison(2, 300, 64)
    assert set(np.unique(values)) == {-POISON, POISON} and abs(values.mean()) < 20
    np.testing.assert_array_equal(restored(stored(values, dtype), dtype), values)


def test_a_cache_of_another_type_is_refused() -> None:
    with pytest.raises(ArtifactError, match="of the type float32; a GPU's is float16 or bfloat16"):
        stored(np.zeros(3, np.float32), "float32")


def test_a_gpu_that_fails_is_told_as_such(bench: GpuBench) -> None:
    bench.cuda.failing = "copy_rows"
    with pytest.raises((ArtifactError, DeviceError), match="the GPU could not copy_rows"):
        bench.open()

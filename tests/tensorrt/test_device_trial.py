"""What an export does with what this machine's GPU computes; and the lowered network, in each form, under the check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from autoglm_engine.errors import ArtifactError, WrongOnThisGpu
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.device_check.loading import check_on
from autoglm_export.errors import ExportError
from autoglm_export.parity.device_trial import recheck, tried
from autoglm_export.tensorrt.attention import FORMS
from autoglm_export.tensorrt.device_reference import LENGTHS
from autoglm_export.tensorrt.engine_weights import EngineWeights
from autoglm_export.tensorrt.linear import fp8_columns
from autoglm_export.tensorrt.network import Network
from autoglm_export.tensorrt.profiles import ATTENTION_LENGTHS
from typer.testing import CliRunner

from tests.support.export.tiny_decoders import SPECS, random_weights
from tests.support.export.tiny_models import write_checkpoint
from tests.support.tensorrt.contract_network import GpuBench
from tests.support.tensorrt.lowered_network import CALIBRATION, lowered
from tests.support.tensorrt.tensorrt_networks import define_network

RECORD = {
    "device": "NVIDIA L4",
    "compute_capability": "8.9",
    "driver": "580.65.06",
    "version": "11.4.0",
    "attention": "fused",
    "capacity": 32,
    "worst_error": 0.001,
    "bound": 0.05,
    "equal_tokens": 32,
    "tokens": 32,
    "time": "2026-08-01T10:00:00Z",
}


class Exports:
    """`make` of an export: notes the forms that are built. `wrong`: those that this GPU gets wrong."""

    def __init__(self, folder: Path, wrong: Sequence[str] = (), failure: str = "") -> None:
        self.folder, self.wrong, self.failure = folder, wrong, failure
        self.made: list[str] = []

    def make(self, form: str) -> Manifest:
        self.made.append(form)
        manifest = GpuBench(self.folder, attention=form, reference="engine.plan").manifest
        manifest.save(self.folder)
        return manifest

    def check(self, folder: Path, manifest: Manifest) -> dict[str, object]:
        if self.failure:
            raise ArtifactError(self.failure)
        if (form := manifest.runtime_details["attention"]) in self.wrong:
            raise WrongOnThisGpu(f"{form} is 9.9 off")
        return {**RECORD, "attention": form}

    def tried(self, forms: tuple[str, ...] = FORMS) -> dict[str, Any]:
        """The details of the manifest in the folder."""
        made = tried(self.make("fused"), self.make, self.folder, forms, check=self.check)
        assert Manifest.load(self.folder) == made
        return made.runtime_details


def test_what_is_right_is_kept_and_recorded(tmp_path: Path) -> None:
    exports = Exports(tmp_path)
    details = exports.tried()
    assert details["device_check"] == RECORD
    assert exports.made == ["fused"]
    assert "attention_note" not in details


def test_the_next_form_is_taken_and_told(tmp_path: Path) -> None:
    exports = Exports(tmp_path, wrong=["fused", "decomposed"])
    details = exports.tried()
    assert exports.made == ["fused", "decomposed", "plain"]
    assert (details["attention"], details["device_check"]["attention"]) == ("plain", "plain")
    told = "decomposed attention is wrong here (decomposed is 9.9 off), so it is plain, which is slower"
    assert details["attention_note"] == told


def test_a_gpu_that_gets_every_form_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^plain is 9\.9 off$"):
        Exports(tmp_path, wrong=FORMS).tried()


def test_a_form_that_was_asked_for_is_not_exchanged(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^fused is 9\.9 off$"):
        Exports(tmp_path, wrong=["fused"]).tried(forms=())


def test_without_a_gpu_the_manifest_says_so(tmp_path: Path) -> None:
    details = Exports(tmp_path, failure="no NVIDIA driver answers on this machine").tried()
    assert details["device_check_note"] == "not checked on a GPU yet: no NVIDIA driver answers on this machine"
    assert "device_check" not in details


def test_a_check_again_takes_the_place_of_the_note(tmp_path: Path) -> None:
    exports = Exports(tmp_path, failure="no GPU")
    exports.tried()
    exports.failure, digest = "", Manifest.load(tmp_path).digest
    assert recheck(tmp_path, exports.check).runtime_details["device_check"] == RECORD
    assert Manifest.load(tmp_path).digest == digest  # a server that has it goes on with it
    assert "device_check_note" not in Manifest.load(tmp_path).runtime_details
    exports.wrong = ["fused"]
    with pytest.raises(ExportError, match=r"^fused is 9\.9 off$"):
        recheck(tmp_path, exports.check)
    details = Manifest.load(tmp_path).runtime_details
    assert "device_check" not in details  # so whoever loads it checks it
    assert details["device_check_note"] == "not served: fused is 9.9 off"
    (tmp_path / "engine.plan").write_bytes(b"")
    with pytest.raises(ExportError, match=r"engine\.plan has 0 bytes"):
        recheck(tmp_path, exports.check)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_lengths": "48"}, 'attention_lengths "48"; it must be a list of whole numbers'),
        ({"engine": "../engine.plan"}, "none of the artifact's; export it again"),
        ({"cache_length": None}, "cache_length null; it must be a whole number"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused_before_a_gpu_is_asked(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    manifest = Exports(tmp_path).make("fused")
    manifest.runtime_details.update(change)
    manifest.save(tmp_path)
    with pytest.raises(ExportError, match=message):
        recheck(tmp_path)


def test_what_an_older_exporter_wrote_is_refused_before_a_gpu_is_asked(tmp_path: Path) -> None:
    manifest = Exports(tmp_path).make("fused")
    for name in ("attention_lengths", "prefill_lengths", "reference"):
        del manifest.runtime_details[name]
    manifest.save(tmp_path)
    with pytest.raises(ExportError, match=r"^the artifact's manifest lacks attention_lengths, prefill_lengths; export"):
        recheck(tmp_path)


# ---- the commands


def autoglm(*words: str) -> tuple[int, str]:
    from autoglm_cli import app

    found = CliRunner().invoke(app, list(words))
    return found.exit_code, " ".join(found.output.split())


def test_inspect_tells_where_it_was_checked(tmp_path: Path) -> None:
    Exports(tmp_path).tried()
    _, output = autoglm("inspect", str(tmp_path))
    assert (
        "checked on NVIDIA L4 (8.9, driver 580.65.06), version 11.4.0, 2026-08-01T10:00:00Z: fused attention" in output
    )
    assert "at most 0.001 off (allowed 0.05), 32 of 32 tokens are the reference's" in output
    Exports(tmp_path).make("fused")
    assert "not checked on a GPU yet (autoglm export --check does)" in autoglm("inspect", str(tmp_path))[1]


def test_export_without_a_checkpoint_only_checks(tmp_path: Path) -> None:
    Exports(tmp_path).make("fused")
    status, output = autoglm("export", "--output", str(tmp_path))
    assert status == 2 and "only --check needs none; see autoglm export --help" in output
    status, output = autoglm("export", "--check", "--max-slots", "3", "--output", str(tmp_path))
    assert status == 1 and "--max-slots needs a checkpoint: without one, --check builds nothing" in output
    status, output = autoglm("export", "--check", "--output", str(tmp_path))
    assert status == 1 and "error: the artifact needs the package tensorrt 11.4.0, which is not installed" in output


# ---- of a real export and a real network


@pytest.mark.tensorrt
def test_an_export_ahead_of_time_has_a_reference_and_says_that_no_gpu_was_asked(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", "glm4")
    status, output = autoglm(
        "export",
        str(tmp_path / "checkpoint"),
        "--runtime",
        "tensorrt-rtx",
        "--max-length",
        "64",
        "--max-slots",
        "2",
        "--compute-capability",
        "8.9",
        "--output",
        str(tmp_path / "artifact"),
    )
    assert status == 0, output
    assert "not checked on a GPU yet: no NVIDIA driver answers on this machine" in output
    manifest = Manifest.load(tmp_path / "artifact")
    assert manifest.runtime_details["reference"] in manifest.files


@pytest.mark.tensorrt
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8", "int4"])
def test_the_lowered_network_is_approved(precision: str, form: str, tmp_path: Path) -> None:
    bench = lowered(tmp_path, precision, form)
    found = check_on(tmp_path, bench.manifest, bench.trt, bench.cuda, {"XDG_CACHE_HOME": str(tmp_path)})
    assert found["worst_error"] < 0.6 * found["bound"], found


def masked(change: Any) -> Any:
    """`Attention`'s network, with another comparison of positions for the mask."""
    right = Network.binary

    def binary(self: Network, operation: str, x: Any, y: Any) -> Any:
        return change(self, x, y) if operation == "GREATER" else right(self, operation, x, y)

    return binary


def shifted(network: Network, keys: Any, queries: Any) -> Any:
    one = network.constant("one", np.ones((1,) * len(keys.shape), np.int32))
    return network.definition.add_elementwise(
        network.binary("SUB", keys, one), queries, network.trt.ElementWiseOperation.GREATER
    ).get_output(0)


def dropped(network: Network, keys: Any, queries: Any) -> Any:
    far = network.constant("far", np.full((1,) * len(keys.shape), 1 << 20, np.int32))
    return network.definition.add_elementwise(
        keys, network.binary("SUM", queries, far), network.trt.ElementWiseOperation.GREATER
    ).get_output(0)


@pytest.mark.tensorrt
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [shifted, dropped])
def test_a_lowering_with_a_wrong_mask_is_refused(
    change: Any, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Network, "binary", masked(change))
    bench = lowered(tmp_path, "bf16", form)
    with pytest.raises(WrongOnThisGpu, match=r"attention is .* off in (decode|prefill) of"):
        check_on(tmp_path, bench.manifest, bench.trt, bench.cuda, {"XDG_CACHE_HOME": str(tmp_path)})


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8", "int4"])
def test_weights_are_read_back_as_the_engine_holds_them(precision: str) -> None:
    spec = SPECS["glm4"]
    weights = random_weights(spec)
    texts = CALIBRATION if precision == "fp8" else ()
    defined = define_network(spec, weights, precision, cache_length=48, num_candidates=4, texts=texts)
    found = EngineWeights(defined.network)
    layers = ("layers.0.query", "layers.0.key", "layers.0.value")
    whole = np.concatenate([weights[f"{name}.weight"] for name in layers])
    dtype = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
    expected = whole.astype(dtype).astype(np.float32)
    if precision == "int4":
        expected = defined.scales[layers].restored()
    if precision == "fp8":
        values, scales = fp8_columns([weights[f"{name}.weight"] for name in layers], dtype)
        expected = values.astype(np.float32) * scales.astype(np.float32)[:, None]
    np.testing.assert_array_equal(found.matrix(layers), expected)
    np.testing.assert_array_equal(found.bias(layers), np.concatenate([weights[f"{name}.bias"] for name in layers]))
    np.testing.assert_array_equal(found.vector("final_norm"), weights["final_norm"])
    np.testing.assert_array_equal(found.table("embed"), weights["embed"].astype(np.float16))
    assert found.bias(("layers.0.output",)) is None


def test_a_row_is_checked_in_each_number_of_positions_that_attention_may_read() -> None:
    checked = [next(keys for keys in ATTENTION_LENGTHS if keys > length) for length in LENGTHS]
    assert sorted(set(checked)) == list(ATTENTION_LENGTHS)

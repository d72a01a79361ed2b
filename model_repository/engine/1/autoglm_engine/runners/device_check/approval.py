"""Whether an artifact's engine may serve on this GPU: checked where no check of the manifest was made on one like
it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoglm_engine.errors import ArtifactError, WrongOnThisGpu
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.cuda.api import Cuda, Device
from autoglm_engine.runners.tensorrt.shapes import TensorShapes

from .check import CheckedRunner, DeviceReport, check_device
from .reference import DeviceReference

DETAIL = "device_check"  # of `runtime_details`
_log = logging.getLogger(__name__)


def approve(folder: Path, manifest: Manifest, runner: CheckedRunner, cuda: Cuda) -> None:
    """Raises ArtifactError with one sentence where this GPU computes something else than the reference says."""
    device = cuda.device
    if is_approved(manifest, device):
        return
    if "reference" not in manifest.runtime_details:
        _log.warning("this GPU (%s) is not checked: the artifact has no reference; export it again to have one", device)
        return
    started = time.monotonic()
    report = examined(folder, manifest, runner, cuda)
    if report.failure is not None:
        raise WrongOnThisGpu(refusal(report.failure, manifest, device))
    _log.info(
        "this GPU (%s) computes what the reference says: at most %.2g off, %d of %d tokens equal, in %.1f s",
        device,
        report.worst_error,
        report.num_places - len(report.missed),
        report.num_places,
        time.monotonic() - started,
    )


def examined(folder: Path, manifest: Manifest, runner: CheckedRunner, cuda: Cuda) -> DeviceReport:
    reference = DeviceReference.load(folder / manifest.runtime_details["reference"])
    shapes = TensorShapes.of(manifest)
    _check_fits(reference, shapes, folder)
    return check_device(runner, cuda, shapes, reference)


def is_approved(manifest: Manifest, device: Device) -> bool:
    """A check that was passed on such a GPU, with this driver, of this very engine."""
    found = manifest.runtime_details.get(DETAIL)
    return found is not None and {name: found.get(name) for name in _identity(manifest, device)} == _identity(
        manifest, device
    )


def record_of(report: DeviceReport, manifest: Manifest, device: Device) -> dict[str, Any]:
    """What the manifest keeps of a check that was passed."""
    return {
        **_identity(manifest, device),
        "capacity": manifest.runtime_details["cache_length"],
        **report.as_json(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def refusal(failure: str, manifest: Manifest, device: Device) -> str:
    return (
        f"this GPU ({device}) does not compute what the model is, with {attention_of(manifest)} attention in "
        f"{manifest.precision} at a capacity of {manifest.runtime_details['cache_length']:,}: {failure}; "
        "export it again on this machine"
    )


def attention_of(manifest: Manifest) -> str:
    """The form of attention that the engine was built with."""
    return str(manifest.runtime_details.get("attention", "fused"))


def _identity(manifest: Manifest, device: Device) -> Mapping[str, str]:
    return {
        "device": device.name,
        "compute_capability": device.compute_capability,
        "driver": device.driver,
        "version": manifest.runtime_version,
        "attention": attention_of(manifest),
    }


def _check_fits(reference: DeviceReference, shapes: TensorShapes, folder: Path) -> None:
    """Raises ArtifactError for the reference of another model, before anything is computed by it."""
    width = 2 * shapes.num_kv_heads * shapes.head_size if shapes.num_layers > 1 else shapes.vocab_size
    last, longest = shapes.cache_length - 1, max(reference.lengths, default=0)
    tokens = max(int(part.max(initial=0)) for part in (reference.token_ids, reference.text))
    if (
        reference.decode.shape[1] != width
        or reference.prefill.shape[2] != width
        or max(longest, len(reference.text)) > last
        or tokens >= shapes.vocab_size
        or reference.token_ids.shape[1] > shapes.prefill_chunk
    ):
        raise ArtifactError(f"the reference in {folder} is of another model than its manifest; export it again")

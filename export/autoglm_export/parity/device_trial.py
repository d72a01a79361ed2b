"""An engine is checked on the GPU that it was built beside, and built again with another form of attention where it
must be."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from autoglm_engine.errors import ArtifactError, WrongOnThisGpu
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.device_check.approval import DETAIL
from autoglm_engine.runners.device_check.loading import check_here

from autoglm_export.artifact import save_whole
from autoglm_export.errors import ExportError
from autoglm_export.runtimes import Progress, no_progress

NOTE = "device_check_note"  # of `runtime_details`: why no GPU was asked
ATTENTION_NOTE = "attention_note"

_log = logging.getLogger(__name__)
Check = Callable[[Path, Manifest], dict[str, object]]


def tried(
    manifest: Manifest,
    make: Callable[[str], Manifest],
    folder: Path,
    forms: tuple[str, ...],
    progress: Progress = no_progress,
    check: Check = check_here,
) -> Manifest:
    """The manifest of an engine in `folder` with which this machine's GPU computes what the reference says: the one
    that is there, or what `make` builds there with the next of `forms` of attention, and then the manifest says why.

    `forms` empty: no other may be taken. Where the engine cannot run here, the manifest says so, and the GPU that loads
    it checks it. Raises ExportError where no form computes it.
    """
    note = ""
    while True:
        progress("check on this GPU", 0.0)
        try:
            found = check(folder, manifest)
        except WrongOnThisGpu as error:
            form = manifest.runtime_details["attention"]
            if (following := _following(form, forms)) is None:
                raise ExportError(str(error)) from None
            note = f"{form} attention is wrong here ({error}), so it is {following}, which is slower"
            _log.warning("%s", note)
            manifest = make(following)
        except ArtifactError as error:
            unchecked = f"not checked on a GPU yet: {error}"
            _log.warning("%s", unchecked)
            return _saved(manifest, folder, note, {NOTE: unchecked})
        else:
            progress("check on this GPU", 1.0)
            return _saved(manifest, folder, note, {DETAIL: found})


def recheck(folder: Path, check: Check = check_here) -> Manifest:
    """Check an artifact again on this machine's GPU; the manifest keeps what was found. Raises ExportError, and where
    the GPU computes something else no earlier check counts any more."""
    manifest = Manifest.load(folder)
    if not manifest.runtime.startswith("tensorrt"):
        raise ExportError(
            f"the artifact at {folder} is of the runtime {manifest.runtime}, which has no check of a GPU; name its "
            "checkpoint to compare it with that"
        )
    try:
        manifest.verify_files(folder)
        return _saved(manifest, folder, "", {DETAIL: check(folder, manifest)})
    except WrongOnThisGpu as error:
        _saved(manifest, folder, "", {NOTE: f"not served: {error}"})
        raise ExportError(str(error)) from None
    except ArtifactError as error:
        raise ExportError(str(error)) from None


def _following(form: str, forms: tuple[str, ...]) -> str | None:
    return dict(pairwise(forms)).get(form)


def _saved(manifest: Manifest, folder: Path, attention_note: str, found: dict[str, object]) -> Manifest:
    details = {name: value for name, value in manifest.runtime_details.items() if name not in (DETAIL, NOTE)}
    if attention_note:
        details[ATTENTION_NOTE] = attention_note
    changed = dataclasses.replace(manifest, runtime_details=details | found)
    save_whole(changed, folder)
    return changed

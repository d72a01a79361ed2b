"""What a manifest's `runtime_details` must say for each runtime, and which files of the artifact they name.

A runner opens what they name, so every such file must be one that the manifest lists: its content is checked then, and
it lies in the artifact's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import IMAGE_LIBRARIES, MANIFEST_NAME, Manifest
from autoglm_engine.manifest_checks import OBJECT, TEXT, Rule, check, shown, whole

_MAX = 1 << 24
_TEXTS = Rule("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))
_RISING = Rule(
    "a list of whole numbers of 1 ..., rising",
    lambda value: (
        isinstance(value, list)
        and all(type(v) is int for v in value)
        and all(low < high for low, high in pairwise([0, *value]))
        and bool(value)
    ),
)
_FLAG = Rule("true or false", lambda value: isinstance(value, bool))
_TENSORRT = {
    "engine": TEXT,
    "module": TEXT,
    "compute_capabilities": _TEXTS,
    "weight_streaming": _FLAG,
    "cache_length": whole(1, _MAX),
    "num_candidates": whole(1, _MAX),
    "attention_lengths": _RISING,
    "prefill_lengths": _RISING,
    "reference": TEXT,
    "feature_size": whole(1, _MAX),
    "device_check": Rule("an object or null", lambda value: value is None or isinstance(value, dict)),
}
_DEVICE_CHECK = {
    **dict.fromkeys(("device", "compute_capability", "driver", "version", "attention", "time"), TEXT),
    "capacity": whole(1, _MAX),
    "worst_error": Rule("a number of 0 or more", lambda value: type(value) in (int, float) and 0 <= value < math.inf),
    "bound": Rule("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf),
    "equal_tokens": whole(0, _MAX),
    "tokens": whole(0, _MAX),
}
_RULES: Mapping[str, Mapping[str, Rule]] = {
    "native": {
        "libraries": OBJECT,
        "program": TEXT,
        "weights": TEXT,
        "max_logits_per_span": whole(1, 1024),
        "library_sources": TEXT,
        "feature_size": whole(1, _MAX),
    },
    "onnx": {"model": TEXT, "cache_length": whole(1, _MAX), "feature_size": whole(1, _MAX)},
    "tensorrt": _TENSORRT,
    "tensorrt-rtx": _TENSORRT,
}
_ONNX_CACHES = ("float32", "float16")
_OPTIONAL = {"library_sources", "cache_length", "feature_size", "num_candidates", "reference", "device_check"}
_LIBRARY = {"file": TEXT, "cpu_features": _TEXTS}
_FILES = {"native": ("program", "weights"), "onnx": ("model",), "tensorrt": ("engine",), "tensorrt-rtx": ("engine",)}


def check_details(manifest: Manifest, folder: Path) -> None:
    """Raises ArtifactError for a detail that is missing or of the wrong type, and for a file that is not listed."""
    path, details, rules = folder / MANIFEST_NAME, manifest.runtime_details, _RULES[manifest.runtime]
    if missing := sorted(rules.keys() - _OPTIONAL - details.keys()):
        raise ArtifactError(f"the artifact's manifest lacks {', '.join(missing)}; export it again")
    check({name: details[name] for name in rules if name in details}, _given(rules, details), path, "runtime_details.")
    if IMAGE_LIBRARIES in details:
        check({IMAGE_LIBRARIES: details[IMAGE_LIBRARIES]}, {IMAGE_LIBRARIES: OBJECT}, path, "runtime_details.")
    for kind, entry in _libraries(manifest):
        if not isinstance(entry, dict):
            raise ArtifactError(f"{path} describes a library by {shown(entry)}; it must give file and cpu_features")
        check(entry, _LIBRARY, path, f"runtime_details.{kind}.")
    if (checked := details.get("device_check")) is not None and "device_check" in rules:
        check(checked, _DEVICE_CHECK, path, "runtime_details.device_check.")
    if manifest.runtime == "onnx":
        _check_onnx_cache(manifest, path)
    if manifest.vision is not None:
        _check_features(manifest.vision.hidden_size, details.get("feature_size"), path)
    for file in _files(manifest):
        if file not in manifest.files:
            raise ArtifactError(
                f"{path} names the file {shown(file)}, which is none of the artifact's; export it again"
            )


def _check_features(given: int, taken: int | None, path: Path) -> None:
    """`given`: numbers of a row of features as the tower makes them; `taken`: as the decoder reads them."""
    if given != taken:
        raise ArtifactError(
            f"{path} has a tower that gives features of {given} numbers, and a decoder that takes {taken or 'none'}; "
            "export it again"
        )


def _check_onnx_cache(manifest: Manifest, path: Path) -> None:
    """A slot is written up to `max_length` without asking."""
    length = manifest.runtime_details.get("cache_length", manifest.max_length)
    if manifest.max_length > length:
        raise ArtifactError(f"{path} has max_length {manifest.max_length}; its graph's slots hold {length} tokens")
    if manifest.cache.dtype not in _ONNX_CACHES:
        raise ArtifactError(f"{path} has cache.dtype {manifest.cache.dtype}; a graph's is {' or '.join(_ONNX_CACHES)}")


def _given(rules: Mapping[str, Rule], details: Mapping[str, Any]) -> dict[str, Rule]:
    return {name: rule for name, rule in rules.items() if name in details}


def _files(manifest: Manifest) -> Iterator[str]:
    details = manifest.runtime_details
    for name in _FILES[manifest.runtime]:
        yield details[name]
    if "reference" in details and "reference" in _RULES[manifest.runtime]:
        yield details["reference"]
    for _, entry in _libraries(manifest):
        yield entry["file"]


def _libraries(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """Each with the name of the detail that has it."""
    for kind in ("libraries", IMAGE_LIBRARIES) if manifest.runtime == "native" else (IMAGE_LIBRARIES,):
        for entry in manifest.runtime_details.get(kind, {}).values():
            yield kind, entry

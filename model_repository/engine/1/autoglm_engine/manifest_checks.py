"""What a manifest may say: the type and the range of every value, so that nothing behind it meets one that it was not
made for.

All raise ArtifactError, with one sentence that names the file, the value and what is allowed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import ArtifactError

MAX_MANIFEST_BYTES = 16 << 20
MAX_SLOTS = 1024
_MAX_TOKENS = 1 << 24  # of a vocabulary, or of a slot
_MAX_PARTS = 1 << 16  # layers, heads, numbers of a head
_MAX_FEATURE_PARTS = 1 << 6
_MAX_BYTES = 1 << 50
_CACHE_TYPES = ("float32", "float16", "bfloat16")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Rule:
    allowed: str
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """bool is an int, and no number."""
    return Rule(f"a whole number of {low} ... {high}", lambda value: type(value) is int and low <= value <= high)


def list_of(length: int, rule: Rule) -> Rule:
    return Rule(
        f"a list of {length}, {rule.allowed} each",
        lambda value: isinstance(value, list) and len(value) == length and all(map(rule.accepts, value)),
    )


def one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


TEXT = Rule("a text", lambda value: isinstance(value, str))
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
_NUMBERS = Rule("an object of numbers", lambda value: isinstance(value, dict) and all(map(_is_number, value.values())))
_TEXTS_OR_NULL = Rule(
    "null or an object of texts",
    lambda value: value is None or (isinstance(value, dict) and all(isinstance(text, str) for text in value.values())),
)
_TEXTS = Rule(
    "a list of texts that are not empty",
    lambda value: isinstance(value, list) and all(isinstance(text, str) and text for text in value),
)
_OBJECT_OR_NULL = Rule("an object or null", lambda value: value is None or isinstance(value, dict))
_SIZE = whole(0, _MAX_BYTES)
_DIGEST = Rule("64 hexadecimal digits", lambda value: isinstance(value, str) and bool(_SHA256.fullmatch(value)))

_RULES = {
    **dict.fromkeys(("model_name", "family", "runtime", "runtime_version", "precision"), TEXT),
    **dict.fromkeys(("source", "exporter_version"), TEXT),
    **dict.fromkeys(("cache", "spec", "runtime_details", "files"), OBJECT),
    "num_slots": whole(1, MAX_SLOTS),
    "max_length": whole(2, _MAX_TOKENS),
    "vocab_size": whole(1, _MAX_TOKENS),
    "generation_defaults": _NUMBERS,
    "parity": _OBJECT_OR_NULL,
    "special_tokens": _TEXTS_OR_NULL,
    "stop_strings": _TEXTS,
}
_CACHE_RULES = {
    **dict.fromkeys(("num_layers", "num_kv_heads", "head_size"), whole(1, _MAX_PARTS)),
    "dtype": one_of(*_CACHE_TYPES),
}
_SIDE = whole(1, 1 << 12)  # pixels, patches or positions along one side
_POSITIVE = Rule("a number above 0", lambda value: _is_number(value) and value > 0)
_VISION_RULES = {
    **dict.fromkeys(("runtime", "model", "precision"), TEXT),
    **dict.fromkeys(("patch_size", "merge_size", "temporal_patch_size", "position_table_size", "frames"), _SIDE),
    **dict.fromkeys(("min_pixels", "max_pixels"), whole(1, 1 << 40)),
    "hidden_size": whole(1, _MAX_PARTS * _MAX_FEATURE_PARTS),
    "head_size": whole(1, _MAX_PARTS),
    "interpolation": one_of("bicubic", "bilinear"),
    "grows_small": Rule("true or false", lambda value: type(value) is bool),
    "image_mean": list_of(3, Rule("a number", _is_number)),
    "image_std": list_of(3, _POSITIVE),
    "rope_theta": _POSITIVE,
    "mrope_sections": list_of(3, whole(0, _MAX_PARTS)),
    "max_images": whole(1, 1 << 10),
}
_RECORD_RULES = {"bytes": _SIZE, "sha256": _DIGEST}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of at most MAX_MANIFEST_BYTES. Raises FileNotFoundError, too."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes, so it is no manifest")
        raw = json.loads(content)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} holds no JSON object, so it is no manifest")
    return raw


def check_values(raw: Mapping[str, Any], path: Path) -> None:
    """Of a manifest that has all of its keys."""
    check(raw, _RULES, path)
    check(raw["cache"], _CACHE_RULES, path, "cache.")
    if unknown := sorted(raw["cache"].keys() - _CACHE_RULES.keys()):
        raise ArtifactError(f"{path} has unknown keys: cache.{unknown[0]}")
    token = whole(0, raw["vocab_size"] - 1)
    tokens = Rule(
        f"a list of token ids, {token.allowed} each",
        lambda value: isinstance(value, list) and all(map(token.accepts, value)),
    )
    token_or_null = Rule(f"null or {token.allowed}", lambda value: value is None or token.accepts(value))
    chunk = whole(1, raw["max_length"])
    sequences = Rule(
        "a list of lists of token ids",
        lambda value: isinstance(value, list) and all(word and tokens.accepts(word) for word in value),
    )
    rules = {"eos_token_ids": tokens, "bos_token_id": token_or_null, "banned_tokens": sequences}
    check(raw, {**rules, "prefill_chunk": chunk}, path)


def check_vision(vision: Any, names: Collection[str], raw: Mapping[str, Any], path: Path) -> None:
    """`vision`: the section of the manifest `raw`, whose keys must be `names`."""
    check({"vision": vision}, {"vision": OBJECT}, path)
    if unknown := sorted(vision.keys() - set(names)):
        raise ArtifactError(f"{path} has unknown keys: vision.{unknown[0]}")
    token = whole(0, raw["vocab_size"] - 1)
    tokens = dict.fromkeys(("image_token_id", "begin_image_token_id", "end_image_token_id"), token)
    check(vision, {**_VISION_RULES, **tokens}, path, "vision.")
    if vision["min_pixels"] > vision["max_pixels"]:
        raise ArtifactError(
            f"{path} has vision.min_pixels {vision['min_pixels']}; it must be at most vision.max_pixels, "
            f"{vision['max_pixels']}"
        )
    if vision["model"] not in raw["files"]:
        raise ArtifactError(f"{path} does not list {shown(vision['model'])}, its vision.model; export it again")


def check(raw: Mapping[str, Any], rules: Mapping[str, Rule], path: Path, prefix: str = "") -> None:
    """`raw`: what may lack what has a default, but for the parts of an object."""
    for name, rule in rules.items():
        if prefix and name not in raw:
            raise ArtifactError(f"{path} is incomplete: it lacks {prefix}{name}")
        if name in raw and not rule.accepts(raw[name]):
            raise ArtifactError(f"{path} has {prefix}{name} {shown(raw[name])}; it must be {rule.allowed}")


def check_file_record(name: str, record: Any, path: Path) -> None:
    """Names are paths below the manifest's folder, written as POSIX does."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or name.startswith("/") or ".." in parts or "\0" in name:
        raise ArtifactError(f"{path} lists the file {shown(name)}; files must lie in the artifact's folder")
    if not isinstance(record, dict) or record.keys() != _RECORD_RULES.keys():
        raise ArtifactError(f"{path} describes {name} by {shown(record)}; it must give bytes and sha256")
    check(record, _RECORD_RULES, path, f"files.{name}.")


def shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
